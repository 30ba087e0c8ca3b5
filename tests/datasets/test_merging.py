from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.windows import Blender, fading, merge_probability, tile
from utils import large_arrays as memory


def answers(boxes, side, seed=0):
    """A random map in [0, 1] per window."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(side, side, generator=draw) for _ in boxes]


def blended_at_once(maps, boxes, height, width):
    """Weighted mean over windows in float64, with all rows open."""
    total, weight = np.zeros((height, width)), np.zeros((height, width))
    for window_map, (top, bottom, left, right) in zip(maps, boxes, strict=True):
        rows, columns = np.arange(bottom - top) + 0.5, np.arange(right - left) + 0.5
        near = np.outer(np.minimum(rows, rows[::-1]), np.minimum(columns, columns[::-1]))
        total[top:bottom, left:right] += window_map.numpy() * near
        weight[top:bottom, left:right] += near
    return total / weight


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (100, 71), (33, 200)])
def test_row_by_row_is_as_all_at_once(overlap, height, width):
    boxes = tile(height, width, 32, overlap)
    maps = answers(boxes, 32)
    label, score = merge_probability(maps, boxes, height, width, threshold=0.45)
    np.testing.assert_allclose(score, blended_at_once(maps, boxes, height, width), atol=1e-5)
    np.testing.assert_array_equal(label, score > 0.45)


def test_only_the_rows_of_the_last_windows_are_open():
    boxes = tile(640, 64, 64, 0.25)
    blender = Blender(640, 64, 0.5)
    for box, answer in zip(boxes, answers(boxes, 64), strict=True):
        blender.add(answer, box)
        assert blender.top == box[0] and len(blender.total) == len(blender.weight) == 64


def test_overlapping_answers_that_agree_stay_as_they_are():
    boxes = tile(90, 90, 40, 0.5)
    _, score = merge_probability([torch.full((40, 40), 0.3)] * len(boxes), boxes, 90, 90)
    np.testing.assert_allclose(score, 0.3, atol=1e-6)


def test_a_window_fades_to_its_borders():
    weight = fading(6, 4)
    assert weight.shape == (6, 4) and weight.min() > 0
    assert np.array_equal(weight, weight[::-1]) and np.array_equal(weight, weight[:, ::-1])
    assert (np.diff(weight[:3, 0]) > 0).all() and (np.diff(weight[0, :2]) > 0).all()


def test_large_maps_lie_in_a_file_and_are_the_same(monkeypatch):
    boxes = tile(100, 71, 32)
    maps = answers(boxes, 32)
    small = merge_probability(maps, boxes, 100, 71)
    monkeypatch.setattr(memory, "IN_MEMORY", 7000)
    large = merge_probability(maps, boxes, 100, 71)
    for one, other in zip(small, large, strict=True):
        assert isinstance(other, np.memmap) and not isinstance(one, np.memmap)
        np.testing.assert_array_equal(one, other)
