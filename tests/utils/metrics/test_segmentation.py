from __future__ import annotations

import numpy as np
import pytest

from utils.metrics.segmentation import IGNORE, SegmentationMeter, intersection_union, mean_std

KEYS = [("Ring", 0), ("Ring", 1), ("Wood", 0)]
ONES, ZEROS = np.ones((4, 5), np.uint8), np.zeros((4, 5), np.uint8)


@pytest.fixture
def queries():
    """(key, prediction, target) of twelve images of several sizes, some pixels ignored."""
    rng, made = np.random.default_rng(0), []
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
    hits = matrix[label, label]
    return hits / (matrix[label].sum() + matrix[:, label].sum() - hits)


def metered(queries):
    meter = SegmentationMeter(KEYS)
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
    """A class pools the pixels of its queries, and FB-IoU those of all classes."""
    meter = metered(queries)
    per_class = {key: iou(confusion([q for q in queries if q[0] == key]), 1) for key in KEYS}
    assert meter.class_iou() == pytest.approx(per_class)
    assert meter.miou() == pytest.approx(sum(per_class.values()) / 3)
    pooled = confusion(queries)
    assert meter.fb_iou() == pytest.approx((iou(pooled, 0) + iou(pooled, 1)) / 2)
    assert meter.queries().tolist() == [4, 4, 4]


def test_counts_of_processes_add_up_in_any_order(queries):
    whole, first, second = metered(queries), metered(queries[5:]), metered(queries[:5])
    first.counts += second.counts
    assert (first.class_iou(), first.fb_iou()) == (whole.class_iou(), whole.fb_iou())


def test_ignored_pixels_count_nowhere(queries):
    _, prediction, target = queries[0]
    flipped = np.where(target == IGNORE, 1 - prediction, prediction)
    expected = intersection_union(prediction, target)
    np.testing.assert_array_equal(intersection_union(flipped, target), expected)
    _, union = intersection_union(prediction, np.full_like(target, IGNORE))
    assert union.tolist() == [0, 0]


def test_undefined_classes_are_left_out_and_missed_ones_count_as_zero():
    meter = metered([(KEYS[0], ZEROS, ZEROS)])
    assert meter.miou() is None and meter.fb_iou() is None, "no foreground anywhere"
    for query in ((KEYS[1], ONES, ONES), (KEYS[2], ZEROS, ONES)):
        meter.update(*query)
    assert meter.class_iou() == {KEYS[0]: None, KEYS[1]: 1, KEYS[2]: 0}
    assert meter.miou() == 0.5


def test_fractional_votes_match_only_where_unanimous():
    votes, target = np.array([[0, 0.25, 0.5, 0.75, 1.0]]), np.array([[0, 0, 1, 1, 1]], np.uint8)
    intersection, union = intersection_union(votes, target)
    assert intersection.tolist() == [1, 1] and union.tolist() == [3, 5]


def test_counts_are_exact_where_float32_is_not():
    """2 ** 24 + 1 pixels of one class: the next float32 is 2 away."""
    big, one = np.ones((1 << 12, 1 << 12), np.uint8), np.ones((1, 1), np.uint8)
    meter = metered([(KEYS[0], big, big), (KEYS[0], one, one)])
    assert meter.counts[0].tolist() == [0, (1 << 24) + 1, 0, (1 << 24) + 1, 2]


def test_unknown_class_is_an_error():
    with pytest.raises(ValueError, match="is not in list"):
        metered([(("Ring", 9), ONES, ONES)])


def test_mean_and_deviation_over_repeats():
    assert mean_std([0.2, None, 0.4]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert mean_std([0.5]) == (0.5, 0.0)
    assert mean_std([None]) == (None, None)
