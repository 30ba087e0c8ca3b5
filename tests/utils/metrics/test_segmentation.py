from __future__ import annotations

import numpy as np
import pytest

from utils.metrics.segmentation import IGNORE, SegmentationMeter, intersection_union, mean_std

KEYS = [("Ring", 0), ("Ring", 1), ("Wood", 0)]


@pytest.fixture
def queries():
    """(key, prediction, target) of twelve images of several sizes, some pixels ignored."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(12):
        size = (10 + i, 25 - i)
        target = (rng.random(size) < 0.2).astype(np.uint8)
        target[rng.random(size) < 0.1] = IGNORE
        made.append((KEYS[i % 3], (rng.random(size) < 0.3).astype(np.uint8), target))
    return made


def confusion(queries):
    """Rows: target, columns: prediction; ignored pixels left out."""
    matrix = np.zeros((2, 2), np.int64)
    for _, prediction, target in queries:
        for p, t in zip(prediction.ravel().tolist(), target.ravel().tolist(), strict=True):
            if t != IGNORE:
                matrix[t, p] += 1
    return matrix


def iou(matrix, label):
    return matrix[label, label] / (
        matrix[label].sum() + matrix[:, label].sum() - matrix[label, label]
    )


def metered(queries, classes=KEYS):
    meter = SegmentationMeter(classes)
    for query in queries:
        meter.update(*query)
    return meter


def test_counts_are_those_of_a_confusion_matrix(queries):
    for query in queries:
        matrix = confusion([query])
        intersection, union = intersection_union(*query[1:])
        assert intersection.tolist() == matrix.diagonal().tolist()
        assert union.tolist() == [matrix.sum() - matrix[1, 1], matrix.sum() - matrix[0, 0]]


def test_figures_are_those_of_confusion_matrices(queries):
    meter = metered(queries)
    per_class = {key: iou(confusion([q for q in queries if q[0] == key]), 1) for key in KEYS}
    assert meter.class_iou() == pytest.approx(per_class)
    assert meter.miou() == pytest.approx(sum(per_class.values()) / 3)
    pooled = confusion(queries)
    assert meter.fb_iou() == pytest.approx((iou(pooled, 0) + iou(pooled, 1)) / 2)
    assert meter.queries().tolist() == [4, 4, 4]


def test_order_of_queries_does_not_matter(queries):
    assert metered(queries[::-1]).miou() == metered(queries).miou()
    assert metered(queries[::-1]).fb_iou() == metered(queries).fb_iou()


def test_counts_of_processes_add_up(queries):
    whole, first, second = metered(queries), metered(queries[:5]), metered(queries[5:])
    first.counts += second.counts
    assert first.class_iou() == whole.class_iou()


def test_ignored_pixels_count_nowhere(queries):
    _, prediction, target = queries[0]
    flipped = np.where(target == IGNORE, 1 - prediction, prediction)
    for a, b in zip(
        intersection_union(prediction, target), intersection_union(flipped, target), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    _, union = intersection_union(prediction, np.full_like(target, IGNORE))
    assert union.tolist() == [0, 0]


def test_a_class_pools_its_pixels_rather_than_its_images():
    """One small miss and one large hit: 90 of 100 pixels, not the mean of 0 and 1."""
    target = np.ones((1, 10), np.uint8)
    miss, hit = np.zeros((1, 10), np.uint8), np.ones((9, 10), np.uint8)
    meter = metered([(KEYS[0], miss, target), (KEYS[0], hit, np.ones((9, 10), np.uint8))])
    assert meter.class_iou()[KEYS[0]] == pytest.approx(0.9)


def test_class_without_a_union_is_undefined_and_left_out_of_the_mean():
    nothing, target = np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)
    target[0] = 1
    prediction = target.copy()
    prediction[1, :2] = 1
    meter = metered([(KEYS[0], nothing, nothing), (KEYS[1], prediction, target)])
    assert meter.class_iou() == {KEYS[0]: None, KEYS[1]: pytest.approx(4 / 6), KEYS[2]: None}
    assert meter.miou() == pytest.approx(4 / 6)


def test_class_that_is_missed_altogether_counts_as_zero():
    target = np.eye(4, dtype=np.uint8)
    meter = metered([(KEYS[0], target, target), (KEYS[1], np.zeros_like(target), target)])
    assert meter.miou() == 0.5
    assert meter.class_iou()[KEYS[1]] == 0


def test_nothing_seen_has_no_figures():
    meter = SegmentationMeter(KEYS)
    assert meter.miou() is None
    assert meter.fb_iou() is None
    meter.update(KEYS[0], np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))
    assert meter.fb_iou() is None, "no foreground anywhere"


def test_perfect_and_inverted_predictions():
    target = np.eye(6, dtype=np.uint8)
    assert metered([(KEYS[0], target, target)]).fb_iou() == 1
    assert metered([(KEYS[0], 1 - target, target)]).fb_iou() == 0


def test_fractional_votes_match_only_where_unanimous():
    prediction, target = (
        np.array([[0, 0.25, 0.5, 0.75, 1.0]]),
        np.array([[0, 0, 1, 1, 1]], np.uint8),
    )
    intersection, union = intersection_union(prediction, target)
    assert intersection.tolist() == [1, 1]
    assert union.tolist() == [3, 5]


def test_counts_are_exact_where_float32_is_not():
    """2 ** 24 + 1 pixels of one class: the next float32 is 2 away."""
    meter = SegmentationMeter(KEYS)
    big = np.ones((1 << 12, 1 << 12), np.uint8)
    meter.update(KEYS[0], big, big)
    meter.update(KEYS[0], np.ones((1, 1), np.uint8), np.ones((1, 1), np.uint8))
    assert meter.counts[0].tolist() == [0, (1 << 24) + 1, 0, (1 << 24) + 1, 2]


def test_unknown_class_is_an_error():
    with pytest.raises(ValueError, match="is not in list"):
        metered([(("Ring", 9), np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))])


def test_mean_and_deviation_over_repeats():
    assert mean_std([0.2, None, 0.4]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert mean_std([0.5]) == (0.5, 0.0)
    assert mean_std([None]) == (None, None)
