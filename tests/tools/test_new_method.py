"""A method without training is a class with a name and an answer; every job runs it by its name."""

from __future__ import annotations

import csv
import json

import pytest

from models.methods import METHODS, Method
from models.priors import upsample
from tests.anomaly_data import write_mvtec
from tests.helpers import tiny_config
from tests.tools.open_domain_data import write_object
from tools.evaluator import run_test

NAME = "distance to the mean"


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
