from __future__ import annotations

import csv
import json
from itertools import permutations

import numpy as np
import pytest

from tools.prediction.answers import Prediction
from tools.results import HEADER, Evaluation, QueryResult
from utils.metrics.score_curves import ScoreCounts
from utils.metrics.segmentation import SegmentationMeter
from utils.metrics.sizes import SizeMeter

NAMES = {("Ring", 0): "Ring/rust", ("Ring", 3): "Ring/a,b", ("Rod", 0): "Rod/dent"}
METHODS = ["SOFS", "prior"]
REPEATS = 3
NUMBERS = 8


@pytest.fixture(scope="module")
def asked():
    """(repeat, number), class, image, target and answers of every query of three repeats; no query of Rod/dent."""
    rng = np.random.default_rng(0)
    targets = [(rng.random((20 + n, 30)) < 0.02 * n).astype(np.uint8) for n in range(NUMBERS)]
    found = []
    for repeat in range(REPEATS):
        for number, target in enumerate(targets):
            answers = {}
            for place, method in enumerate(METHODS):
                score = np.clip(0.4 * target + 0.6 * rng.random(target.shape), 0, 1).astype(
                    np.float32
                )
                threshold = 0.5 + 0.1 * place + 0.01 * repeat + 0.001 * number
                answers[method] = Prediction(
                    (score > threshold).astype(np.uint8), score, 1, threshold
                )
            found.append(
                (
                    (repeat, number),
                    ("Ring", 3 * (number % 2)),
                    f"Ring/{number}.png",
                    target,
                    answers,
                )
            )
    return found


def evaluation_of(parts):
    found = Evaluation(NAMES, METHODS, REPEATS)
    for part in parts:
        found.add(*part)
    return found


@pytest.fixture(scope="module")
def whole(asked):
    return evaluation_of(asked)


def figures(evaluation, folder):
    """All that a run keeps of an evaluation, as text."""
    evaluation.write_queries(folder / "q.csv")
    kept = evaluation.report(), evaluation.curve_report()
    return json.dumps(kept) + (folder / "q.csv").read_text() + evaluation.table()


def test_the_report_is_that_of_meters_fed_directly(asked, whole):
    report = whole.report()["methods"]
    for method in METHODS:
        meters, sizes = [SegmentationMeter(NAMES) for _ in range(REPEATS)], SizeMeter()
        for (repeat, _), key, _, target, answers in asked:
            meters[repeat].update(key, answers[method].mask, target)
            sizes.update(answers[method].mask, target)
        found = report[method]
        assert (
            found["miou"]["repeats"] == [m.miou() for m in meters]
            and len(set(found["miou"]["repeats"])) == REPEATS
        )
        assert found["fb_iou"]["repeats"] == [m.fb_iou() for m in meters]
        assert (
            found["miou"]["mean"]
            == pytest.approx(np.mean([m.miou() for m in meters]))
            == whole.miou(method)
        )
        assert found["miou"]["std"] == pytest.approx(np.std([m.miou() for m in meters]))
        for position, (key, name) in enumerate(NAMES.items()):
            assert found["classes"][name]["repeats"] == [m.class_iou()[key] for m in meters]
            assert found["classes"][name]["queries"] == sum(
                int(m.queries()[position]) for m in meters
            )
        assert found["sizes"] == sizes.report()
        assert sum(row["queries"] for row in found["sizes"]) == (NUMBERS - 1) * REPEATS, (
            "one has no defect"
        )
        means = [
            np.mean([a[method].threshold for (r, _), *_, a in asked if r == repeat])
            for repeat in range(REPEATS)
        ]
        assert found["threshold"]["repeats"] == pytest.approx(means)


def test_curves_are_those_of_the_scores(asked, whole):
    curves = whole.curve_report()["curves"]
    assert [curve["name"] for curve in curves] == METHODS
    for curve in curves:
        histogram = ScoreCounts()
        for *_, target, answers in asked:
            histogram.update(answers[curve["name"]].score, target)
        assert curve == {"name": curve["name"]} | histogram.report()
    assert curves[0] != curves[1] | {"name": "SOFS"}


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_parts_join_to_the_whole_in_any_order(asked, whole, tmp_path, order):
    """As of three processes, and with what one had found before."""
    parts = [evaluation_of(asked[rank::3]) for rank in range(3)]
    for number, part in enumerate(parts):
        part.failed_queries, part.faults = number, [f"fault {number}", "fault of all"]
    first, *rest = (parts[i] for i in order)
    first.join(rest)
    assert first.failed_queries == 3 and first.faults == [
        "fault 0",
        "fault 1",
        "fault 2",
        "fault of all",
    ]
    first.failed_queries, first.faults = 0, []
    assert first.results == whole.results
    assert figures(first, tmp_path) == figures(whole, tmp_path)
    empty = Evaluation(NAMES, METHODS, REPEATS)
    empty.join([first])
    assert figures(empty, tmp_path) == figures(whole, tmp_path)


