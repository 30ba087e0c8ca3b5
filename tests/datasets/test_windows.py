from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate, pad

from datasets.views import prepare_image
from datasets.windows import Blender, PublishedStitching, fitted_shape, tile, to_native
from utils import large_arrays

lengths, windows = st.integers(1, 200), st.integers(1, 150)
overlaps = st.sampled_from([0.0, 0.3, 0.75])


def merged(maps, boxes, size, threshold=0.5, merger=Blender):
    """Label and score of windows joined in order."""
    joined = merger(*size, threshold)
    for answer, box in zip(maps, boxes, strict=True):
        joined.add(answer, box)
    return joined.finish()


def random_maps(boxes, side):
    draw = torch.Generator().manual_seed(0)
    return [torch.rand(side, side, generator=draw) for _ in boxes]


@settings(deadline=None)
@given(lengths, lengths, windows, overlaps)
def test_windows_cover_the_image_row_by_row_and_none_is_needless(height, width, window, overlap):
    boxes = tile(height, width, window, overlap)
    covered = np.zeros((height, width), bool)
    for top, bottom, left, right in boxes:
        assert top >= 0 and left >= 0 and bottom <= height and right <= width
        assert (bottom - top, right - left) == (min(window, height), min(window, width))
        covered[top:bottom, left:right] = True
    assert covered.all() and boxes == sorted(set(boxes))
    if overlap == 0:
        assert len(boxes) == -(-height // window) * -(-width // window)


@given(lengths, windows, overlaps)
def test_windows_share_the_overlap_and_the_last_one_ends_with_the_image(length, window, overlap):
    lefts = [left for *_, left, _ in tile(1, length, window, overlap)]
    assert {b - a for a, b in pairwise(lefts[:-1])} <= {max(1, round(window * (1 - overlap)))}
    assert lefts[-1] == max(0, length - window)


@given(lengths, lengths, windows)
def test_a_fitted_shape_has_the_long_side_and_the_ratio(height, width, size):
    shape = fitted_shape(height, width, size)
    assert max(shape) == size
    for side, fitted in zip((height, width), shape, strict=True):
        exact = side * size / max(height, width)
        assert abs(fitted - exact) <= 0.5 or (fitted == 1 and exact < 0.5)


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


@pytest.mark.parametrize("net", [30, 100])
def test_an_image_and_its_answer_share_one_frame(net):
    """A bright block, resized as input and back as answer, lies where it was."""
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 50:80] = 255
    rows, columns = fitted_shape(60, 90, net)
    red = prepare_image(image, net)[0] * 0.229 + 0.485
    red[rows:], red[:, columns:] = 9.0, 9.0
    y, x = np.nonzero(to_native(red, (0, 60, 0, 90)).numpy() > 0.5)
    assert (y.min(), y.max(), x.min(), x.max()) == (20, 39, 50, 79)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("size", [(32, 32), (100, 71), (33, 200), (20, 40)])
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


@pytest.mark.parametrize("merger", [Blender, PublishedStitching])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_maps_merge_to_the_constant(merger, value):
    boxes = tile(130, 201, 64, 0.2)
    maps = [torch.full((50, 50), value) for _ in boxes]
    label, score = merged(maps, boxes, (130, 201), merger=merger)
    np.testing.assert_allclose(score, value, atol=1e-6)
    np.testing.assert_array_equal(label, float(value > 0.5))


def test_where_windows_disagree_blending_fades_and_the_published_stitching_votes():
    boxes = [(0, 4, 0, 4), (0, 4, 2, 6)]
    maps = [torch.full((4, 4), 0.2), torch.full((4, 4), 0.8)]
    _, blended = merged(maps, boxes, (4, 6))
    np.testing.assert_allclose(blended, [[0.2, 0.2, 0.35, 0.65, 0.8, 0.8]] * 4, atol=1e-6)
    votes, score = merged(maps, boxes, (4, 6), merger=PublishedStitching)
    np.testing.assert_allclose(votes, [[0, 0, 0.5, 0.5, 1, 1]] * 4)
    np.testing.assert_allclose(score, [[0.2, 0.2, 0.5, 0.5, 0.8, 0.8]] * 4, atol=1e-6)


def test_the_published_stitching_cuts_a_resized_binary_map_at_nine_tenths():
    """With aligned corners the pixels between 0 and 1 are at shares of 1/3 and 2/3."""
    answer = torch.tensor([[0.4, 0.6], [0.4, 0.6]])
    votes, score = merged([answer], [(0, 4, 0, 4)], (4, 4), merger=PublishedStitching)
    np.testing.assert_array_equal(votes, [[0, 0, 0, 1]] * 4)
    np.testing.assert_allclose(score[0], [0.4, 0.4 + 0.2 / 3, 0.4 + 0.4 / 3, 0.6], atol=1e-6)
