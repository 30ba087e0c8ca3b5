from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve

from utils.metrics.curves import LEVELS, POINTS, ScoreHistogram


def images(seed=0, count=5):
    """(score, target) of images of several sizes; scores are multiples of 1 / LEVELS, 0 and 1 among them."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        size = (30 + number, 50 - number)
        target = (rng.random(size) < 0.1).astype(np.uint8)
        steps = rng.integers(0, LEVELS + 1, size)
        steps[0, :4] = (0, 0, LEVELS, LEVELS)
        made.append(
            (
                (np.minimum(np.where(target, steps + 400, steps), LEVELS) / LEVELS).astype(
                    np.float32
                ),
                target,
            )
        )
    return made


def histogram_of(pairs):
    histogram = ScoreHistogram()
    for score, target in pairs:
        histogram.update(score, target)
    return histogram


def pixels(pairs):
    return np.concatenate([s.ravel() for s, _ in pairs]), np.concatenate(
        [t.ravel() for _, t in pairs]
    ) != 0


def test_a_step_counts_as_itself():
    """Also where float32 cannot hold it exactly, and whether it was computed in float32 or in float64."""
    steps = np.arange(LEVELS + 1)
    for score in (
        (steps / LEVELS).astype(np.float32),
        np.float32(steps) / np.float32(LEVELS),
        steps / LEVELS,
    ):
        counts = histogram_of([(score, np.ones_like(steps, np.uint8))]).counts
        assert (counts[1] == 1).all() and not counts[0].any()


def test_curve_and_average_precision_are_those_of_scikit_learn():
    pairs = images()
    scores, truth = pixels(pairs)
    report = histogram_of(pairs).report()
    assert report["average_precision"] == pytest.approx(
        average_precision_score(truth, scores), rel=1e-12
    )
    precision, recall, thresholds = precision_recall_curve(truth, scores)
    assert (
        len(report["threshold"]) == POINTS
        and report["threshold"][0] == 0
        and report["threshold"][-1] == 1
    )
    for number, threshold in enumerate(report["threshold"]):
        place = np.searchsorted(thresholds, np.float32(threshold))
        assert report["precision"][number] == pytest.approx(precision[place])
        assert report["recall"][number] == pytest.approx(recall[place])


def test_iou_is_that_of_cutting_the_scores():
    pairs = images()
    scores, truth = pixels(pairs)
    iou, report = histogram_of(pairs).iou(), histogram_of(pairs).report()
    assert iou.shape == (LEVELS + 1,)
    for step in range(LEVELS + 1):
        found = scores >= np.float32(step / LEVELS)
        assert iou[step] == pytest.approx((found & truth).sum() / (found | truth).sum())
    assert report["iou"] == [iou[round(t * LEVELS)] for t in report["threshold"]]


def test_any_score_counts_at_the_step_below():
    rng = np.random.default_rng(0)
    score, target = (
        rng.random((200, 300)).astype(np.float32),
        (rng.random((200, 300)) < 0.2).astype(np.uint8),
    )
    counts = histogram_of([(score, target)]).counts
    edges = np.append(np.arange(LEVELS + 1), LEVELS + 1) / LEVELS
    for label, row in enumerate(counts):
        assert (
            np.abs(row - np.histogram(score[target == label], edges)[0]).sum()
            <= 2 * score.size * 2e-3
        )
    assert counts.sum() == score.size


def test_counts_add_up_in_any_order():
    pairs = images()
    first, second = histogram_of(pairs[3:]), histogram_of(pairs[:3])
    first.counts += second.counts
    assert (
        np.array_equal(first.counts, histogram_of(pairs).counts) and first.counts.dtype == np.int64
    )
    assert first.report() == histogram_of(pairs[::-1]).report()


def test_a_marked_pixel_is_any_that_is_not_0():
    ((score, target), *_) = images()
    assert (
        histogram_of([(score, 255 * target)]).report() == histogram_of([(score, target)]).report()
    )


def test_without_a_defect_pixel_there_is_no_curve():
    expected = {
        "threshold": [],
        "precision": [],
        "recall": [],
        "iou": [],
        "average_precision": None,
    }
    assert ScoreHistogram().report() == expected
    normal = histogram_of([(score, np.zeros_like(target)) for score, target in images()])
    assert normal.report() == expected and not normal.iou().any()


def test_precision_is_none_where_nothing_is_found():
    score = np.full((4, 4), 0.25, np.float32)
    report = histogram_of([(score, np.eye(4, dtype=np.uint8))]).report()
    last = report["threshold"].index(0.25)
    assert report["precision"] == [0.25] * (last + 1) + [None] * (POINTS - last - 1)
    assert report["recall"] == [1.0] * (last + 1) + [0.0] * (POINTS - last - 1)
    assert report["average_precision"] == pytest.approx(0.25)
