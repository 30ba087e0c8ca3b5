from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from tools.evaluation import HEADER, Evaluation
from tools.predictor import Prediction
from utils.errors import DataError
from utils.metrics.score_curves import ScoreCounts
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


def files(evaluation, folder):
    """The content of what an evaluation writes, and its report."""
    evaluation.write(folder, "_x")
    texts = [(folder / name).read_text() for name in ("queries_x.csv", "curves_x.json")]
    return [*texts, json.dumps(evaluation.report()), evaluation.table()]


def test_the_report_is_that_of_meters_fed_directly(asked, whole, tmp_path):
    curves = json.loads(files(whole, tmp_path)[1])["curves"]
    for (method, report), curve in zip(whole.report()["methods"].items(), curves, strict=True):
        meters, sizes = [SegmentationMeter(NAMES) for _ in range(REPEATS)], SizeMeter()
        counts, thresholds = ScoreCounts(), [[] for _ in meters]
        for repeat, _, key, _, target, answers in asked:
            answer = answers[method]
            meters[repeat].update(key, answer.mask, target)
            sizes.update(answer.mask, target)
            counts.update(answer.score, target)
            thresholds[repeat].append(answer.threshold)
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
        assert report["threshold"]["repeats"] == pytest.approx(np.mean(thresholds, axis=1))
        assert curve == {"name": method} | counts.report()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_join_to_the_whole_in_any_order(asked, whole, tmp_path, order):
    parts = [evaluation_of(asked[rank::3]) for rank in range(3)]
    for number, part in enumerate(parts):
        part.failed_queries, part.faults = number, [f"fault {number}", "fault of all"]
    first, *rest = (parts[i] for i in order)
    first.join(rest)
    assert first.failed_queries == 3
    assert first.faults == ["fault 0", "fault 1", "fault 2", "fault of all"]
    first.failed_queries, first.faults = 0, []
    assert first.results == whole.results and files(first, tmp_path) == files(whole, tmp_path)


def test_rows_hold_the_counts_shares_and_thresholds_of_every_query(asked, whole, tmp_path):
    whole.write(tmp_path)
    with (tmp_path / "queries.csv").open() as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == HEADER and len(rows) == REPEATS * NUMBERS * len(METHODS)
    for repeat, number, key, image, target, answers in asked:
        for method, answer in answers.items():
            row, mask, truth = rows.pop(0), answer.mask, target > 0
            assert row[:5] == [str(repeat), str(number), NAMES[key], image, method]
            assert [float(value) for value in row[5:7]] == [truth.mean(), answer.threshold]
            pairs = [(~mask, ~truth), (mask, truth)]
            counts = [f(m, t).sum() for f in (np.logical_and, np.logical_or) for m, t in pairs]
            assert [int(value) for value in row[7:]] == counts


def test_what_is_undefined_is_none_a_dash_and_no_part_of_the_mean(whole):
    undefined = {"iou": None, "std": None, "repeats": [None] * REPEATS, "queries": 0}
    for report in whole.report()["methods"].values():
        assert report["classes"]["Rod/dent"] == undefined
        ious = [c["iou"] for c in report["classes"].values() if c["iou"] is not None]
        assert len(ious) == 2 and report["miou"]["mean"] == pytest.approx(np.mean(ious))
    (line,) = (line for line in whole.table().splitlines() if line.startswith("Rod/dent"))
    assert line.split() == ["Rod/dent", "0", "-", "-"]


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(DataError, match="two classes have the name 'a/b'"):
        Evaluation({("a", 0): "a/b", ("a", 1): "a/b"}, METHODS)
