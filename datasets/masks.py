"""Masks as run lengths (pycocotools' compressed form) and the shapes of COCO annotations that become them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from utils.errors import DataError

Rle = dict[
    str, Any
]  # {"size": [h, w], "counts": str}: pycocotools' compressed run lengths, decoded so that it is JSON
_WHOLE_STRING = re.compile(
    "[0-o]*[0-O]"
)  # 6 bits a character from "0" on; after the last one no more follow
_LONGEST_RUN = 60  # bits; a broken string may hold one number of millions of digits
_FARTHEST = (
    2**24
)  # pixels; cv2.fillPoly computes in 16.16 fixed point, so far larger coordinates wrap around


def polygon_corners(polygon: Sequence[float]) -> np.ndarray:
    """Corners (x, y) of a COCO polygon [x0, y0, x1, y1, ...], int32 (n, 2) in pixels, truncated towards 0.

    Raises DataError for a polygon that is not pairs of finite numbers.
    """
    is_numbers = isinstance(polygon, list | tuple) and {type(value) for value in polygon} <= {
        int,
        float,
    }
    if not is_numbers or len(polygon) % 2:
        raise DataError("a polygon must be a list of pairs of numbers [x0, y0, x1, y1, ...]")
    if not all(abs(value) < _FARTHEST for value in polygon):
        raise DataError(f"a polygon has a coordinate that is no number below {_FARTHEST}")
    return np.array(polygon, np.float64).astype(np.int32).reshape(-1, 2)


def rle_of_polygons(polygons: Iterable[np.ndarray], size: tuple[int, int]) -> Rle:
    """Run lengths of the union of polygons, given by their corners (n, 2), in an image of size (h, w).

    Polygons are filled including their border, as the publishers' figures have it; two corners make a line, one a
    pixel, and parts outside the image are cut off. Only the largest polygon's bounding box is ever held as pixels.
    """
    spans = _union([_spans(corners, size) for corners in polygons])
    area = size[0] * size[1]
    counts = np.diff(spans.ravel(), prepend=0, append=area)
    ends_marked = len(spans) and spans[-1, 1] == area
    return _as_json(
        coco.frPyObjects(
            {"size": list(size), "counts": counts[:-1] if ends_marked else counts}, *size
        )
    )


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


def is_rle(value: dict) -> bool:
    """Whether a mapping has the form of run lengths; that they fill their size is seen when they are decoded."""
    size, counts = value.get("size"), value.get("counts")
    sides = (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
    )
    return sides and isinstance(counts, str) and bool(_WHOLE_STRING.fullmatch(counts))


def rle_area(rle: Rle) -> int:
    """Number of marked pixels."""
    return int(coco.area(rle))


def rle_box(rle: Rle) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is marked, pixels; zeros for an empty mask."""
    left, top, width, height = coco.toBbox(rle).tolist()
    return left, top, left + width, top + height


def rle_merge(rles: Sequence[Rle]) -> Rle:
    """Union of one or more masks of the same size."""
    return _as_json(coco.merge(list(rles)))


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
    raise DataError(
        f"run lengths have counts of type {type(counts).__name__}, expected a list or a string"
    )


def _check_runs(runs: list[int], size: tuple[int, int]) -> None:
    area = size[0] * size[1]
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != area:
        raise DataError(
            f"run lengths are broken: expected integers >= 0 that sum up to {size[0]} x {size[1]} pixels"
        )


def _runs_of_string(counts: str) -> list[int]:
    """Runs of a compressed string: 5 bits a character, bit 5 set if more follow; from the fourth run on differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(
                f"run lengths hold the character {character!r}, which no compressed string has"
            )
        value |= (bits & 31) << shift
        shift += 5
        if shift > _LONGEST_RUN:
            raise DataError("run lengths hold a number that no image needs; the string is broken")
        if bits < 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError("run lengths end within a number; the string was cut off")
    return runs


def _spans(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[start, end) of what a filled polygon marks in each column, int64 (m, 2), ascending.

    Like run lengths, they count the pixels of an image of size (h, w) column after column.
    """
    height, width = size
    left, top = np.maximum(corners.min(axis=0, initial=_FARTHEST), 0)
    right, bottom = np.minimum(corners.max(axis=0, initial=-_FARTHEST) + 1, (width, height))
    if right <= left or bottom <= top:
        return np.empty((0, 2), np.int64)
    box = np.zeros(
        (bottom - top + 2, right - left), np.uint8
    )  # an unmarked row on either side bounds every span
    cv2.fillPoly(box[1:-1], [corners - np.array([left, top], np.int32)], 1)
    rows, columns = np.divmod(np.flatnonzero(box[1:] != box[:-1]), right - left)
    return np.sort((columns + left) * height + rows + top).reshape(-1, 2)


def _union(spans: Sequence[np.ndarray]) -> np.ndarray:
    """The same pixels as ascending spans (m, 2) that neither overlap nor touch."""
    joined = np.concatenate([np.empty((0, 2), np.int64), *spans])
    if not len(joined):
        return joined
    starts, ends = joined[np.argsort(joined[:, 0])].T
    ends = np.maximum.accumulate(ends)
    gaps = np.flatnonzero(starts[1:] > ends[:-1])
    return np.stack([starts[np.append(0, gaps + 1)], ends[np.append(gaps, -1)]], axis=1)


def _as_json(rle: Rle) -> Rle:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
