from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate, pad

from datasets.windows import Blender, fitted_shape, tile
from utils import large_arrays

lengths, windows = st.integers(1, 200), st.integers(1, 150)


def merged(maps, boxes, size, threshold=0.5):
    """Label and score of windows joined in order."""
    joined = Blender(*size, threshold)
    for answer, box in zip(maps, boxes, strict=True):
        joined.add(answer, box)
    return joined.finish()


def random_maps(boxes, side):
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(side, side, generator=draw) for _ in boxes]


@settings(deadline=None)
@given(lengths, lengths, windows, st.sampled_from([0.0, 0.3, 0.75]))
def test_windows_cover_the_image_row_by_row_and_none_is_needless(height, width, window, overlap):
    boxes = tile(height, width, window, overlap)
    covered = np.zeros((height, width), bool)
    for top, bottom, left, right in boxes:
        assert top >= 0 and left >= 0 and bottom <= height and right <= width
        assert (bottom - top, right - left) == (min(window, height), min(window, width))
        covered[top:bottom, left:right] = True
    assert covered.all() and boxes == sorted(set(boxes))
    lefts = sorted({left for *_, left, _ in boxes})
    assert {b - a for a, b in pairwise(lefts[:-1])} <= {max(1, round(window * (1 - overlap)))}
    if overlap == 0:
        assert len(boxes) == -(-height // window) * -(-width // window)


@pytest.mark.parametrize(("window", "net"), [(80, 140), (80, 40), (75, 70)])
def test_resized_windows_merge_back_without_a_shift(window, net):
    y, x = np.mgrid[:170, :220]
    score = torch.tensor(0.5 + 0.25 * np.sin(y / 23) + 0.25 * np.cos(x / 31)).float()
    boxes, maps = tile(170, 220, window), []
    for t, b, le, r in boxes:
        shape, part = fitted_shape(b - t, r - le, net), score[None, None, t:b, le:r]
        small = interpolate(part, shape, mode="bilinear", antialias=True)[0, 0]
        # NaN in the padding, which must not count
        maps.append(pad(small, (0, net - shape[1], 0, net - shape[0]), value=float("nan")))
    difference = merged(maps, boxes, (170, 220))[1] - score.numpy()
    assert np.abs(difference).max() < 0.02 and abs(difference.mean()) < 1e-3


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("size", [(32, 32), (100, 71), (20, 40)])
def test_a_pixel_is_the_mean_of_its_windows_weighted_by_distance_to_the_border(size, overlap):
    boxes = tile(*size, 32, overlap)
    maps = random_maps(boxes, 32)
    total, weight = np.zeros(size), np.zeros(size)
    for answer, (top, bottom, left, right) in zip(maps, boxes, strict=True):
        rows, columns = np.arange(bottom - top) + 0.5, np.arange(right - left) + 0.5
        near = np.outer(np.minimum(rows, rows[::-1]), np.minimum(columns, columns[::-1]))
        total[top:bottom, left:right] += answer.numpy()[: bottom - top, : right - left] * near
        weight[top:bottom, left:right] += near
    label, score = merged(maps, boxes, size, 0.45)
    np.testing.assert_allclose(score, total / weight, atol=1e-5)
    np.testing.assert_array_equal(label, score > 0.45)
    assert score.dtype == np.float32 and label.dtype == np.uint8


def test_only_rows_that_may_change_are_held_and_large_maps_lie_in_a_file(monkeypatch):
    boxes = tile(640, 64, 64, 0.25)
    maps, blender = random_maps(boxes, 64), Blender(640, 64, 0.5)
    for box, answer in zip(boxes, maps, strict=True):
        blender.add(answer, box)
        assert blender.top == box[0] and len(blender.sums) == 64
    monkeypatch.setattr(large_arrays, "IN_MEMORY", 7000)
    for one, other in zip(blender.finish(), merged(maps, boxes, (640, 64)), strict=True):
        assert isinstance(other, np.memmap) and not isinstance(one, np.memmap)
        np.testing.assert_array_equal(one, other)
