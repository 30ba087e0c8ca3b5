from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from datasets.views import prepare_image
from datasets.windows import (
    fitted_shape,
    merge_probability,
    merge_reference,
    starts,
    tile,
    to_native,
)

RNG = random.Random(7)
SIZES = [(4000, 3000, 518), (1, 1, 518), (518, 518, 518), (519, 517, 518), (2748, 3840, 518)]
SIZES += [(RNG.randint(1, 700), RNG.randint(1, 700), RNG.randint(1, 300)) for _ in range(20)]


def smooth(height, width):
    """A smooth score map in [0, 1]."""
    y, x = np.mgrid[:height, :width]
    return torch.tensor((0.5 + 0.25 * np.sin(y / 23) + 0.25 * np.cos(x / 31)).astype(np.float32))


def padded(score, side):
    """What the network would answer for a window shown at native size: its part of the map, zero beyond."""
    return torch.nn.functional.pad(score, (0, side - score.shape[1], 0, side - score.shape[0]))


@pytest.mark.parametrize(("height", "width", "window"), SIZES)
def test_windows_cover_every_pixel_and_stay_inside(height, width, window):
    covered = np.zeros((height, width), bool)
    for top, bottom, left, right in tile(height, width, window):
        assert 0 <= top < bottom <= height
        assert 0 <= left < right <= width
        assert (bottom - top, right - left) == (min(window, height), min(window, width))
        covered[top:bottom, left:right] = True
    assert covered.all()


@pytest.mark.parametrize(("height", "width", "window"), SIZES)
def test_no_window_is_needless(height, width, window):
    boxes = tile(height, width, window)
    assert len(set(boxes)) == len(boxes) == -(-height // window) * -(-width // window)
    assert boxes == sorted(boxes), "row by row"


def test_starts_move_only_the_last_window():
    assert starts(10, 10) == [0]
    assert starts(7, 10) == [0]
    assert starts(20, 10) == [0, 10]
    assert starts(21, 10) == [0, 10, 11]


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_fitted_shape_has_the_long_side_and_the_ratio(height, width, size):
    rows, columns = fitted_shape(height, width, size)
    assert max(rows, columns) == size
    for side, fitted in ((height, rows), (width, columns)):
        exact = side * size / max(height, width)
        assert abs(fitted - exact) <= 0.5 or (fitted == 1 and exact < 0.5)


@pytest.mark.parametrize(
    ("height", "width"), [(40, 40), (41, 97), (97, 41), (120, 80), (20, 100), (40, 7)]
)
def test_windows_at_native_size_merge_back_exactly(height, width):
    """A window smaller than the net is enlarged, so one of its sides must be whole for exactness."""
    score, side = smooth(height, width), 40
    boxes = tile(height, width, side)
    maps = [padded(score[t:b, le:r], side) for t, b, le, r in boxes]
    _, merged = merge_probability(maps, boxes, height, width)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, score.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("window", "net"), [(80, 140), (80, 40), (75, 70)])
def test_resized_windows_merge_back_nearly(window, net):
    """Resized as images are and back, a smooth map returns: nothing is shifted."""
    height, width = 170, 220
    score = smooth(height, width)
    boxes, maps = tile(height, width, window), []
    for t, b, le, r in boxes:
        shape = fitted_shape(b - t, r - le, net)
        small = torch.nn.functional.interpolate(
            score[None, None, t:b, le:r],
            shape,
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        maps.append(padded(small[0, 0], net))
    _, merged = merge_probability(maps, boxes, height, width)
    np.testing.assert_allclose(merged, score.numpy(), rtol=0, atol=0.02)
    assert abs((merged - score.numpy()).mean()) < 1e-3


@pytest.mark.parametrize("net", [30, 100])
def test_image_and_answer_share_one_frame(net):
    """A bright block of the image lies, resized as input and back as answer, where it was."""
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 50:80] = 255
    prepared = prepare_image(image, net)
    rows, columns = fitted_shape(60, 90, net)
    red = prepared[0] * 0.229 + 0.485
    red[rows:], red[:, columns:] = 9.0, 9.0
    back = to_native(red, (0, 60, 0, 90)).numpy()
    y, x = np.nonzero(back > 0.5)
    assert (y.min(), y.max(), x.min(), x.max()) == (20, 39, 50, 79)


@pytest.mark.parametrize("merge", [merge_probability, merge_reference])
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_constant_maps_merge_to_the_constant(merge, value):
    boxes = tile(130, 201, 64)
    maps = [torch.full((50, 50), value) for _ in boxes]
    label, score = merge(maps, boxes, 130, 201, threshold=0.5)
    np.testing.assert_allclose(score, value, atol=1e-6)
    np.testing.assert_array_equal(label, float(value > 0.5))


def test_padding_never_enters_the_answer():
    box, garbage = (0, 20, 0, 50), torch.full((100, 100), float("nan"))
    rows, columns = fitted_shape(20, 50, 100)
    garbage[:rows, :columns] = 0.25
    for reference in (True, False):
        assert torch.allclose(to_native(garbage, box, reference=reference), torch.tensor(0.25))


def test_overlapping_windows_fade_into_each_other():
    """Weights 1.5 to 0.5 of four pixels' distance for the one, 0.5 to 1.5 for the other."""
    boxes = [(0, 4, 0, 4), (0, 4, 2, 6)]
    _, merged = merge_probability([torch.full((4, 4), 0.2), torch.full((4, 4), 0.8)], boxes, 4, 6)
    for row in merged:
        np.testing.assert_allclose(row, [0.2, 0.2, 0.35, 0.65, 0.8, 0.8], atol=1e-6)


def test_published_stitching_votes_where_windows_overlap():
    boxes = [(0, 4, 0, 4), (0, 4, 2, 6)]
    label, heat = merge_reference([torch.full((4, 4), 0.2), torch.full((4, 4), 0.8)], boxes, 4, 6)
    np.testing.assert_allclose(label[0], [0, 0, 0.5, 0.5, 1, 1])
    np.testing.assert_allclose(heat[0], [0.2, 0.2, 0.5, 0.5, 0.8, 0.8], atol=1e-6)


def test_threshold_cuts_the_blended_probability():
    boxes = tile(40, 60, 40)
    score = smooth(40, 60)
    maps = [score[t:b, le:r] for t, b, le, r in boxes]
    label, blended = merge_probability(maps, boxes, 40, 60, threshold=0.6)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, blended > 0.6)
    assert 0 < label.mean() < 1


def test_one_map_per_window():
    with pytest.raises(ValueError, match="zip"):
        merge_probability([torch.zeros(4, 4)], tile(4, 8, 4), 4, 8)
