"""A method without training is a class with a name and an answer; every job runs it by its name."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from models.methods import METHODS, Method
from models.priors import upsample
from tests.anomaly_data import write_mvtec
from tests.helpers import tiny_config
from tests.tools.open_domain_data import QUERIES, write_object
from tools.evaluator import run_test

NAME = "distance to the mean"


@pytest.fixture
def distance():
    """Defined as in a file of its own, and forgotten after the test."""

    class Distance(Method):
        """How far a token is from the mean token of the supports, in the last layer."""

        name = NAME

        def answer(self, compared, size):
            tokens = compared.features[-1]
            tokens = tokens / tokens.norm(dim=1, keepdim=True)
            mean = compared.memory.mean[-1].transpose(1, 2).unsqueeze(-1)
            return upsample((tokens - mean).norm(dim=1) / 2, size)

    yield Distance
    del METHODS[NAME]


def run(root, tmp_path, method=NAME, **changes):
    folder = run_test(tiny_config(root, tmp_path / method, TEST__method=method, **changes), "")
    return folder, json.loads((folder / "metrics.json").read_text())


def check_page(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert NAME in page and "<img" in page


def test_evaluation_of_a_split(distance, surfaces, tmp_path):
    """Beside the baseline, each with its figures, curve and pictures."""
    folder, report = run(surfaces, tmp_path, TEST__baseline=True, TEST__threshold="auto")
    assert list(report["methods"]) == [NAME, "prior"]
    ours, prior = (entry["miou"]["mean"] for entry in report["methods"].values())
    assert ours > 0 and ours != prior
    curves = json.loads((folder / "curves.json").read_text())["curves"]
    assert [curve["name"] for curve in curves] == [NAME, "prior"]
    with (folder / "queries.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {NAME, "prior"}
    check_page(folder)
    _, alone = run(surfaces, tmp_path, TEST__baseline=False, TEST__threshold="auto", RUN_NAME="a")
    assert list(alone["methods"]) == [NAME]
    assert alone["methods"][NAME] == report["methods"][NAME]


def test_open_domain(distance, tmp_path):
    write_object(tmp_path / "data", "steel", labels=QUERIES)
    changes = {"DATASET__name": "opendomain_test_dataset", "TEST__baseline": True}
    changes |= {"DATASET__open_domain_test_object": ["steel"]}
    folder, report = run(tmp_path / "data", tmp_path, **changes)
    assert list(report["objects"]["steel"]["iou"]) == [NAME, "prior"]
    masks = list((folder / "steel" / "masks").iterdir())
    assert len(masks) == len(QUERIES)
    check_page(folder)


def test_anomaly_detection(distance, tmp_path):
    """Its answers, not those of the baseline, are measured."""
    write_mvtec(tmp_path / "data")
    changes = {"DATASET__name": "mvtec", "DATASET__test_objects": ["bottle"]}
    folder, report = run(tmp_path / "data", tmp_path, **changes)
    _, prior = run(tmp_path / "data", tmp_path, "prior", **changes)
    ours, theirs = (r["anomaly"]["mean"]["pixel_ap"]["mean"] for r in (report, prior))
    assert np.isfinite(ours) and ours != theirs
    check_page(folder)
