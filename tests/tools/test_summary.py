from __future__ import annotations

import pytest

from tests.tools.report.example import metrics, summary, write_metrics
from tools.summary import main, summarise
from utils.metrics import ANOMALY


def cells_of(folder):
    """The table: by the first word of a line, the others."""
    return {line.split()[0]: line.split()[1:] for line in summarise(folder).splitlines()}


def test_tables_of_every_test_set_show_mean_and_spread_in_percent(tmp_path):
    content = metrics(["Rod/dent", "Rod/pit"])
    for method, iou in {"SOFS": (0.5, 0.75), "prior": (0.25, 0.25)}.items():
        classes = content["methods"][method]["classes"]
        classes["Rod/dent"] = summary("iou", *iou) | {"queries": 2}
        classes["Rod/pit"] = summary("iou") | {"queries": 0}
        content["methods"][method] |= {"miou": summary("mean", *iou)}
        content["methods"][method] |= {"fb_iou": summary("mean", 0.75)}
    (tmp_path / "figures").mkdir()
    for name in ("figures/0.png", "report.html"):
        (tmp_path / name).write_bytes(b"")
    file = write_metrics(tmp_path, content) / "metrics.json"
    (tmp_path / "metrics_validation.json").write_text(file.read_text())
    assert summarise(tmp_path).count("\nmIoU") == 2
    lines = cells_of(tmp_path)
    assert lines["class"] == ["queries", "SOFS", "prior"]
    assert lines["Rod/dent"] == ["2", "62.50", "+-12.50", "25.00", "+-", "0.00"]
    assert lines["Rod/pit"] == ["0", "-", "-"]
    assert (lines["mIoU"][0], lines["FB-IoU"]) == ("62.50", ["75.00", "75.00"])
    assert lines["report:"] == [str(tmp_path / "report.html")]
    assert lines["pictures:"] == [str(tmp_path / "figures")]


def test_the_table_of_open_domain_objects_counts_the_labelled_queries(tmp_path, capsys):
    """The type of an object may be a folder of any bytes."""
    steel = {"queries": 9, "labelled": 5, "iou": {"SOFS": 0.5, "prior": None}}
    assert main([str(write_metrics(tmp_path, {"objects": {"steel/\udcff": steel}}))]) == 0
    head, iou = capsys.readouterr().out.splitlines()[1:]
    assert head.split() == ["steel/\\udcff", "queries", "SOFS", "prior"]
    assert iou.split() == ["IoU", "5", "50.00", "-"]


def test_the_table_of_anomaly_detection_has_every_measure(tmp_path):
    values = {measure.name: i / 100 for i, measure in enumerate(ANOMALY)}
    entry = {name: summary("mean", value) for name, value in values.items()}
    write_metrics(tmp_path, {"anomaly": {"objects": {"bottle": entry}, "mean": entry}})
    lines = cells_of(tmp_path)
    assert lines["bottle"] == lines["mean"] == [f"{100 * value:.2f}" for value in values.values()]
    assert all(measure.label in summarise(tmp_path) for measure in ANOMALY)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"methods": {}}'])
def test_missing_and_broken_metrics_are_named(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "metrics.json" in error
