from __future__ import annotations

import csv
import json
from itertools import permutations

import numpy as np
import pytest
from utils.metrics.curves import ScoreHistogram

from tools.evaluation import HEADER, Evaluation, QueryResult
from tools.predictor import Prediction
from utils.errors import DataError
from utils.metrics.segmentation import SegmentationMeter
from utils.metrics.sizes import SizeMeter

NAMES = {("Ring", 0): "Ring/rust", ("Ring", 3): "Ring/a,b", ("Rod", 0): "Rod/dent"}
METHODS = ["SOFS", "prior"]
REPEATS, NUMBERS = 3, 8


@pytest.fixture(scope="module")
def asked():
    """Arguments of `Evaluation.add` for each query of three repeats; none is of Rod/dent."""
    rng, queries = np.random.default_rng(0), []
    targets = [(rng.random((20 + n, 30)) < 0.02 * n).astype(np.uint8) for n in range(NUMBERS)]
    for repeat in range(REPEATS):
        for number, target in enumerate(targets):
            answers = {}
            for place, method in enumerate(METHODS):
                score = np.clip(0.4 * target + 0.6 * rng.random(target.shape), 0, 1)
                threshold = 0.5 + 0.1 * place + 0.01 * repeat + 0.001 * number
                label = (score > threshold).astype(np.uint8)
                answers[method] = Prediction(label, score.astype(np.float32), 1, threshold)
            key, image = ("Ring", 3 * (number % 2)), f"Ring/{number}.png"
            queries.append((repeat, number, key, image, target, answers))
    return queries


def evaluation_of(queries):
    evaluation = Evaluation(NAMES, METHODS, REPEATS)
    for query in queries:
        evaluation.add(*query)
    return evaluation


@pytest.fixture(scope="module")
def whole(asked):
    return evaluation_of(asked)


def figures(evaluation, folder):
    """All that a run keeps of an evaluation, as text."""
    evaluation.write_queries(folder / "q.csv")
    kept = json.dumps([evaluation.report(), evaluation.curve_report()])
    return kept + (folder / "q.csv").read_text() + evaluation.table()


def test_the_report_is_that_of_meters_fed_directly(asked, whole):
    for method, report in whole.report()["methods"].items():
        meters, sizes = [SegmentationMeter(NAMES) for _ in range(REPEATS)], SizeMeter()
        for repeat, _, key, _, target, answers in asked:
            meters[repeat].update(key, answers[method].mask, target)
            sizes.update(answers[method].mask, target)
        mious = [meter.miou() for meter in meters]
        assert report["miou"]["repeats"] == mious and len(set(mious)) == REPEATS
        assert report["miou"]["mean"] == pytest.approx(np.mean(mious)) == whole.miou(method)
        assert report["miou"]["std"] == pytest.approx(np.std(mious))
        assert report["fb_iou"]["repeats"] == [meter.fb_iou() for meter in meters]
        for position, (key, name) in enumerate(NAMES.items()):
            entry = report["classes"][name]
            assert entry["repeats"] == [meter.class_iou()[key] for meter in meters]
            assert entry["queries"] == sum(int(meter.queries()[position]) for meter in meters)
        assert report["sizes"] == sizes.report()
        means = [
            np.mean([answers[method].threshold for r, *_, answers in asked if r == repeat])
            for repeat in range(REPEATS)
        ]
        assert report["threshold"]["repeats"] == pytest.approx(means)


def test_curves_are_those_of_the_scores(asked, whole):
    curves = whole.curve_report()["curves"]
    assert [curve["name"] for curve in curves] == METHODS
    for curve in curves:
        histogram = ScoreHistogram()
        for *_, target, answers in asked:
            histogram.update(answers[curve["name"]].score, target)
        assert curve == {"name": curve["name"]} | histogram.report()


