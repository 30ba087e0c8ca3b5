from __future__ import annotations

import json

import numpy as np
import pytest

from tools.evaluator import Evaluation
from tools.summary import main, summarise
from utils.errors import DataError
from utils.metrics import SegmentationMeter


def meter(hits):
    """One query of class ("Rod", 0): `hits` of four pixels found; none of class ("Rod", 1)."""
    found = SegmentationMeter([("Rod", 0), ("Rod", 1)])
    found.update(("Rod", 0), np.arange(8) < hits, np.arange(8) < 4)
    return found


@pytest.fixture
def folder(tmp_path):
    names = {("Rod", 0): "Rod/dent", ("Rod", 1): "Rod/pit"}
    report = Evaluation(names, {"SOFS": [meter(2), meter(3)], "prior": [meter(1), meter(1)]}).report()
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "0.png").write_bytes(b"")
    return tmp_path


def test_the_table_shows_mean_and_spread_in_percent(folder):
    lines = {line.split()[0]: line.split()[1:] for line in summarise(folder).splitlines() if line.split()[1:]}
    assert lines["Rod/dent"] == ["2", "62.50", "+-12.50", "25.00", "+-", "0.00"]
    assert lines["Rod/pit"] == ["0", "-", "-"]
    assert lines["mIoU"][0] == "62.50"
    assert lines["pictures:"] == [str(folder / "figures")]


def test_every_test_set_of_a_run_is_shown(folder):
    (folder / "metrics_validation.json").write_text((folder / "metrics.json").read_text())
    assert summarise(folder).count("mIoU") == 2


def test_a_folder_without_metrics_is_named(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": {}}', '{"objects": {"a": {}}}'])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        summarise(tmp_path)
