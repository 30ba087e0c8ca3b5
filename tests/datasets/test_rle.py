from __future__ import annotations

import json
import tracemalloc

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

from datasets.rle import (
    polygon_corners,
    rle_area,
    rle_decode,
    rle_encode,
    rle_of_annotation,
    rle_of_polygons,
)
from utils.errors import DataError

SIZE = (20, 30)


def random_masks(count):
    rng = np.random.default_rng(3)
    return [(rng.random(SIZE) < share).astype(np.uint8) for share in np.linspace(0, 1, count)]


def draw(polygons, size=SIZE):
    return rle_decode(rle_of_polygons([polygon_corners(polygon) for polygon in polygons], size))


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_polygons_past_the_border_are_cut_off():
    polygon = box(-5, -7, 8, 4)
    shifted = [value + 10 for value in polygon]
    larger = draw([shifted], (SIZE[0] + 20, SIZE[1] + 20))
    np.testing.assert_array_equal(draw([polygon]), larger[10:30, 10:40])
    assert not draw([box(100, 100, 120, 130)]).any()
    assert draw([box(-1e6, -1e6, 1e6, 1e6)]).all()


def test_polygons_under_three_points():
    assert np.argwhere(draw([[4, 5]])).tolist() == [[5, 4]]
    assert np.argwhere(draw([[4, 5, 6, 5]])).tolist() == [[5, 4], [5, 5], [5, 6]]
    assert not draw([[]]).any()
    assert not draw([]).any()


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "polygon", [[1, 2, 3], ["1", 2], [NAN, 1], [INFINITE, 1], [1e9, 0], 5, "12", None]
)
def test_polygons_that_are_none(polygon):
    with pytest.raises(DataError, match="polygon"):
        polygon_corners(polygon)


def random_polygon(rng, size):
    """Corners around some point in or near the image: none to a dozen, dense or far away."""
    centre = rng.uniform(-0.5, 1.5, 2) * size[::-1]
    reach = rng.choice([2, 8, 40, 1000])
    corners = centre + rng.uniform(-reach, reach, (rng.integers(0, 13), 2))
    return corners.round(rng.integers(0, 3)).ravel().tolist()


def test_random_polygons_are_those_filled_one_by_one_in_the_whole_image():
    rng = np.random.default_rng(0)
    for _ in range(500):
        size = tuple(int(side) for side in rng.integers(1, 60, 2))
        polygons = [random_polygon(rng, size) for _ in range(rng.integers(0, 6))]
        whole = np.zeros(size, np.uint8)
        for polygon in filter(None, polygons):
            cv2.fillPoly(whole, [np.trunc(polygon).astype(np.int32).reshape(-1, 1, 2)], 1)
        drawn = rle_of_polygons([polygon_corners(polygon) for polygon in polygons], size)
        assert drawn == rle_encode(whole), polygons


def test_small_polygons_of_a_large_image_take_no_memory_of_its_size():
    corners = [polygon_corners(box(x, 20000, x + 50, 20050)) for x in (0, 10000, 29950)]
    tracemalloc.start()
    try:
        rle = rle_of_polygons(corners, (30000, 30000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6 and rle_area(rle) == 51 * 51 * 2 + 51 * 50


def test_run_lengths_round_trip_through_json():
    for mask in random_masks(9):
        rle = json.loads(json.dumps(rle_encode(mask)))
        decoded = rle_decode(rle)
        np.testing.assert_array_equal(decoded, mask)
        assert (
            decoded.dtype == np.uint8 and decoded.flags.c_contiguous and rle["size"] == list(SIZE)
        )
        assert rle_area(rle) == mask.sum()


def uncompressed(mask):
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {
        "size": list(SIZE),
        "counts": [int(run) for run in np.diff(np.concatenate([[0], edges]))],
    }


def test_annotations_with_run_lengths_of_both_forms():
    for mask in random_masks(9):
        compressed = coco.encode(np.asfortranarray(mask))
        for counts in (compressed["counts"].decode(), uncompressed(mask)["counts"]):
            rle = rle_of_annotation({"size": list(SIZE), "counts": counts}, SIZE)
            np.testing.assert_array_equal(rle_decode(rle), mask)


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [30, 20], "counts": [600]},
        {"counts": [600]},
        {"size": [20, 30]},
        {"size": [20, 30], "counts": [599]},
        {"size": [20, 30], "counts": [700, -100]},
        {"size": [20, 30], "counts": [600.0]},
        {"size": [20, 30], "counts": ""},
        {"size": [20, 30], "counts": "04"},
        {"size": [20, 30], "counts": "PPPP"},
        {"size": [20, 30], "counts": "é"},
        {"size": [20, 30], "counts": 600},
    ],
)
def test_broken_run_lengths_of_annotations(rle):
    with pytest.raises(DataError, match="run lengths"):
        rle_of_annotation(rle, SIZE)


def test_broken_strings_do_not_reach_the_decoder():
    whole = rle_encode(random_masks(3)[1])["counts"]
    for counts in (whole[:-1], whole + "5", "0" * 50):
        with pytest.raises(DataError, match="run lengths"):
            rle_decode({"size": list(SIZE), "counts": counts})
