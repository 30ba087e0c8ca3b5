from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tools.summary import main, summarise
from utils.errors import DataError
from utils.metrics import ANOMALY


def summary(key, *repeats):
    """Of two repeats or one, or of none, undefined."""
    if not repeats:
        return {key: None, "std": None, "repeats": [None, None]}
    mean = sum(repeats) / len(repeats)
    return {key: mean, "std": abs(repeats[0] - mean), "repeats": list(repeats)}


def write(folder, content, name="metrics.json"):
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path):
    methods = {
        method: {
            "classes": {
                "Rod/dent": summary("iou", *iou) | {"queries": 2},
                "Rod/pit": summary("iou") | {"queries": 0},
            },
            "miou": summary("mean", *iou),
            "fb_iou": summary("mean", 0.75),
        }
        for method, iou in {"SOFS": (0.5, 0.75), "prior": (0.25, 0.25)}.items()
    }
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "0.png").write_bytes(b"")
    return write(tmp_path, {"methods": methods})


def cells_of(text):
    """By the first word of a line, the others."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


def test_the_table_shows_mean_and_spread_in_percent(folder):
    lines = cells_of(summarise(folder))
    assert lines["class"] == ["queries", "SOFS", "prior"]
    assert lines["Rod/dent"] == ["2", "62.50", "+-12.50", "25.00", "+-", "0.00"]
    assert lines["Rod/pit"] == ["0", "-", "-"]
    assert (lines["mIoU"][0], lines["FB-IoU"]) == ("62.50", ["75.00", "75.00"])
    assert lines["pictures:"] == [str(folder / "figures")]


def test_every_test_set_of_a_run_and_the_report_are_listed(folder):
    (folder / "metrics_validation.json").write_text((folder / "metrics.json").read_text())
    (folder / "report.html").write_text("")
    text = summarise(folder)
    assert text.count("mIoU") == 2 and f"report: {folder / 'report.html'}" in text


def test_the_table_of_open_domain_objects_counts_the_labelled_queries(tmp_path):
    steel = {"queries": 9, "labelled": 5, "iou": {"SOFS": 0.5, "prior": None}}
    lines = cells_of(summarise(write(tmp_path, {"objects": {"steel": steel}})))
    assert lines["steel"] == ["queries", "SOFS", "prior"] and lines["IoU"] == ["5", "50.00", "-"]


def test_the_table_of_anomaly_detection_has_every_measure(tmp_path):
    values = {measure.name: i / 100 for i, measure in enumerate(ANOMALY)}
    entry = {name: summary("mean", value) for name, value in values.items()}
    text = summarise(write(tmp_path, {"anomaly": {"objects": {"bottle": entry}, "mean": entry}}))
    lines = cells_of(text)
    assert lines["bottle"] == lines["mean"] == [f"{100 * value:.2f}" for value in values.values()]
    assert all(measure.label in text for measure in ANOMALY)


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": {}}', '{"objects": {"a": {}}}', None])
def test_a_broken_file_is_named(tmp_path, content):
    if content is None:
        (tmp_path / "metrics.json").mkdir()
    else:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        summarise(tmp_path)


def test_names_that_are_no_text_are_printed_as_escapes(tmp_path):
    """An object's type may be a folder of any bytes."""
    write(tmp_path, {"objects": {"steel/\udcff": {"queries": 1, "iou": {"prior": 0.5}}}})
    command = [sys.executable, "-m", "tools.summary", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "steel/\\udcff" in done.stdout, done.stderr
