from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tools.evaluation import HEADER, NORMAL_HEADER, Evaluation
from tools.predictor import Prediction
from utils.errors import DataError
from utils.metrics import NORMAL, TOLERANT
from utils.metrics.score_curves import ScoreCounts
from utils.metrics.segmentation import SegmentationMeter, product_mean
from utils.metrics.sizes import SizeMeter
from utils.metrics.tolerance import matched_pixels

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


@pytest.fixture(scope="module")
def normal():
    """Arguments of `Evaluation.add_normal`: of four images, one of which is no query of repeat 1,
    for both classes of Ring."""
    rng, queries = np.random.default_rng(1), []
    for repeat, number, category in np.ndindex(REPEATS, 4, 2):
        if (repeat, number) != (1, 2):
            answers = {}
            for method in METHODS:
                score = rng.random((9, 9)).astype(np.float32) * rng.random(dtype=np.float32)
                answers[method] = Prediction((score > 0.5).astype(np.uint8), score, 1, 0.5)
            key = ("Ring", 3 * category)
            queries.append((repeat, number, key, f"Ring/good{number}.png", answers))
    return queries


def evaluation_of(queries, normal=()):
    evaluation = Evaluation(NAMES, METHODS, REPEATS)
    for query in queries:
        evaluation.add(*query)
    for query in normal:
        evaluation.add_normal(*query)
    return evaluation


@pytest.fixture(scope="module")
def whole(asked, normal):
    return evaluation_of(asked, normal)


def files(evaluation, folder):
    """The content of what an evaluation writes, and its report."""
    evaluation.write(folder, "_x")
    names = ("queries_x.csv", "curves_x.json", "normal_x.csv")
    texts = [(folder / name).read_text() for name in names]
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
        by_product = [product_mean(meter.class_iou()) for meter in meters]
        assert report["product_miou"]["repeats"] == by_product
        for position, (key, name) in enumerate(NAMES.items()):
            entry = report["classes"][name]
            assert entry["repeats"] == [meter.class_iou()[key] for meter in meters]
            assert entry["queries"] == sum(int(meter.queries()[position]) for meter in meters)
        assert report["sizes"] == sizes.report()
        assert report["threshold"]["repeats"] == pytest.approx(np.mean(thresholds, axis=1))
        assert curve == {"name": method} | counts.report()


def test_iou_with_a_tolerance_pools_the_pixels_of_a_class_in_each_repeat(asked, whole):
    for method, report in whole.report()["methods"].items():
        for tolerance, measure in TOLERANT.items():
            sums = np.zeros((REPEATS, 2, 2))  # matched, predicted and true pixels, by class
            for repeat, number, _, _, target, answers in asked:
                mask = answers[method].mask
                matched = matched_pixels(mask, target, tolerance)
                sums[repeat, number % 2] += matched, mask.sum() + target.sum()
            mean = sums[..., 0] / 2
            ious = mean / (mean + sums[..., 1] - sums[..., 0])
            for name, expected in zip(("Ring/rust", "Ring/a,b"), ious.T, strict=True):
                entry = report["classes"][name]
                assert entry[measure.name]["repeats"] == pytest.approx(expected)
                assert entry[measure.name]["mean"] > entry["iou"]
            assert report[measure.name]["repeats"] == pytest.approx(ious.mean(1))


def test_normal_images_are_measured_against_the_queries_of_each_class(asked, normal, whole):
    for method, report in whole.report()["methods"].items():
        measured = report["normal"]["classes"]
        assert list(measured) == ["Ring/rust", "Ring/a,b"]
        rows = []
        for repeat, category in np.ndindex(REPEATS, 2):
            key = ("Ring", 3 * category)
            clean = [q[4][method] for q in normal if (q[0], q[2]) == (repeat, key)]
            defective = [q[5][method].score.max() for q in asked if (q[0], q[2]) == (repeat, key)]
            shares = [answer.mask.mean() for answer in clean]
            scores = [answer.score.max() for answer in clean]
            assert len(clean) == (3 if repeat == 1 else 4)
            labels = [0] * len(scores) + [1] * len(defective)
            auroc = roc_auc_score(labels, [*scores, *defective])
            rows.append((np.equal(shares, 0).mean(), np.mean(shares), auroc))
            for measure, value in zip(NORMAL, rows[-1], strict=True):
                found = measured[NAMES[key]][measure.name]["repeats"][repeat]
                assert found == pytest.approx(value)
        assert [entry["images"] for entry in measured.values()] == [4, 4]
        means = np.array(rows).reshape(REPEATS, 2, 3).mean(1)
        for measure, values in zip(NORMAL, means.T, strict=True):
            assert report["normal"][measure.name]["repeats"] == pytest.approx(values)
            assert f"{100 * values.mean():.2f}" in whole.table()
    assert "normal" not in evaluation_of(asked).report()["methods"]["SOFS"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_parts_join_to_the_whole_in_any_order(asked, normal, whole, tmp_path, order):
    """Parts of one round worked side by side."""
    parts = [evaluation_of(asked[rank::3], normal[rank::3]) for rank in range(3)]
    for number, part in enumerate(parts):
        part.failed_queries, part.faults = number, [f"fault {number}", "fault of all"]
        part.seconds = float(number)
    first, *rest = (parts[i] for i in order)
    first.join(rest)
    assert first.failed_queries == 3
    assert first.seconds == order[0] + max(order[1:])
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
            assert [int(value) for value in row[7:11]] == counts
            matched = [matched_pixels(mask, target, t) for t in (1, 2)]
            assert [int(value) for value in row[11:13]] == matched
            assert float(row[13]) == answer.score.max()


def test_rows_of_normal_images_hold_what_was_marked(normal, whole, tmp_path):
    whole.write(tmp_path)
    with (tmp_path / "normal.csv").open() as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == NORMAL_HEADER and len(rows) == len(normal) * len(METHODS)
    for repeat, number, key, image, answers in normal:
        for method, answer in answers.items():
            row = rows.pop(0)
            assert row[:5] == [str(repeat), str(number), NAMES[key], image, method]
            assert [int(value) for value in row[5:7]] == [answer.mask.sum(), 81]
            assert float(row[7]) == answer.score.max()


def test_the_seconds_of_an_image_are_those_of_all_repeats_by_their_queries(asked):
    timed, images = evaluation_of(asked), REPEATS * NUMBERS
    timed.seconds = 6.0
    assert timed.timing() == {
        "images": images, "seconds": 6.0, "rough_seconds_per_image": 6.0 / images
    }  # fmt: skip


def test_what_is_undefined_is_none_a_dash_and_no_part_of_the_mean(whole):
    spread = {"std": None, "repeats": [None] * REPEATS}
    undefined = {"iou": None, "queries": 0} | spread
    undefined |= {measure.name: {"mean": None} | spread for measure in TOLERANT.values()}
    for report in whole.report()["methods"].values():
        assert report["classes"]["Rod/dent"] == undefined
        ious = [c["iou"] for c in report["classes"].values() if c["iou"] is not None]
        assert len(ious) == 2 and report["miou"]["mean"] == pytest.approx(np.mean(ious))
    (line,) = (line for line in whole.table().splitlines() if line.startswith("Rod/dent"))
    assert line.split() == ["Rod/dent", "0", "-", "-"]


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(DataError, match="two classes have the name 'a/b'"):
        Evaluation({("a", 0): "a/b", ("a", 1): "a/b"}, METHODS)
