from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest

from tests.tools.report.example import write_queries
from tools.compare import compare, main, read_run, table
from utils.errors import DataError


def queries(gain=0, repeats=2, seed=0):
    """Rows (repeat, query, class, image, method, intersection, union): two classes, some images in
    both."""
    rng, rows = np.random.default_rng(seed), []
    names = [("Ring/rust", i) for i in range(8)] + [("Rod/pit", i) for i in range(6)]
    for repeat in range(repeats):
        for query, (name, image) in enumerate(names):
            for method in ("SOFS", "prior"):
                counts = int(rng.integers(40)) + gain, 100
                rows.append((repeat, query, name, f"val/{image}.png", method, *counts))
    return rows


def write_run(folder, rows, suffix="", content=None):
    folder.mkdir(parents=True, exist_ok=True)
    content = content or {"methods": {"SOFS": {}, "prior": {}}}
    (folder / f"metrics{suffix}.json").write_text(json.dumps(content))
    file = folder / f"queries{suffix}.csv"
    write_queries(file, [(*about, 0.01, 0.5, 7, part, 900, n) for *about, part, n in rows])
    return str(folder)


def compared(*arguments, **options):
    return compare([read_run(a) for a in arguments], **{"samples": 300} | options)


@pytest.fixture
def pair(tmp_path):
    better = queries(gain=20, repeats=5, seed=1)
    return write_run(tmp_path / "a", queries()), write_run(tmp_path / "b", better)


def by_hand(rows, method="SOFS"):
    """Class IoU with the pixels of all repeats."""
    sums = defaultdict(lambda: np.zeros(2))
    for _, _, name, _, m, part, whole in rows:
        sums[name] += (part, whole) if m == method else (0, 0)
    return {name: part / whole for name, (part, whole) in sums.items()}


def mean(values):
    return np.mean(list(values.values()))


def test_iou_is_of_sums_of_pixels_over_repeats(pair):
    """An image in two classes is two queries."""
    report = compared(*pair)
    first, second = by_hand(queries()), by_hand(queries(gain=20, repeats=5, seed=1))
    assert report["queries"] == 14
    for name, count in (("Ring/rust", 8), ("Rod/pit", 6)):
        values = [run["value"] for run in report["classes"][name]["runs"]]
        assert values == pytest.approx([first[name], second[name]])
        assert report["classes"][name]["queries"] == count
    (difference,) = report["miou"]["differences"]
    assert report["miou"]["runs"][0]["value"] == pytest.approx(mean(first))
    assert difference["value"] == pytest.approx(mean(second) - mean(first))
    assert difference["p"] < 0.02


def test_each_query_weighs_the_same_however_many_repeats_have_it(tmp_path):
    """One query failed in the second repeat."""
    about = [(r, q, "Ring/rust", f"{q}.png", "SOFS") for r in range(2) for q in range(5)]
    rows = [(*row, 10 * (row[1] + 1), 100) for row in about]
    whole, lacking = write_run(tmp_path / "a", rows), write_run(tmp_path / "b", rows[:-1])
    assert compared(whole, lacking)["miou"]["differences"][0]["value"] == 0


def test_queries_that_are_not_in_all_runs_are_left_out_and_counted(pair, tmp_path):
    """The order of rows does not matter."""
    kept = [row for row in queries() if row[3] not in ("val/0.png", "val/7.png")]
    fewer = write_run(tmp_path / "c", kept[::-1])
    report = compared(pair[0], fewer)
    assert [run["left_out"] for run in report["runs"]] == [3, 0]
    assert report["queries"] == 11
    for run in (0, 1):
        values = {name: c["runs"][run]["value"] for name, c in report["classes"].items()}
        assert values == pytest.approx(by_hand(kept))
    assert f"3 of {pair[0]}:SOFS, 0 of {fewer}:SOFS" in table(report)


def test_a_run_is_a_folder_with_or_without_a_method(tmp_path):
    """Without one it is the first of the metrics file; a folder may have a colon in its name."""
    rows = queries()
    objects = {"wood": {"iou": {}}, "steel": {"iou": {"prior": None, "SOFS": 0.1}}}
    for content in ({"methods": {"prior": {}, "SOFS": {}}}, {"objects": objects}):
        folder = write_run(tmp_path / "lr:1", rows, content=content)
        assert read_run(folder).name == f"{folder}:prior"
        assert read_run(f"{folder}:SOFS").name == f"{folder}:SOFS"
        report = compared(folder, f"{folder}:SOFS")
        expected = [mean(by_hand(rows, method)) for method in ("prior", "SOFS")]
        assert [run["value"] for run in report["miou"]["runs"]] == pytest.approx(expected)


