from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest

from tests.tools.report.example import query_rows, write_metrics, write_queries
from tools.compare import compare, main, read_run, table
from utils.errors import DataError

ROWS = list(query_rows(["Ring/rust", "Rod/pit"]))
BETTER = list(query_rows(["Ring/rust", "Rod/pit"], repeats=5, gain=30, seed=1))


def write_run(folder, rows, methods=("SOFS", "prior")):
    write_metrics(folder, {"methods": dict.fromkeys(methods)})
    write_queries(folder / "queries.csv", rows)
    return str(folder)


def row(repeat, query, part, union, name="Ring/rust"):
    return [repeat, query, name, f"{query}.png", "SOFS", 0.1, 0.5, 0, part, 0, union]


def compared(*arguments, samples=300, seed=0):
    return compare([read_run(a) for a in arguments], samples, seed)


@pytest.fixture
def pair(tmp_path):
    return write_run(tmp_path / "a", ROWS), write_run(tmp_path / "b", BETTER)


def by_hand(rows, method="SOFS"):
    """mIoU and class IoU with the pixels of all repeats."""
    sums = defaultdict(lambda: np.zeros(2))
    for _, _, name, _, m, *_, part, _, whole in rows:
        sums[name] += (part, whole) if m == method else (0, 0)
    ious = {name: part / whole for name, (part, whole) in sums.items()}
    return {"mIoU": np.mean(list(ious.values()))} | ious


def values(report, run):
    lines = {"mIoU": report["miou"]} | report["classes"]
    return {name: line["runs"][run]["value"] for name, line in lines.items()}


def test_iou_is_of_sums_of_pixels_over_repeats(pair):
    """An image in two classes is two queries."""
    report = compared(*pair)
    first, second = by_hand(ROWS), by_hand(BETTER)
    assert (values(report, 0), values(report, 1)) == (pytest.approx(first), pytest.approx(second))
    assert [report["queries"], *(c["queries"] for c in report["classes"].values())] == [12, 6, 6]
    (difference,) = report["miou"]["differences"]
    assert difference["value"] == pytest.approx(second["mIoU"] - first["mIoU"])
    assert difference["p"] < 0.02


def test_each_query_weighs_the_same_however_many_repeats_have_it(tmp_path):
    """One query failed in the second repeat."""
    rows = [row(repeat, i, 10 * i + 1, 100) for repeat in range(2) for i in range(5)]
    whole, lacking = write_run(tmp_path / "a", rows), write_run(tmp_path / "b", rows[:-1])
    assert compared(whole, lacking)["miou"]["differences"][0]["value"] == 0


def test_queries_that_are_not_in_all_runs_are_left_out_and_counted(pair, tmp_path):
    """The order of rows does not matter."""
    kept = [row for row in ROWS if row[1] not in (0, 5, 7)]
    fewer = write_run(tmp_path / "c", kept[::-1])
    report = compared(pair[0], fewer)
    assert report["queries"] == 9
    for run in (0, 1):
        assert values(report, run) == pytest.approx(by_hand(kept))
    assert f"3 of {pair[0]}:SOFS, 0 of {fewer}:SOFS" in table(report)


def test_a_run_is_a_folder_with_or_without_a_method(tmp_path):
    """Without one it is the first of the metrics file; a folder may have a colon in its name."""
    folder = write_run(tmp_path / "lr:1", ROWS, ["prior", "SOFS"])
    objects = {"wood": {"iou": {}}, "steel": {"iou": {"prior": None, "SOFS": 0.1}}}
    for content in ({}, {"objects": objects}):
        if content:
            write_metrics(tmp_path / "lr:1", content)
        report = compared(folder, f"{folder}:SOFS")
        for run, method in enumerate(("prior", "SOFS")):
            assert report["runs"][run]["name"] == f"{folder}:{method}"
            assert values(report, run) == pytest.approx(by_hand(ROWS, method))


def test_the_command_prints_an_aligned_table_and_a_verdict(pair, tmp_path, capsys):
    """A further test set has its own files."""
    file = tmp_path / "out.json"
    assert main([*pair, "--samples", "200", "--seed", "4", "--json", str(file)]) == 0
    shown, report = capsys.readouterr().out, compared(*pair, samples=200, seed=4)
    assert json.loads(file.read_text()) == report
    difference = report["miou"]["differences"][0]
    low, high, value = (f"{100 * difference[key]:+.2f}" for key in ("low", "high", "value"))
    about = f"{pair[1]}:SOFS against {pair[0]}:SOFS: the difference is {value}"
    assert about in shown and table(report) in shown
    assert f"95 % interval {low} to {high}, which excludes 0" in shown
    head, *rows = shown.splitlines()[2:9]
    end = head.index("difference") + len("difference [95 % interval]")
    assert [line.split()[0] for line in rows[:6:2]] == ["mIoU", "Ring/rust", "Rod/pit"]
    assert all(line[end - 1] == "]" for line in rows[1:6:2])
    assert all(line.endswith("]") for line in rows[:6:2]), "the reference differs from nothing"
    for folder in pair:
        write_metrics(tmp_path / folder, {"methods": {"prior": None}}, "_validation")
        write_queries(tmp_path / folder / "queries_validation.csv", ROWS)
    assert main([*pair, "--samples", "50", "--set", "validation"]) == 0
    shown = capsys.readouterr().out
    assert "+0.00 to +0.00, which includes 0; p = 1" in shown and f"{pair[1]}:prior" in shown


def test_runs_without_intervals_are_shown(tmp_path):
    """A class of one query has no interval; one without a union has no IoU either."""
    rows = [row(0, 0, 5, 10), row(0, 1, 0, 0, "Rod/pit")]
    folder, empty = write_run(tmp_path / "a", rows), write_run(tmp_path / "b", rows[1:])
    assert "too few queries for an interval" in table(compared(folder, folder))
    assert "no class has a union in every run" in table(compared(empty, empty))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("queries.csv", "background,union", "background,area"), ("queries.csv", "600,100", "600"),
     ("queries.csv", "Ring", '"Ri"ng'), ("metrics.json", '"SOFS": null, "prior": null', ""),
     ("metrics.json", "{", "")],
)  # fmt: skip
def test_a_broken_file_is_named(pair, tmp_path, name, old, new):
    file = tmp_path / "a" / name
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=str(file)):
        read_run(pair[0])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [("{b}:other", "SOFS, prior"), ("{b} --samples 0", "--samples 0"), ("{c}", "0.png"),
     ("{b} --set other", "queries_other.csv"), ("{a}/..", "anomaly detection runs have none")],
)  # fmt: skip
def test_mistakes_end_with_code_2(pair, tmp_path, capsys, arguments, part):
    other = write_run(tmp_path / "c", [row(0, 0, 1, 2)])
    assert main([pair[0], *arguments.format(a=pair[0], b=pair[1], c=other).split()]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and part in shown
