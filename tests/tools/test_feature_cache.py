"""Tests whose features are kept on disk by `TRAIN.feature_cache_path`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from datasets.build import build_test_index
from tests.helpers import JOBS, tiny_config, write_other_weights
from tools.cli import run_main
from tools.evaluator import SplitTest, run_test
from tools.methods import load_methods
from tools.predictor import Predictor

REPEATS = "DATASET__few_shot_repeated_multiple"
SETTINGS = {"TEST__method": "prior", "RNG_SEED": 3}
GRIDS = {"DATASET__grids": [1, 2], "DATASET__support_windows": True}
WHOLE = {"DATASET__area_resize_ratio": 0.0}  # all queries are seen in the resized image


def evaluate(cfg, folder):
    """Results of a test, and each batch that its backbone encoded."""
    predictor, batches = Predictor.from_config(cfg, device=torch.device("cpu")), []
    model = predictor.backbone.model
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, args: batches.append(args[0].clone()))
    test = SplitTest(cfg, build_test_index(cfg), folder, "original")
    return test.run(predictor, "a test").results, batches


@pytest.mark.parametrize("scale", [WHOLE, GRIDS])
def test_a_test_has_the_same_figures_and_encodes_no_view_twice(surfaces, tmp_path, scale):
    """Also where it has more repeats than the one before. A support alone in its pass is rounded
    in another way without the cache, which may move a score by a last digit."""
    cache, options, seen = tmp_path / "cache", SETTINGS | scale, set()
    for repeats in (1, 1, 4):
        options |= {REPEATS: repeats}
        plain = tiny_config(surfaces, tmp_path, **options)
        kept = tiny_config(surfaces, tmp_path, **options, TRAIN__feature_cache_path=str(cache))
        expected, all_batches = evaluate(plain, tmp_path)
        results, batches = evaluate(kept, tmp_path)
        for ours, theirs in zip(results, expected, strict=True):
            assert replace(ours, score=theirs.score) == theirs
            assert ours.score == pytest.approx(theirs.score, abs=1e-6)
        assert len(results) == 8 * repeats
        for batch in batches:
            new = {view.numpy().tobytes() for view in batch}
            assert not new & seen
            seen |= new
        shown = {view.numpy().tobytes() for batch in all_batches for view in batch}
        assert shown <= seen and len(list(cache.rglob("*.npy"))) == len(seen)
    if scale is WHOLE:
        assert len(seen) == 8, "the images, each query and support"


def features_of(images, root, output, **changes):
    """Features as the methods of a test give them."""
    method = next(iter(load_methods(tiny_config(root, output, **SETTINGS, **changes)).values()))
    return method.backbone(images)


def test_other_weights_and_layers_have_entries_of_their_own(surfaces, tmp_path):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    several = [{}, {"TRAIN__SOFS__prior_layer_pointer": [1, 2]},
               {"TRAIN__backbone_checkpoint": write_other_weights(tmp_path / "w.pth")}]  # fmt: skip
    cache = {"TRAIN__feature_cache_path": str(tmp_path / "cache")}
    for number, changes in enumerate(several, start=1):
        expected = features_of(images, surfaces, tmp_path, **changes)
        for _ in range(2):
            ours = features_of(images, surfaces, tmp_path, **changes, **cache)
            assert len(ours) == len(expected) and all(map(torch.equal, ours, expected))
        assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2 * number


def test_what_is_kept_serves_with_and_without_position(surfaces, tmp_path):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    changes = {"TRAIN__position_directions": 2}
    plain, expected = (features_of(images, surfaces, tmp_path, **c) for c in ({}, changes))
    assert not any(map(torch.equal, plain, expected))
    changes["TRAIN__feature_cache_path"] = str(tmp_path / "cache")
    for _ in range(2):
        assert all(map(torch.equal, expected, features_of(images, surfaces, tmp_path, **changes)))
    changes["TRAIN__position_directions"] = 0
    assert all(map(torch.equal, plain, features_of(images, surfaces, tmp_path, **changes)))
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2


def test_a_run_finds_what_another_left(surfaces, tmp_path):
    figures, times, cache = [], [], tmp_path / "cache"
    for name in ("a", "b"):
        changes = SETTINGS | GRIDS | {"RUN_NAME": name, "TRAIN__feature_cache_path": str(cache)}
        folder = run_test(tiny_config(surfaces, tmp_path / "log", **changes), "")
        figures.append(json.loads((folder / "metrics.json").read_text())["methods"])
        times.append({path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")})
    assert figures[0] == figures[1] and times[0] == times[1] != {}


def test_a_folder_that_cannot_be_written_ends_a_test_with_2(
    surfaces, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    cfg = tiny_config(surfaces, tmp_path / "log", **SETTINGS, TRAIN__feature_cache_path=str(cache))
    (tmp_path / "my.yaml").write_text(cfg.dump())
    monkeypatch.setattr(sys, "argv", ["test.py", "--cfg", str(tmp_path / "my.yaml")])
    assert run_main("", JOBS["test"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: {cache}") and "cannot be written" in last
