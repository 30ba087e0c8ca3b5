from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve

from tests.utils.metrics.plain_measures import plain_aupro, plain_levels
from utils.metrics import score_curves
from utils.metrics.score_curves import FINE, POINTS, STEPS, Curve, ScoreCounts

NOTHING = {"threshold": [], "precision": [], "recall": [], "iou": []}


def make_maps(steps=STEPS, highest=1.0):
    """(score, target) of images of several sizes, the last one without a defect.

    Every score is that of a whole step; 0 and `highest` are among them.
    """
    rng, made = np.random.default_rng(0), []
    for i in range(5):
        shape = (30 + i, 50 - i)
        target = np.zeros(shape, int)
        for _ in range(4 if i < 4 else 0):
            top, left = rng.integers(0, 25), rng.integers(0, 40)
            target[top : top + rng.integers(1, 6), left : left + rng.integers(1, 9)] = 1
        step = rng.integers(0, steps + 1, shape) + target * (2 * steps // 5)
        step[0, :4] = (0, 0, steps, steps)
        score = (np.minimum(step, steps) * highest / steps).astype(np.float32)
        made.append((score, target.astype(np.uint8)))
    return made


def counts_of(maps, *args, **options):
    counts = ScoreCounts(*args, **options)
    for score, target in maps:
        counts.update(score, target)
    return counts


def pooled(maps):
    scores, targets = zip(*maps, strict=True)
    return tuple(np.concatenate([a.ravel() for a in part]) for part in (scores, targets))


def plain_iou(scores, labels, threshold):
    cut = scores >= threshold
    return (cut & (labels > 0)).sum() / (cut | (labels > 0)).sum()


@pytest.mark.parametrize("steps", [40, FINE])
def test_measures_of_pixels_are_those_of_scikit_learn(steps):
    maps = make_maps(steps, 2.0)
    curve, (scores, labels) = counts_of(maps, steps, 2.0).curve(), pooled(maps)
    assert curve.measures() == pytest.approx(plain_levels(labels, scores), abs=1e-12)
    np.testing.assert_allclose(curve.thresholds, np.unique(scores)[::-1], atol=1e-7)


@given(st.lists(st.tuples(st.floats(0, 2, width=16), st.booleans()), min_size=1, max_size=30))
def test_measures_of_images_are_those_of_scikit_learn(pairs):
    scores, labels = zip(*pairs, strict=True)
    curve = Curve.of(scores, labels)
    assert curve.aupro() is None, "images have no regions"
    if len(set(labels)) == 1:
        assert set(curve.measures().values()) == {None}
        return
    assert curve.measures() == pytest.approx(plain_levels(labels, scores), abs=1e-9)


def test_aupro_is_that_of_a_loop_over_thresholds_and_regions():
    maps = make_maps(200, 2.0)
    curve = counts_of(maps, 200, 2.0, with_regions=True).curve()
    for limit in (0.05, 0.3, 1.0):
        expected = plain_aupro([(score, target > 0) for score, target in maps], limit)
        assert curve.aupro(limit) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("label", [None, 0, 1])
def test_measures_need_both_labels_and_curves_a_defect(label):
    counts = ScoreCounts(with_regions=True)
    if label is not None:
        counts.update(np.full((3, 4), 0.5, np.float32), np.full((3, 4), label, np.uint8))
    curve = counts.curve()
    assert {*curve.measures().values(), curve.aupro()} == {None}
    if not label:
        assert curve.points() == NOTHING and not counts.iou().any()
        assert counts.report() == NOTHING | {"average_precision": None}


# --- Counting ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 4, width=32), min_size=1, max_size=50))
def test_any_score_counts_at_the_step_below_or_at_the_end(values):
    score = np.array([values], np.float32)
    step = np.repeat(np.arange(STEPS + 1), counts_of([(score, score * 0)]).counts[0])
    exact = np.sort(score[0].astype(float).clip(0, 1)) * STEPS
    assert ((step <= exact + 2e-3) & (exact < step + 1)).all()


def test_parts_add_up_in_any_order_and_blocks(monkeypatch):
    maps = make_maps()
    whole, first, second = (counts_of(m, with_regions=True) for m in (maps, maps[3:], maps[:3]))
    first.add(second)
    monkeypatch.setattr(score_curves, "BLOCK", 70)
    blocks = counts_of([(s.T, 255 * t.T) for s, t in maps], with_regions=True)
    for other in (first, blocks):
        np.testing.assert_array_equal(other.counts, whole.counts)
        np.testing.assert_allclose(other.overlap, whole.overlap, rtol=1e-12)
        assert other.regions == whole.regions and other.counts.dtype == np.int64


def test_what_cannot_be_counted_is_refused_and_leaves_nothing():
    counts, score = ScoreCounts(with_regions=True), np.full((4, 5), 0.5, np.float32)
    for wrong in (score * np.nan, score.T):
        with pytest.raises(ValueError, match="NaN or another shape"):
            counts.update(wrong, np.ones((4, 5), np.uint8))
    assert not counts.counts.any() and not counts.regions


def test_memory_is_bounded_for_a_large_image():
    """Of 4 million pixels 16 MiB of region labels, a mask, and a block of 1 million at a time."""
    score, target = np.zeros((2048, 2048), np.float32), np.zeros((2048, 2048), bool)
    target[100:130, 200:300] = True
    counts = ScoreCounts(with_regions=True)
    tracemalloc.start()
    counts.update(score, target)
    peak = tracemalloc.get_traced_memory()[1] >> 20
    tracemalloc.stop()
    assert peak < 60, f"{peak} MiB"


# --- Curves to draw ------------------------------------------------------------------------------


def test_report_is_that_of_scikit_learn_and_iou_that_of_cutting_the_scores():
    maps = make_maps()
    (scores, labels), counts = pooled(maps), counts_of(maps)
    report = counts.report()
    ap = average_precision_score(labels, scores)
    assert report["average_precision"] == pytest.approx(ap, rel=1e-12)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    assert report["threshold"] == [k / 100 for k in range(POINTS)]
    at = np.searchsorted(thresholds, np.float32(report["threshold"]))
    assert report["precision"] == pytest.approx(precision[at])
    assert report["recall"] == pytest.approx(recall[at])
    expected = [plain_iou(scores, labels, np.float32(k / STEPS)) for k in range(STEPS + 1)]
    assert counts.iou() == pytest.approx(np.array(expected))
    assert report["iou"] == counts.iou()[:: STEPS // 100].tolist()
    low = counts_of([(np.full((4, 4), 0.25, np.float32), np.eye(4, dtype=np.uint8))]).report()
    assert low["precision"] == [0.25] * 26 + [None] * 75, "None: nothing scores so high"


def test_points_lie_on_the_curve_at_even_recalls_and_the_best_iou():
    maps = make_maps(256, 2.0)
    curve, (scores, labels) = counts_of(maps, 256, 2.0).curve(), pooled(maps)
    points = curve.points(21)
    assert 5 < len(points["threshold"]) <= 22
    for threshold, *point in zip(*(points[k] for k in NOTHING), strict=True):
        cut = scores >= threshold
        hits, iou = labels[cut].sum(), plain_iou(scores, labels, threshold)
        assert point == pytest.approx([hits / cut.sum(), hits / labels.sum(), iou])
    tie = np.diff(curve.true_positives, prepend=0).max() / labels.sum()
    iou = [plain_iou(scores, labels, threshold) for threshold in curve.thresholds]
    assert points["recall"][-1] == 1 and max(points["iou"]) == pytest.approx(max(iou))
    assert np.diff(points["recall"], prepend=0).max() <= 1 / 20 + tie