def test_the_counts_of_the_queries_give_the_figures_again(whole, tmp_path):
    whole.write_queries(tmp_path / "queries.csv")
    with (tmp_path / "queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER and len(rows) == REPEATS * NUMBERS * len(METHODS)
    assert {row["image"] for row in rows if row["query"] == "3"} == {"Ring/3.png"}, (
        "the same in every repeat"
    )
    report = whole.report()["methods"]
    for method in METHODS:
        mious = []
        for repeat in range(REPEATS):
            ious = {}
            for name in sorted({row["class"] for row in rows}):
                own = [
                    r
                    for r in rows
                    if (r["method"], int(r["repeat"]), r["class"]) == (method, repeat, name)
                ]
                ious[name] = sum(int(r["intersection"]) for r in own) / sum(
                    int(r["union"]) for r in own
                )
                assert ious[name] == report[method]["classes"][name]["repeats"][repeat]
            mious.append(np.mean(list(ious.values())))
        assert report[method]["miou"]["repeats"] == pytest.approx(mious)


def test_rows_hold_the_counts_shares_and_thresholds(asked, whole):
    rows = {(r.repeat, r.number, r.method): r for r in whole.results}
    for (repeat, number), key, image, target, answers in asked:
        for method, answer in answers.items():
            row, truth = rows[repeat, number, method], target > 0
            assert (row.key, row.image, row.threshold) == (key, image, answer.threshold)
            assert row.share == pytest.approx(truth.mean())
            assert row.intersection == ((~answer.mask & ~truth).sum(), (answer.mask & truth).sum())
            assert row.union == ((~answer.mask | ~truth).sum(), (answer.mask | truth).sum())


def test_an_undefined_class_is_none_a_dash_and_no_part_of_the_mean(whole):
    for figures in whole.report()["methods"].values():
        assert figures["classes"]["Rod/dent"] == {
            "iou": None,
            "std": None,
            "repeats": [None] * REPEATS,
            "queries": 0,
        }
        known = [c["iou"] for c in figures["classes"].values() if c["iou"] is not None]
        assert len(known) == 2 and figures["miou"]["mean"] == pytest.approx(np.mean(known))
    (line,) = (line for line in whole.table().splitlines() if line.startswith("Rod/dent"))
    assert line.split() == ["Rod/dent", "0", "-", "-"]


def test_nothing_found_and_nothing_to_find_is_undefined_everywhere():
    nothing = np.zeros((4, 5), np.uint8)
    found = Evaluation({("Rod", 0): "Rod/dent"}, ["prior"])
    found.add(
        (0, 0),
        ("Rod", 0),
        "a.png",
        nothing,
        {"prior": Prediction(nothing, nothing.astype(np.float32), 1, 0.5)},
    )
    report = json.loads(json.dumps(found.report()))["methods"]["prior"]
    assert (
        report["miou"]["mean"] is None
        and report["fb_iou"]["mean"] is None
        and found.miou("prior") is None
    )
    assert report["classes"]["Rod/dent"] == {
        "iou": None,
        "std": None,
        "repeats": [None],
        "queries": 1,
    }
    assert found.curve_report()["curves"][0]["average_precision"] is None
    assert [line.split()[-1] for line in found.table().splitlines()[1:]] == ["-"] * 3


@pytest.mark.parametrize(
    ("intersection", "union", "iou"),
    [((9, 3), (10, 4), 0.75), ((0, 0), (8, 8), 0.0), ((8, 0), (8, 0), None)],
)
def test_iou_of_a_query_is_that_of_its_defect(intersection, union, iou):
    assert QueryResult(0, 0, ("Rod", 0), "a.png", "SOFS", 0.1, 0.5, intersection, union).iou == iou
