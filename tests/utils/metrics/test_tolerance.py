from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_cdt

from utils.metrics.segmentation import IGNORE, intersection_union
from utils.metrics.tolerance import matched_pixels, tolerant_iou


def blobs(rng):
    """A mask of some rectangles, (40, 50) uint8, at times empty."""
    mask = np.zeros((40, 50), np.uint8)
    for _ in range(rng.integers(0, 5)):
        top, left = rng.integers(0, 40), rng.integers(0, 50)
        mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = 1
    return mask


@pytest.fixture
def queries():
    """(prediction, target), some pixels ignored, some masks empty."""
    rng, queries = np.random.default_rng(0), []
    for _ in range(40):
        prediction, target = blobs(rng), blobs(rng)
        target[rng.random(target.shape) < 0.02] = IGNORE
        queries.append((prediction, target))
    return queries


def within(mask, other, tolerance):
    """Pixels of a mask whose nearest pixel of the other is no farther, by chessboard distance."""
    if not other.any():
        return 0
    return int((mask & (distance_transform_cdt(~other, "chessboard") <= tolerance)).sum())


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_pixels_match_whose_distance_is_within_the_tolerance(queries, tolerance):
    for prediction, target in queries:
        predicted, defect = (prediction > 0) & (target != IGNORE), target == 1
        expected = within(predicted, defect, tolerance) + within(defect, predicted, tolerance)
        assert matched_pixels(prediction, target, tolerance) == expected


def test_without_tolerance_it_is_the_iou_and_with_more_it_never_falls(queries):
    pooled = np.zeros(2, np.int64)
    for prediction, target in queries:
        intersection, union = (counts[1] for counts in intersection_union(prediction, target))
        matched = [matched_pixels(prediction, target, t) for t in range(4)]
        areas = int(intersection + union)
        iou = intersection / union if union else None
        assert tolerant_iou(matched[0], areas) == (pytest.approx(iou) if union else None)
        assert matched == sorted(matched) and matched[-1] <= areas
        pooled += intersection, union
    total = sum(matched_pixels(*query, 0) for query in queries)
    assert tolerant_iou(total, int(pooled.sum())) == pytest.approx(pooled[0] / pooled[1])


@pytest.mark.parametrize(("width", "tolerance"), [(1, 1), (2, 2)])
def test_an_outline_too_wide_counts_as_right_and_a_miss_does_not(width, tolerance):
    """A line of 3 x 30 pixels that is marked `width` pixels wider on each side."""
    target = np.zeros((20, 40), np.uint8)
    target[8:11, 5:35] = 1
    wide = np.zeros_like(target)
    wide[8 - width : 11 + width, 5 - width : 35 + width] = 1
    areas = int(wide.sum()) + 90
    assert tolerant_iou(matched_pixels(wide, target, tolerance), areas) == 1
    assert tolerant_iou(matched_pixels(wide, target, tolerance - 1), areas) < 1
    assert tolerant_iou(matched_pixels(np.zeros_like(target), target, tolerance), 90) == 0
