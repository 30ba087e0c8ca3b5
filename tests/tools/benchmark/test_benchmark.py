from __future__ import annotations

import json
import re

import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from models.memory import label
from tests.helpers import tiny_config
from tools.benchmark.__main__ import hold, main
from tools.benchmark.figures import AT_LEAST, AT_MOST, EXACTLY, Figure, counted_passes
from tools.benchmark.inference import measure_inference, published_schedule, random_predictor
from tools.benchmark.training import measure_training


def test_a_missed_bound_exits_with_one_when_all_is_written(tmp_path, capsys):
    kinds = {AT_MOST: [True, True, False], AT_LEAST: [False, True, True]}
    kinds |= {EXACTLY: [False, True, False]}
    kept = [k for row in kinds.values() for k in row]
    figures = [Figure("a", "b", v, "s", 3, kind) for kind in kinds for v in (2, 3, 4)]
    with pytest.raises(SystemExit) as ended:
        hold([lambda: figures], tmp_path / "new" / "f.json")
    assert ended.value.code == 1
    written = json.loads((tmp_path / "new" / "f.json").read_text())["figures"]
    assert [f["kept"] for f in written] == kept
    lines = capsys.readouterr().out.splitlines()
    assert ["MISSED" not in line for line in lines] == [*kept, True] and "4 bounds" in lines[-1]
    hold([lambda: [Figure("a", "b", 9)]], tmp_path / "f.json")


def test_an_unknown_section_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmark", "--only", "inference", "speed"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert re.search(r"speed.*published", capsys.readouterr().err)


def test_the_published_schedule_gives_our_answer_for_more_passes(tmp_path):
    changes = {f"DATASET__{name}_size": 56 for name in ("image", "mask")}
    changes |= {"TRAIN__backbone": "dinov2_vits14", "TRAIN__SOFS__vit_patch_size": 14}
    cfg = tiny_config(tmp_path, tmp_path, TRAIN__backbone_load_state_dict=False, **changes)
    model = random_predictor(cfg).methods["SOFS"]
    draw = torch.Generator().manual_seed(0)
    windows = torch.randn(6, 3, 56, 56, generator=draw)
    supports = torch.randn(1, 4, 3, 56, 56, generator=draw)
    masks = torch.zeros(1, 4, 56, 56)
    masks[..., 10:20, 20:40] = 1
    with torch.inference_mode():
        features, share = model.backbone(supports[0]), model.shares(masks)
        compared = Comparison(model.backbone(windows), label(features, share))
        ours = model.token_logits(compared, model.encode(features, share))
    with counted_passes(model.backbone.model.blocks[11]) as last_block:
        theirs = published_schedule(model, windows, supports, masks)
    assert_close(theirs, ours, rtol=0, atol=1e-4)
    assert sum(last_block) == 6 * (1 + 4), "all blocks, for each window and its four supports"


def test_passes_are_counted_by_their_images(tmp_path):
    cfg = tiny_config(tmp_path, tmp_path)
    figures = {f.name: f for f in measure_inference(cfg, (100, 150), repeats=1, most=(100, 100))}
    passes = figures["100 x 150: backbone passes"]
    assert (passes.value, passes.bound, passes.kind) == (6, 6, EXACTLY)
    backbone = random_predictor(cfg).backbone
    with counted_passes(backbone) as count:
        backbone(torch.zeros(2, 3, 64, 64))
    backbone(torch.zeros(1, 3, 64, 64))
    assert count == [2]


@pytest.mark.parametrize(("crops", "workers"), [(0, 2), (2, 0)])
def test_a_training_is_measured(tmp_path, crops, workers):
    changes = {"TRAIN__feature_bank": crops, "TRAIN_SETUPS__num_workers": workers}
    changes |= {"TRAIN_SETUPS__batch_size": 2, "DATASET__shot": 2}
    cfg = tiny_config(tmp_path / "unused", tmp_path, **changes)
    figures = {f.name: f for f in measure_training(cfg, iterations=3)}
    exact = {name: f.value for name, f in figures.items() if f.kind == EXACTLY}
    assert exact == {
        "passes through the backbone per iteration": 1,
        "images encoded / images of the episodes": 1,
        "feature bank: passes in an epoch": 0,
    }
    assert all(figure.value > 0 for name, figure in figures.items() if name not in exact)
    assert not list(tmp_path.iterdir()), "everything was written elsewhere"
