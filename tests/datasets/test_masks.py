from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from datasets.masks import (
    check_polygons,
    rasterise_polygons,
    rle_area,
    rle_decode,
    rle_encode,
    rle_merge,
    rle_of_annotation,
)
from utils.errors import DataError

SIZE = (20, 30)


def random_masks(count):
    rng = np.random.default_rng(3)
    return [(rng.random(SIZE) < share).astype(np.uint8) for share in np.linspace(0, 1, count)]


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def test_a_box_is_filled_with_its_border():
    expected = np.zeros(SIZE, np.uint8)
    expected[3:8, 2:13] = 1
    np.testing.assert_array_equal(rasterise_polygons([box(2, 3, 12, 7)], SIZE), expected)


def test_coordinates_are_truncated_towards_zero():
    drawn = rasterise_polygons([box(2.99, 3.01, 12.9, 7.5)], SIZE)
    np.testing.assert_array_equal(drawn, rasterise_polygons([box(2, 3, 12, 7)], SIZE))
    assert rasterise_polygons([[-0.9, -0.9]], SIZE)[0, 0] == 1


def test_overlap_is_a_union_and_a_crossing_polygon_alternates():
    two = rasterise_polygons([box(2, 2, 10, 10), box(6, 6, 15, 15)], SIZE)
    one_by_one = [rasterise_polygons([p], SIZE) for p in (box(2, 2, 10, 10), box(6, 6, 15, 15))]
    np.testing.assert_array_equal(two, one_by_one[0] | one_by_one[1])
    assert two[8, 8] == 1
    ring = box(2, 2, 16, 16) + box(5, 5, 13, 13) + [2, 2]
    assert rasterise_polygons([ring], SIZE)[9, 10] == 0


def test_polygons_past_the_border_are_cut_off():
    polygon = box(-5, -7, 8, 4)
    shifted = [value + 10 for value in polygon]
    larger = rasterise_polygons([shifted], (SIZE[0] + 20, SIZE[1] + 20))
    np.testing.assert_array_equal(rasterise_polygons([polygon], SIZE), larger[10:30, 10:40])
    assert not rasterise_polygons([box(100, 100, 120, 130)], SIZE).any()
    assert rasterise_polygons([box(-1e6, -1e6, 1e6, 1e6)], SIZE).all()


def test_polygons_under_three_points():
    assert np.argwhere(rasterise_polygons([[4, 5]], SIZE)).tolist() == [[5, 4]]
    assert np.argwhere(rasterise_polygons([[4, 5, 6, 5]], SIZE)).tolist() == [[5, 4], [5, 5], [5, 6]]
    assert not rasterise_polygons([[]], SIZE).any()
    assert not rasterise_polygons([], SIZE).any()


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize("polygon", [[1, 2, 3], ["1", 2], [NAN, 1], [INFINITE, 1], [1e9, 0], 5, "12", None])
def test_polygons_that_are_none(polygon):
    with pytest.raises(DataError, match="polygon"):
        rasterise_polygons([polygon], SIZE)
    with pytest.raises(DataError, match="polygon"):
        check_polygons([polygon])


def test_run_lengths_round_trip_through_json():
    for mask in random_masks(9):
        rle = json.loads(json.dumps(rle_encode(mask)))
        decoded = rle_decode(rle)
        np.testing.assert_array_equal(decoded, mask)
        assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous and rle["size"] == list(SIZE)
        assert rle_area(rle) == mask.sum()


def test_encoding_marks_whatever_is_not_zero():
    mask = np.array([[0, 255], [256, -1]], np.int32)
    assert rle_decode(rle_encode(mask)).tolist() == [[0, 1], [1, 1]]
    assert rle_decode(rle_encode(mask > 0)).tolist() == [[0, 1], [1, 0]]


def test_merging_is_a_union():
    masks = random_masks(5)[1:3]
    np.testing.assert_array_equal(rle_decode(rle_merge([rle_encode(m) for m in masks])), masks[0] | masks[1])


def uncompressed(mask):
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": list(SIZE), "counts": [int(run) for run in np.diff(np.concatenate([[0], edges]))]}


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
