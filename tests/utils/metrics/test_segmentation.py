from __future__ import annotations

import numpy as np
import pytest

from utils.metrics.segmentation import IGNORE, SegmentationMeter, intersection_union, mean_std

KEYS = [("Ring", 0), ("Ring", 1), ("Wood", 0)]
ONES, ZEROS = np.ones((4, 5), np.uint8), np.zeros((4, 5), np.uint8)


def iou(queries, label):
    """Pixel by pixel, ignored ones left out."""
    pairs = [(p[t != IGNORE] == label, t[t != IGNORE] == label) for _, p, t in queries]
    predicted, true = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return (predicted & true).sum() / (predicted | true).sum()


def metered(queries):
    meter = SegmentationMeter(KEYS)
    for query in queries:
        meter.update(*query)
    return meter


def test_figures_pool_pixels_and_meters_add_up():
    """A class pools the pixels of its queries, FB-IoU those of all classes."""
    rng, queries = np.random.default_rng(0), []
    for i in range(12):
        size = (10 + i, 25 - i)
        target = (rng.random(size) < 0.2).astype(np.uint8)
        target[rng.random(size) < 0.1] = IGNORE
        queries.append((KEYS[i % 3], (rng.random(size) < 0.3).astype(np.uint8), target))
    meter, rest = metered(queries[5:]), metered(queries[:5])
    meter.counts += rest.counts
    per_class = {key: iou([q for q in queries if q[0] == key], 1) for key in KEYS}
    assert meter.class_iou() == pytest.approx(per_class)
    assert meter.miou() == pytest.approx(sum(per_class.values()) / 3)
    assert meter.fb_iou() == pytest.approx((iou(queries, 0) + iou(queries, 1)) / 2)
    assert meter.queries().tolist() == [4, 4, 4]


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


def test_mean_and_deviation_over_repeats():
    assert mean_std([0.2, None, 0.4]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert mean_std([None]) == (None, None)