@pytest.mark.parametrize("order", [*permutations(range(3))])
def test_parts_join_to_the_whole_in_any_order(asked, whole, tmp_path, order):
    parts = [evaluation_of(asked[rank::3]) for rank in range(3)]
    for number, part in enumerate(parts):
        part.failed_queries, part.faults = number, [f"fault {number}", "fault of all"]
    first, *rest = (parts[i] for i in order)
    first.join(rest)
    assert first.failed_queries == 3
    assert first.faults == ["fault 0", "fault 1", "fault 2", "fault of all"]
    first.failed_queries, first.faults = 0, []
    assert first.results == whole.results
    assert figures(first, tmp_path) == figures(whole, tmp_path)


def test_the_counts_of_the_queries_give_the_figures_again(whole, tmp_path):
    whole.write_queries(tmp_path / "queries.csv")
    with (tmp_path / "queries.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER and len(rows) == REPEATS * NUMBERS * len(METHODS)
    for method, report in whole.report()["methods"].items():
        for name, entry in report["classes"].items():
            for repeat in range(REPEATS):
                about = {"method": method, "class": name, "repeat": str(repeat)}
                counts = [
                    (int(row["intersection"]), int(row["union"]))
                    for row in rows
                    if about.items() <= row.items()
                ]
                pooled = np.sum(counts, axis=0)
                iou = pooled[0] / pooled[1] if counts else None
                assert iou == entry["repeats"][repeat]


def test_rows_hold_the_counts_shares_and_thresholds(asked, whole):
    rows = {(r.repeat, r.number, r.method): r for r in whole.results}
    for repeat, number, key, image, target, answers in asked:
        for method, answer in answers.items():
            row, truth = rows[repeat, number, method], target > 0
            assert (row.key, row.image, row.threshold) == (key, image, answer.threshold)
            assert row.share == pytest.approx(truth.mean())
            assert row.intersection == ((~answer.mask & ~truth).sum(), (answer.mask & truth).sum())
            assert row.union == ((~answer.mask | ~truth).sum(), (answer.mask | truth).sum())


def test_an_undefined_class_is_none_a_dash_and_no_part_of_the_mean(whole):
    undefined = {"iou": None, "std": None, "repeats": [None] * REPEATS, "queries": 0}
    for report in whole.report()["methods"].values():
        assert report["classes"]["Rod/dent"] == undefined
        ious = [c["iou"] for c in report["classes"].values() if c["iou"] is not None]
        assert len(ious) == 2 and report["miou"]["mean"] == pytest.approx(np.mean(ious))
    (line,) = (line for line in whole.table().splitlines() if line.startswith("Rod/dent"))
    assert line.split() == ["Rod/dent", "0", "-", "-"]


def test_without_any_defect_all_is_undefined():
    nothing = np.zeros((4, 5), np.uint8)
    evaluation = Evaluation({("Rod", 0): "Rod/dent"}, ["prior"])
    answers = {"prior": Prediction(nothing, nothing.astype(np.float32), 1, 0.5)}
    assert evaluation.add(0, 0, ("Rod", 0), "a.png", nothing, answers) == {"prior": None}
    report = json.loads(json.dumps(evaluation.report()))["methods"]["prior"]
    assert report["miou"]["mean"] is report["fb_iou"]["mean"] is evaluation.miou("prior") is None
    assert report["classes"]["Rod/dent"]["queries"] == 1
    assert evaluation.curve_report()["curves"][0]["average_precision"] is None
    assert [line.split()[-1] for line in evaluation.table().splitlines()[1:]] == ["-"] * 3


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(DataError, match="two classes have the name 'a/b'"):
        Evaluation({("a", 0): "a/b", ("a", 1): "a/b"}, METHODS)


@pytest.mark.parametrize(
    ("intersection", "union", "iou"),
    [((9, 3), (10, 4), 0.75), ((0, 0), (8, 8), 0.0), ((8, 0), (8, 0), None)],
)
def test_iou_of_a_query_is_that_of_its_defect(intersection, union, iou):
    assert QueryResult(0, 0, ("Rod", 0), "a.png", "SOFS", 0.1, 0.5, intersection, union).iou == iou
