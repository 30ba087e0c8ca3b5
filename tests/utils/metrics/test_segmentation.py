"""What the golden tests of the measures leave open."""

from __future__ import annotations

import numpy as np
import pytest

from utils.metrics.segmentation import SegmentationMeter, mean_std, product_mean

KEYS = [("Ring", 0), ("Ring", 1), ("Wood", 0)]
ONES, ZEROS = np.ones((4, 5), np.uint8), np.zeros((4, 5), np.uint8)


def metered(queries):
    meter = SegmentationMeter(KEYS)
    for query in queries:
        meter.update(*query)
    return meter


def test_undefined_classes_are_left_out_and_missed_ones_count_as_zero():
    meter = metered([(KEYS[0], ZEROS, ZEROS)])
    assert meter.miou() is None and meter.fb_iou() is None, "no foreground anywhere"
    for query in ((KEYS[1], ONES, ONES), (KEYS[2], ZEROS, ONES)):
        meter.update(*query)
    assert meter.class_iou() == {KEYS[0]: None, KEYS[1]: 1, KEYS[2]: 0}
    assert meter.miou() == 0.5


def test_counts_are_exact_where_float32_is_not():
    """2 ** 24 + 1 pixels of one class: the next float32 is 2 away."""
    big, one = np.ones((1 << 12, 1 << 12), np.uint8), np.ones((1, 1), np.uint8)
    meter = metered([(KEYS[0], big, big), (KEYS[0], one, one)])
    assert meter.counts[0].tolist() == [0, (1 << 24) + 1, 0, (1 << 24) + 1, 2]


def test_a_product_of_many_classes_counts_as_much_as_one_of_few():
    """What is undefined is no part of a mean."""
    values = {("a", 0): 0.1, ("a", 1): 0.3, ("a", 2): 0.5, ("b", 0): 0.7, ("b", 1): None}
    assert product_mean(values | {("c", 0): None}) == pytest.approx((0.3 + 0.7) / 2)
    assert product_mean({("c", 0): None}) is None


def test_mean_and_deviation_over_repeats():
    assert mean_std([0.2, None, 0.4]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert mean_std([None]) == (None, None)
