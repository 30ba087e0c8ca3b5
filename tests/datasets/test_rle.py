from __future__ import annotations

import json
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
NAN = float("nan")


def draw(polygons, size=SIZE):
    return rle_of_polygons([polygon_corners(polygon) for polygon in polygons], size)


@pytest.mark.parametrize("polygon", [[1, 2, 3], ["1", 2], [NAN, 1], [1e9, 0], 5, "12", None])
def test_polygons_that_are_none(polygon):
    with pytest.raises(DataError, match="polygon"):
        polygon_corners(polygon)


def test_random_polygons_are_those_filled_one_by_one_in_the_whole_image():
    """Around points in or near the image, of none to a dozen corners, dense or far away."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, polygons = tuple(int(side) for side in rng.integers(1, 60, 2)), []
        for _ in range(rng.integers(0, 6)):
            centre, reach = rng.uniform(-0.5, 1.5, 2) * size[::-1], rng.choice([2, 8, 40, 1000])
            corners = centre + rng.uniform(-reach, reach, (rng.integers(0, 13), 2))
            polygons.append(corners.round(rng.integers(0, 3)).ravel().tolist())
        whole = np.zeros(size, np.uint8)
        for polygon in filter(None, polygons):
            cv2.fillPoly(whole, [np.trunc(polygon).astype(np.int32).reshape(-1, 1, 2)], 1)
        assert draw(polygons, size) == rle_encode(whole), polygons


def test_small_polygons_of_a_large_image_take_no_memory_of_its_size():
    squares = [[x, 20000, x + 50, 20000, x + 50, 20050, x, 20050] for x in (0, 10000, 29950)]
    tracemalloc.start()
    try:
        rle = draw(squares, (30000, 30000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e6 and rle_area(rle) == 51 * 51 * 2 + 51 * 50


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_run_lengths_of_every_form_give_the_mask_back(seed, share):
    mask = (np.random.default_rng(seed).random(SIZE) < share).astype(np.uint8)
    rle = json.loads(json.dumps(rle_encode(mask)))
    edges = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=2))
    assert rle["size"] == list(SIZE) and rle_area(rle) == mask.sum()
    for counts in (rle["counts"], np.diff(edges, prepend=0).tolist()):
        read = rle_of_annotation({"size": list(SIZE), "counts": counts}, SIZE)
        decoded = rle_decode(read)
        np.testing.assert_array_equal(decoded, mask)
        assert read == rle and decoded.dtype == np.uint8 and decoded.flags.c_contiguous


WHOLE = rle_encode(np.random.default_rng(3).random(SIZE) < 0.5)["counts"]
BROKEN = [{"size": [30, 20], "counts": [600]}, {"counts": [600]}, {"size": [20, 30]}] + [
    {"size": [20, 30], "counts": counts}
    for counts in ([599], [700, -100], [600.0], "", "04", "PPPP", "é", 600, WHOLE[:-1], WHOLE + "5")
]


@pytest.mark.parametrize("rle", BROKEN)
def test_broken_run_lengths_are_refused_before_the_decoder(rle):
    with pytest.raises(DataError, match="run lengths"):
        rle_of_annotation(rle, SIZE)
