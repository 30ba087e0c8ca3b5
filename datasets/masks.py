"""Masks as run lengths (pycocotools' compressed form) and the shapes of COCO annotations that become them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from utils.errors import DataError

Rle = dict[str, Any]  # {"size": [h, w], "counts": str}: pycocotools' compressed run lengths, decoded so that it is JSON
_FARTHEST = 2**24  # pixels; cv2.fillPoly computes in 16.16 fixed point, so far larger coordinates wrap around


def rasterise_polygons(polygons: Iterable[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    """Union of COCO polygons [x0, y0, x1, y1, ...] (pixels) as a mask, uint8 (h, w) in {0, 1} of size (h, w).

    Coordinates are truncated towards 0 and polygons filled including their border, as the publishers' figures have it;
    two points make a line, one point a pixel, and parts outside the image are cut off.
    Raises DataError for a polygon that is not pairs of finite numbers.
    """
    mask = np.zeros(size, np.uint8)
    for polygon in polygons:
        points = _points(polygon)
        if len(points):
            cv2.fillPoly(mask, [points], 1)
    return mask


def rle_encode(mask: np.ndarray) -> Rle:
    """Run lengths of a mask (h, w) of any integer or boolean type; whatever is not 0 counts as marked."""
    rle = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return _as_json(rle)


def rle_decode(rle: Rle) -> np.ndarray:
    """Mask of run lengths, uint8 (h, w) in {0, 1}, contiguous. Raises DataError if the runs do not fill the size."""
    height, width = rle["size"]
    runs = _runs_of_string(rle["counts"])
    _check_runs(runs, (height, width))  # pycocotools would write past its memory
    columns = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def rle_area(rle: Rle) -> int:
    """Number of marked pixels."""
    return int(coco.area(rle))


def rle_merge(rles: Sequence[Rle]) -> Rle:
    """Union of one or more masks of the same size."""
    return _as_json(coco.merge(list(rles)))


def check_polygons(polygons: Iterable[Sequence[float]]) -> None:
    """Raises DataError for a polygon that rasterise_polygons cannot draw."""
    for polygon in polygons:
        _points(polygon)


def rle_of_annotation(segmentation: Rle, size: tuple[int, int]) -> Rle:
    """Compressed run lengths of a COCO annotation's RLE, whose counts are a list of runs or a compressed string.

    Raises DataError if its size differs from the image's size (h, w), or if the runs do not fill it exactly.
    """
    own_size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(own_size, list) or own_size != list(size):
        raise DataError(f"run lengths of size {own_size}, but the image is {list(size)} (h, w)")
    if isinstance(counts, list):
        _check_runs(counts, size)
        return _as_json(coco.frPyObjects({"size": list(size), "counts": counts}, *size))
    if isinstance(counts, str):
        _check_runs(_runs_of_string(counts), size)
        return {"size": list(size), "counts": counts}
    raise DataError(f"run lengths have counts of type {type(counts).__name__}, expected a list or a string")


def _check_runs(runs: list[int], size: tuple[int, int]) -> None:
    area = size[0] * size[1]
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != area:
        raise DataError(f"run lengths are broken: expected integers >= 0 that sum up to {size[0]} x {size[1]} pixels")


def _runs_of_string(counts: str) -> list[int]:
    """Runs of a compressed string: 5 bits a character, bit 5 set if more follow; from the fourth run on differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(f"run lengths hold the character {character!r}, which no compressed string has")
        value |= (bits & 31) << shift
        shift += 5
        if bits < 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError("run lengths end within a number; the string was cut off")
    return runs


def _points(polygon: Sequence[float]) -> np.ndarray:
    """Corners of one polygon, int32 (n, 1, 2)."""
    is_numbers = isinstance(polygon, list | tuple) and all(type(value) in (int, float) for value in polygon)
    if not is_numbers or len(polygon) % 2:
        raise DataError("a polygon must be a list of pairs of numbers [x0, y0, x1, y1, ...]")
    if any(not abs(value) < _FARTHEST for value in polygon):
        raise DataError(f"a polygon has a coordinate that is no number below {_FARTHEST}")
    return np.array([int(value) for value in polygon], np.int32).reshape(-1, 1, 2)


def _as_json(rle: Rle) -> Rle:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
