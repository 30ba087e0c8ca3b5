"""The anomaly detection protocols, each from its own file, on all objects of the data set."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from datasets.readers.mvtec import MVTEC_OBJECTS
from datasets.readers.visa import VISA_OBJECTS
from tests.anomaly_data import write_mvtec, write_visa
from tests.helpers import own_logging
from tools.anomaly import MEASURES
from tools.sweep.__main__ import main

SHOTS = (1, 2, 4)
PROTOCOLS = {"mvtec": (write_mvtec, MVTEC_OBJECTS), "visa": (write_visa, VISA_OBJECTS)}


@pytest.fixture(scope="module", params=PROTOCOLS)
def finished(request, tiny, tmp_path_factory):
    """Name, objects, words and folder of a protocol that has run."""
    (write, objects), output = PROTOCOLS[request.param], tmp_path_factory.mktemp("log")
    write(output / "data", objects, good=1, abnormal=1, size=(48, 64), kinds=["spot"])
    words = [request.param, *tiny(output, TEST__dataset_path=output / "data")]
    with own_logging():
        assert main(words) == 0
    return request.param, objects, words, output / request.param


@pytest.fixture
def tests(finished):
    """What each test's metrics.json says of anomaly detection, by its shots."""
    name, _, _, folder = finished
    contents = [json.loads(file.read_text()) for file in folder.glob("*/metrics.json")]
    assert {(c["data_set"], c["seed"]) for c in contents} == {(name, 54)}
    return {content["shot"]: content["anomaly"] for content in contents}


def test_each_number_of_shots_is_tested_on_all_objects(finished, tests):
    _, objects, _, folder = finished
    runs = {f"test_seed54_{shot}shot" for shot in SHOTS}
    assert {path.name for path in folder.iterdir()} == runs | {
        "summary.md",
        "summary.json",
        "summary.csv",
    }
    assert set(tests) == set(SHOTS)
    for test in tests.values():
        assert list(test["objects"]) == list(objects)
        assert {(o["images"], len(o["aupro"]["repeats"])) for o in test["objects"].values()} == {
            (2, 2)
        }
        assert test["mean"]["pixel_auroc"]["mean"] > 0.8
    assert len({test["mean"]["pixel_ap"]["mean"] for test in tests.values()}) == len(SHOTS), (
        "more shots, other figures"
    )


def known(tests):
    """(mean, deviation) of every figure by shot, object and measure; the mean over objects is taken in each repeat."""
    figures = {}
    for shot, test in tests.items():
        for measure in MEASURES:
            per_object = {
                name: known[measure]["repeats"] for name, known in test["objects"].items()
            }
            for name, values in per_object.items():
                figures[shot, name, measure] = np.mean(values), np.std(values)
            means = np.mean(list(per_object.values()), axis=0)
            figures[shot, "mean", measure] = np.mean(means), np.std(means)
            own = test["mean"][measure]
            assert (own["mean"], own["std"]) == pytest.approx(
                figures[shot, "mean", measure], abs=1e-12
            )
    return figures


def test_json_and_csv_hold_the_figures_of_the_tests(finished, tests):
    folder, expected = finished[-1], known(tests)
    content = json.loads((folder / "summary.json").read_text())["figures"]
    with (folder / "summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for figures in (content, rows):
        found = {
            (int(f["shot"]), f["object"], f["metric"]): (float(f["mean"]), float(f["std"]))
            for f in figures
        }
        assert len(figures) == len(found) and set(found) == set(expected)
        for key, value in found.items():
            assert value == pytest.approx(expected[key], abs=1e-12)
    assert all(len(f["repeats"]) == 2 for f in content) and {row["repeats"] for row in rows} == {
        "2"
    }


def test_tables_hold_them_in_percent(finished, tests):
    name, objects, _, folder = finished
    text, expected = (folder / "summary.md").read_text(), known(tests)
    parts = dict(re.findall(r"## (.*)\n\n((?:\|.*\n)+)", text))
    assert text.startswith(f"# {name}\n") and len(parts) == 1 + len(SHOTS)

    def line(first, shot, item):
        cells = (expected[shot, item, measure] for measure in MEASURES)
        return f"| {first} | {' | '.join(f'{100 * mean:.2f} +- {100 * std:.2f}' for mean, std in cells)} |"

    assert parts["Means over objects"].splitlines()[2:] == [
        line(shot, shot, "mean") for shot in SHOTS
    ]
    for shot in SHOTS:
        rows = [line(item, shot, item) for item in (*objects, "mean")]
        assert parts[f"{shot}-shot, objects"].splitlines()[2:] == rows


def test_the_same_command_again_tests_nothing(finished):
    *_, words, folder = finished
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/metrics.json")}
    assert main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/metrics.json")} == before
