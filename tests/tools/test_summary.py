from __future__ import annotations

import subprocess
import sys

import pytest

from tests.tools.report.example import summary, write_metrics
from tools.summary import main, summarise
from utils.errors import DataError
from utils.metrics import ANOMALY


def cells_of(text):
    """By the first word of a line, the others."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


def test_tables_of_every_test_set_show_mean_and_spread_in_percent(tmp_path):
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
    for name in ("figures/0.png", "report.html"):
        (tmp_path / name).write_bytes(b"")
    file = write_metrics(tmp_path, {"methods": methods}) / "metrics.json"
    (tmp_path / "metrics_validation.json").write_text(file.read_text())
    text = summarise(tmp_path)
    lines = cells_of(text)
    assert text.count("mIoU") == 2 and lines["class"] == ["queries", "SOFS", "prior"]
    assert lines["Rod/dent"] == ["2", "62.50", "+-12.50", "25.00", "+-", "0.00"]
    assert lines["Rod/pit"] == ["0", "-", "-"]
    assert (lines["mIoU"][0], lines["FB-IoU"]) == ("62.50", ["75.00", "75.00"])
    assert lines["report:"] == [str(tmp_path / "report.html")]
    assert lines["pictures:"] == [str(tmp_path / "figures")]


def test_the_table_of_open_domain_objects_counts_the_labelled_queries(tmp_path):
    steel = {"queries": 9, "labelled": 5, "iou": {"SOFS": 0.5, "prior": None}}
    lines = cells_of(summarise(write_metrics(tmp_path, {"objects": {"steel": steel}})))
    assert lines["steel"] == ["queries", "SOFS", "prior"] and lines["IoU"] == ["5", "50.00", "-"]


def test_the_table_of_anomaly_detection_has_every_measure(tmp_path):
    values = {measure.name: i / 100 for i, measure in enumerate(ANOMALY)}
    entry = {name: summary("mean", value) for name, value in values.items()}
    content = {"anomaly": {"objects": {"bottle": entry}, "mean": entry}}
    text = summarise(write_metrics(tmp_path, content))
    lines = cells_of(text)
    assert lines["bottle"] == lines["mean"] == [f"{100 * value:.2f}" for value in values.values()]
    assert all(measure.label in text for measure in ANOMALY)


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": {}}', '{"objects": {"a": {}}}'])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        summarise(tmp_path)


def test_names_that_are_no_text_are_printed_as_escapes(tmp_path):
    """An object's type may be a folder of any bytes."""
    write_metrics(tmp_path, {"objects": {"steel/\udcff": {"queries": 1, "iou": {"prior": 0.5}}}})
    command = [sys.executable, "-m", "tools.summary", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "steel/\\udcff" in done.stdout, done.stderr
