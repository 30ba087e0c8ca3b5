from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tools.results import Evaluation, QueryResult
from tools.summary import main, summarise
from utils.errors import DataError


def result(repeat, method, hits):
    """A query of class ("Rod", 0): `hits` of four defect pixels found, none of four others."""
    return QueryResult(repeat, 0, ("Rod", 0), "a.png", method, 0.5, 0.5, (4, hits), (8 - hits, 4))


@pytest.fixture
def folder(tmp_path):
    names = {("Rod", 0): "Rod/dent", ("Rod", 1): "Rod/pit"}
    hits = {"SOFS": (2, 3), "prior": (1, 1)}
    results = [
        result(repeat, method, n)
        for method, found in hits.items()
        for repeat, n in enumerate(found)
    ]
    report = Evaluation(names, list(hits), repeats=2, results=results).report()
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "0.png").write_bytes(b"")
    return tmp_path


def test_the_table_shows_mean_and_spread_in_percent(folder):
    lines = {
        line.split()[0]: line.split()[1:]
        for line in summarise(folder).splitlines()
        if line.split()[1:]
    }
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


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"methods": {}}', '{"objects": {"a": {}}}', "[" * 200_000]
)
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        summarise(tmp_path)


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "metrics.json").mkdir()
    with pytest.raises(DataError, match=r"metrics\.json"):
        summarise(tmp_path)


def test_names_that_are_no_text_are_printed_as_escapes(tmp_path):
    """An object's type may be a folder of any bytes."""
    report = {"objects": {"steel/\udcff": {"queries": 1, "iou": {"prior": 0.5}}}}
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    command = [sys.executable, "-m", "tools.summary", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "steel/\\udcff" in done.stdout, done.stderr
