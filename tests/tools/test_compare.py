from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from tools.compare import compare, main, read_run, table
from utils.errors import DataError

HEADER = "repeat,query,class,image,method,share,threshold,intersection_background,intersection"
HEADER = f"{HEADER},union_background,union".split(",")


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
    with (folder / f"queries{suffix}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for repeat, query, name, image, method, part, whole in rows:
            writer.writerow([repeat, query, name, image, method, 0.01, 0.5, 7, part, 900, whole])
    return str(folder)


def compared(*arguments, **options):
    return compare([read_run(a) for a in arguments], **{"samples": 300} | options)


@pytest.fixture
def pair(tmp_path):
    better = queries(gain=20, repeats=5, seed=1)
    return write_run(tmp_path / "a", queries()), write_run(tmp_path / "b", better)


def by_hand(rows, method="SOFS"):
    """Class IoU with the pixels of all repeats."""
    sums = {}
    for _, _, name, _, m, part, whole in rows:
        if m == method:
            a, b = sums.get(name, (0, 0))
            sums[name] = (a + part, b + whole)
    return {name: a / b for name, (a, b) in sums.items()}


def mean(values):
    return np.mean(list(values.values()))


def test_iou_is_of_sums_of_pixels_over_repeats(pair):
    report = compared(*pair)
    first, second = by_hand(queries()), by_hand(queries(gain=20, repeats=5, seed=1))
    for name in ("Ring/rust", "Rod/pit"):
        values = [run["value"] for run in report["classes"][name]["runs"]]
        assert values == pytest.approx([first[name], second[name]])
    (difference,) = report["miou"]["differences"]
    assert report["miou"]["runs"][0]["value"] == pytest.approx(mean(first))
    assert difference["value"] == pytest.approx(mean(second) - mean(first))
    assert difference["p"] < 0.02


def test_an_image_in_two_classes_is_two_queries(pair):
    report = compared(*pair)
    counts = {name: found["queries"] for name, found in report["classes"].items()}
    assert (report["queries"], counts) == (14, {"Ring/rust": 8, "Rod/pit": 6})


def test_each_query_weighs_the_same_however_many_repeats_have_it(tmp_path):
    """One query failed in the second repeat."""
    about = [(r, q, "Ring/rust", f"{q}.png", "SOFS") for r in range(2) for q in range(5)]
    rows = [(*row, 10 * (row[1] + 1), 100) for row in about]
    whole, lacking = write_run(tmp_path / "a", rows), write_run(tmp_path / "b", rows[:-1])
    assert compared(whole, lacking)["miou"]["differences"][0]["value"] == 0


def test_queries_that_are_not_in_all_runs_are_left_out_and_counted(pair, tmp_path):
    kept = [row for row in queries() if row[3] not in ("val/0.png", "val/7.png")]
    fewer = write_run(tmp_path / "c", kept)
    report = compared(pair[0], fewer)
    assert [run["left_out"] for run in report["runs"]] == [3, 0]
    assert report["queries"] == 11
    for run in (0, 1):
        values = {name: c["runs"][run]["value"] for name, c in report["classes"].items()}
        assert values == pytest.approx(by_hand(kept))
    assert f"3 of {pair[0]}:SOFS, 0 of {fewer}:SOFS" in table(report)


def test_no_query_in_common_is_an_error(pair, tmp_path, capsys):
    other = write_run(tmp_path / "c", [(0, 0, "Ring/rust", "elsewhere/0.png", "SOFS", 1, 2)])
    assert main([pair[0], other]) == 2
    assert "elsewhere/0.png" in capsys.readouterr().err


def test_two_methods_of_one_run(pair):
    report = compared(f"{pair[0]}:prior", f"{pair[0]}:SOFS")
    assert [run["name"] for run in report["runs"]] == [f"{pair[0]}:prior", f"{pair[0]}:SOFS"]
    expected = [mean(by_hand(queries(), m)) for m in ("prior", "SOFS")]
    assert [run["value"] for run in report["miou"]["runs"]] == pytest.approx(expected)


@pytest.mark.parametrize(
    "content",
    [
        {"methods": {"prior": {}, "SOFS": {}}},
        {"objects": {"wood": {"iou": {}}, "steel": {"iou": {"prior": None, "SOFS": 0.1}}}},
    ],
)
def test_the_first_method_of_the_metrics_file_is_taken(tmp_path, content):
    assert read_run(write_run(tmp_path / "a", queries(), content=content)).name.endswith(":prior")


def test_a_folder_may_have_a_colon_in_its_name(tmp_path):
    folder = write_run(tmp_path / "lr:1", queries())
    assert read_run(folder).name == f"{folder}:SOFS"
    assert read_run(f"{folder}:prior").name == f"{folder}:prior"


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


def test_order_of_rows_does_not_matter(pair, tmp_path):
    rows = queries()
    np.random.default_rng(3).shuffle(rows)
    shuffled = write_run(tmp_path / "c", [tuple(row) for row in rows])
    first, second = compared(*pair), compared(shuffled, pair[1])
    assert first["classes"] == second["classes"] and first["miou"] == second["miou"]


def test_the_command_prints_the_table_and_a_verdict(pair, capsys):
    assert main([*pair, "--samples", "200", "--seed", "4"]) == 0
    shown = capsys.readouterr().out
    report = compared(*pair, samples=200, seed=4)
    found = report["miou"]["differences"][0]
    low, high = (f"{100 * found[key]:+.2f}" for key in ("low", "high"))
    about = f"{pair[1]}:SOFS against {pair[0]}:SOFS: the difference is {100 * found['value']:+.2f}"
    assert about in shown and table(report) in shown
    assert f"95 % interval {low} to {high}, which excludes 0" in shown
    assert "not corrected for multiplicity" in shown
    assert main([pair[0], pair[0], "--samples", "50"]) == 0
    assert "+0.00 to +0.00, which includes 0; p = 1" in capsys.readouterr().out


def test_columns_of_the_table_are_aligned(pair):
    lines = table(compared(*pair)).splitlines()
    header = next(line for line in lines if line.startswith("class"))
    end = header.index("difference [95 % interval]") + len("difference [95 % interval]")
    rows = lines[lines.index(header) + 1 :][:6]
    assert [line.split()[0] for line in rows[::2]] == ["mIoU", "Ring/rust", "Rod/pit"]
    assert all(line[end - 1] == "]" for line in rows[1::2])
    assert all(line.endswith("]") for line in rows[::2]), "the reference differs from nothing"


def test_runs_without_intervals_are_shown(tmp_path):
    """A class of one query has no interval; one without a union has no IoU either."""
    rows = [(0, 0, "Ring/rust", "0.png", "SOFS", 5, 10), (0, 1, "Rod/pit", "1.png", "SOFS", 0, 0)]
    folder = write_run(tmp_path / "a", rows)
    assert "too few queries for an interval" in table(compared(folder, folder))
    empty = write_run(tmp_path / "b", rows[1:])
    assert "no class has a union in every run" in table(compared(empty, empty))


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("union_background,union", "union_background,area", ["line 1", "union"]),
        ("900,100", "900,many", ["line 2", "union", "many"]),
        ("900,100", "900,-3", ["line 2", "-3"]),
        ("900,100", "900", ["line 2", "cells"]),
        ("900,100", "900,100,1", ["line 2", "cells"]),
        ("900,100", "900,0", ["line 2", "not over the second"]),
        ("Ring", '"Ri"ng', ["line 2"]),
    ],
)
def test_a_broken_line_is_named(pair, tmp_path, old, new, parts):
    file = tmp_path / "a" / "queries.csv"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        read_run(pair[0])
    assert all(part in str(caught.value) for part in [str(file), *parts])


@pytest.mark.parametrize("content", [None, "{", "[]", '{"methods": {}}', '{"objects": {"a": {}}}'])
def test_a_metrics_file_without_methods_is_named(pair, tmp_path, content):
    file = tmp_path / "a" / "metrics.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=r"metrics\.json"):
        read_run(pair[0])
    assert read_run(f"{pair[0]}:prior").queries, "a method that is named needs no metrics file"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["{a}"], "two runs"),
        (["{a}", "{b}:other"], "SOFS, prior"),
        (["{a}", "{b}", "--samples", "0"], "--samples 0"),
        (["{a}", "{b}", "--seed", "-1"], "--seed -1"),
        (["{a}", "{b}", "--set", "other"], "queries_other.csv"),
        (["{a}", "{a}/.."], "anomaly detection runs have none"),
        (["{a}", "{b}", "--samples", "9", "--json", "{a}/metrics.json/x.json"], "metrics.json/x"),
    ],
)
def test_mistakes_end_with_code_2(pair, capsys, arguments, part):
    assert main([a.format(a=pair[0], b=pair[1]) for a in arguments]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ") and part in shown
