"""A method is a class with a name and an answer, and a head where it is trained; every job runs it
by its name."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from models.build import build_method, build_model
from models.methods import METHODS, Method
from models.priors import upsample
from tests.anomaly_data import write_mvtec
from tests.helpers import loss_of, picture, tiny_config, training_of, untrained_predictor
from tests.tools.open_domain_data import write_object
from tools.checkpoint import HEAD, load_head, save_head
from tools.evaluator import run_test
from tools.sweep import build_parser, build_sweep
from tools.trainer import run_training
from utils.errors import ConfigError, WeightsError

NAME, TRAINED = "distance to the mean", "likeness"


@pytest.fixture
def run(tmp_path):
    """Runs a test by the method, defined as in a file of its own and forgotten after the test."""

    class Distance(Method):
        """How far a token is from the mean token of the supports, in the last layer."""

        name = NAME

        def answer(self, compared, size):
            tokens = compared.features[-1]
            tokens = tokens / tokens.norm(dim=1, keepdim=True)
            mean = compared.memory.mean[-1].transpose(1, 2).unsqueeze(-1)
            return upsample((tokens - mean).norm(dim=1) / 2, size)

    def by_method(root, method=NAME, **changes):
        folder = run_test(tiny_config(root, tmp_path / method, TEST__method=method, **changes), "")
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert method in page and "<img" in page
        return folder, json.loads((folder / "metrics.json").read_text())

    yield by_method
    del METHODS[NAME]


def test_evaluation_of_a_split(run, surfaces):
    """Beside the baseline, each with its figures, curve and pictures."""
    folder, report = run(surfaces, TEST__baseline=True, TEST__threshold="auto")
    assert list(report["methods"]) == [NAME, "prior"]
    ours, prior = (entry["miou"]["mean"] for entry in report["methods"].values())
    assert ours > 0 and ours != prior
    curves = json.loads((folder / "curves.json").read_text())["curves"]
    assert [curve["name"] for curve in curves] == [NAME, "prior"]
    with (folder / "queries.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {NAME, "prior"}


def test_open_domain(run, tmp_path):
    write_object(tmp_path / "data", "steel", {"one.png": (96, 128)}, labels=("one.png",))
    changes = {"DATASET__name": "opendomain_test_dataset", "TEST__baseline": True}
    changes |= {"DATASET__open_domain_test_object": ["steel"]}
    folder, report = run(tmp_path / "data", **changes)
    assert list(report["objects"]["steel"]["iou"]) == [NAME, "prior"]
    assert [path.name for path in (folder / "steel" / "masks").iterdir()] == ["one.png"]


def test_anomaly_detection(run, tmp_path):
    """Its answers, not those of the baseline, are measured."""
    write_mvtec(tmp_path / "data")
    changes = {"DATASET__name": "mvtec", "DATASET__test_objects": ["bottle"]}
    reports = [run(tmp_path / "data", method, **changes)[1] for method in (NAME, "prior")]
    ours, theirs = (report["anomaly"]["mean"]["pixel_ap"]["mean"] for report in reports)
    assert ours is not None and ours != theirs


@pytest.fixture
def _trained():
    """A method that is trained, and whose log-odds are finer than tokens, defined as in a file of
    its own and forgotten after the test."""

    class Likeness(Method):
        """How far a token is from the mean marked one in the first layer, by a learnt scale."""

        name, needs_training = TRAINED, True

        def __init__(self, backbone):
            super().__init__(backbone)
            self.head = nn.Linear(1, 1)
            for parameter in self.head.parameters():
                nn.init.zeros_(parameter)

        def encode(self, features, share, counts=None):
            tokens = features[0].unflatten(0, share.shape[:2]).float()
            return {"sum": (tokens * share.unsqueeze(2)).sum((-2, -1)),
                    "count": share.sum((-2, -1)).unsqueeze(-1)}  # fmt: skip

        def logits(self, query, kept, size):
            marked = kept["sum"].sum(1) / kept["count"].sum(1)
            apart = (query[0].float() - marked[..., None, None]).norm(dim=1)
            return self.head(upsample(apart, size)[..., None])[..., 0]

        def episode_logits(self, query, supports, support_masks):
            kept = self.encode(supports, self.shares(support_masks))
            return self.logits(query, kept, support_masks.shape[-2:])

        def answer(self, compared, size):
            if not compared.memory.is_marked:
                return upsample(compared.anomaly, size)
            kept = compared.memory.extras[self.name]
            return self.logits(compared.features, kept, size).sigmoid()

    yield
    del METHODS[TRAINED]


@pytest.mark.usefixtures("_trained")
@pytest.mark.parametrize("resolution", ["token", "pixel"])
def test_a_trained_method_is_trained_tested_and_loaded(surfaces, tmp_path, resolution):
    """The test of the head that the training saved gives the figures that the training gave."""
    names = {"TRAIN__method": TRAINED, "TEST__method": TRAINED}
    changes = names | {"TRAIN__LOSS__resolution": resolution}
    trained = run_training(tiny_config(surfaces, tmp_path / "train", **changes), "")
    with safe_open(trained / HEAD, "pt") as file:
        assert file.metadata()["method"] == TRAINED
        assert all(file.get_tensor(f"head.{name}").all() for name in ("weight", "bias"))
    load = {"TEST__load_checkpoint": True, "TEST__load_model_path": str(trained / HEAD)}
    tested = run_test(tiny_config(surfaces, tmp_path / "test", **names, **load), "")
    during, after = (
        json.loads((folder / "metrics.json").read_text())["methods"] for folder in (trained, tested)
    )
    assert list(after) == [TRAINED, "prior"] and after[TRAINED] != after["prior"]
    assert during == after


@pytest.mark.usefixtures("_trained")
def test_a_support_file_keeps_what_a_trained_method_kept(surfaces, tmp_path):
    names, mask = {"TRAIN__method": TRAINED}, np.zeros((90, 130), np.uint8)
    mask[20:30, 30:40] = 1
    one, other = (untrained_predictor(tiny_config(surfaces, tmp_path, **names)) for _ in range(2))
    for predictor in (one, other):
        nn.init.constant_(predictor.methods[TRAINED].head.weight, -0.1)
    one.set_support([picture(90, 130)], [mask])
    one.save_support(tmp_path / "a.safetensors")
    other.load_support(tmp_path / "a.safetensors")
    ours, theirs = (predictor.predict(picture(90, 130, 1)).score for predictor in (one, other))
    assert np.array_equal(ours, theirs) and ours.std() > 0.01


@pytest.mark.usefixtures("_trained")
def test_finer_answers_are_averaged_over_tokens_unless_pixels_are_compared(surfaces, tmp_path):
    for resolution, pooled in (("token", 8), ("pixel", 1)):
        changes = {"TRAIN__method": TRAINED, "TRAIN__LOSS__resolution": resolution}
        run = training_of(surfaces, tmp_path, **changes)
        assert [group["lr"] for group in run.optimizer.param_groups] == [2e-3], "no transformer"
        nn.init.constant_(run.model.head.weight, -0.1)
        batch = default_collate([run.episodes[n] for n in range(4)])
        logits = run.model.episode_logits(*run.loss.features(batch), batch["support_masks"])
        share = F.avg_pool2d(batch["query_mask"].float(), pooled)
        expected = run.loss.loss(F.avg_pool2d(logits, pooled).sigmoid(), share > 0.1)
        assert loss_of(run, batch) == pytest.approx(float(expected.detach()), abs=1e-6)


@pytest.mark.usefixtures("_trained")
def test_a_sweep_trains_the_method_that_it_tests(tmp_path):
    def planned(*opts):
        words = ["vision_v1", "--splits", "0", "--opts", "OUTPUT_DIR", str(tmp_path), *opts]
        return build_sweep(build_parser().parse_args(words)).runs()

    with pytest.raises(ConfigError, match=rf"TEST\.method is {TRAINED}, .* SOFS .*; set both"):
        planned("TEST.method", TRAINED)
    runs = planned("TEST.method", TRAINED, "TRAIN.method", TRAINED)
    assert {run.cfg.TRAIN.method for run in runs if run.trains} == {TRAINED}


@pytest.mark.usefixtures("_trained")
def test_a_head_of_another_method_is_refused_with_the_remedy(surfaces, tmp_path):
    cfg, file = tiny_config(surfaces, tmp_path), tmp_path / "head.safetensors"
    sofs, other = build_model(cfg), build_method(cfg, TRAINED)
    save_head(file, other, "")
    for key in ("TRAIN", "TEST"):
        words = rf"holds a head of {TRAINED}, not of SOFS; set {key}\.method to {TRAINED}"
        with pytest.raises(WeightsError, match=rf"{key}\.load_model_path: .*{words}"):
            load_head(file, sofs, f"{key}.load_model_path")
    published = {"model.feature_recorrect.down_query.0.weight": torch.zeros(3)}
    torch.save({"state_dict": published}, tmp_path / "published.pth")
    with pytest.raises(WeightsError, match=r"of SOFS, not of likeness; set TEST\.method to SOFS"):
        load_head(tmp_path / "published.pth", other, "TEST.load_model_path")
    run = training_of(surfaces, tmp_path)
    run.save()
    state = str(tmp_path / "checkpoints" / "state.pth")
    with pytest.raises(ConfigError, match=r"a training of SOFS; set TRAIN\.method to SOFS"):
        training_of(surfaces, tmp_path, TRAIN__method=TRAINED, TRAIN__resume=state)