def test_a_further_test_set_is_read_from_its_own_files(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, gain in zip(folders, (0, 10), strict=True):
        write_run(tmp_path / folder, queries())
        validation = {"methods": {"prior": {}, "SOFS": {}}}
        write_run(tmp_path / folder, queries(gain), suffix="_validation", content=validation)
    file = tmp_path / "out.json"
    for options, method, value in (([], "SOFS", 0), (["--set", "validation"], "prior", 0.1)):
        assert main([*folders, "--samples", "50", "--json", str(file), *options]) == 0
        report = json.loads(file.read_text())
        assert report["runs"][0]["name"].endswith(method)
        assert report["miou"]["differences"][0]["value"] == pytest.approx(value)


def test_the_command_prints_an_aligned_table_and_a_verdict(pair, capsys):
    assert main([*pair, "--samples", "200", "--seed", "4"]) == 0
    shown = capsys.readouterr().out
    report = compared(*pair, samples=200, seed=4)
    difference = report["miou"]["differences"][0]
    low, high, value = (f"{100 * difference[key]:+.2f}" for key in ("low", "high", "value"))
    about = f"{pair[1]}:SOFS against {pair[0]}:SOFS: the difference is {value}"
    assert about in shown and table(report) in shown
    assert f"95 % interval {low} to {high}, which excludes 0" in shown
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("class"))
    end, rows = (
        lines[start].index("difference") + len("difference [95 % interval]"),
        lines[start + 1 :],
    )
    assert [line.split()[0] for line in rows[:6:2]] == ["mIoU", "Ring/rust", "Rod/pit"]
    assert all(line[end - 1] == "]" for line in rows[1:6:2])
    assert all(line.endswith("]") for line in rows[:6:2]), "the reference differs from nothing"
    assert main([pair[0], pair[0], "--samples", "50"]) == 0
    assert "+0.00 to +0.00, which includes 0; p = 1" in capsys.readouterr().out


def test_runs_without_intervals_are_shown(tmp_path):
    """A class of one query has no interval; one without a union has no IoU either."""
    rows = [(0, 0, "Ring/rust", "0.png", "SOFS", 5, 10), (0, 1, "Rod/pit", "1.png", "SOFS", 0, 0)]
    folder = write_run(tmp_path / "a", rows)
    assert "too few queries for an interval" in table(compared(folder, folder))
    empty = write_run(tmp_path / "b", rows[1:])
    assert "no class has a union in every run" in table(compared(empty, empty))


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [("background,union", "background,area", "union"), ("900,100", "900,many", "many"),
     ("900,100", "900", "TypeError"), ("Ring", '"Ri"ng', "expected after")],
)  # fmt: skip
def test_a_broken_line_is_named(pair, tmp_path, old, new, part):
    file = tmp_path / "a" / "queries.csv"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=f"{file}, line 2: .*{part}"):
        read_run(pair[0])


@pytest.mark.parametrize("content", ["", "[]", '{"methods": {}}', '{"objects": {"a": {}}}'])
def test_a_metrics_file_without_methods_is_named(pair, tmp_path, content):
    (tmp_path / "a" / "metrics.json").write_text(content)
    with pytest.raises(DataError, match=rf"metrics\.json: .*{pair[0]}:METHOD"):
        read_run(pair[0])
    assert read_run(f"{pair[0]}:prior").queries, "a method that is named needs no metrics file"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{a}", "{b}:other"], "SOFS, prior"),
        (["{a}", "{b}", "--samples", "0"], "--samples 0"),
        (["{a}", "{b}", "--seed", "-1"], "--seed -1"),
        (["{a}", "{b}", "--set", "other"], "queries_other.csv"),
        (["{a}", "{a}/.."], "anomaly detection runs have none"),
        (["{a}", "{c}"], "elsewhere/0.png"),
        (["{a}", "{b}", "--samples", "9", "--json", "{a}/metrics.json/x.json"], "metrics.json/x"),
    ],
)
def test_mistakes_end_with_code_2(pair, tmp_path, capsys, arguments, part):
    other = write_run(tmp_path / "c", [(0, 0, "Ring/rust", "elsewhere/0.png", "SOFS", 1, 2)])
    assert main([a.format(a=pair[0], b=pair[1], c=other) for a in arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and part in shown
