"""Masks as run lengths (pycocotools' compressed form), and the shapes of COCO that become them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from utils.errors import DataError

# {"size": [h, w], "counts": str}: compressed run lengths, as text so that they are JSON
Rle = dict[str, Any]
_BROKEN = "run lengths are broken: expected counts, integers >= 0 that sum up to {} x {} pixels"
_FARTHEST = 2**24  # pixels; cv2.fillPoly computes in 16.16 fixed point and wraps around


def polygon_corners(polygon: Sequence[float]) -> np.ndarray:
    """Corners (x, y) of a COCO polygon [x0, y0, x1, y1, ...], int32 (n, 2), truncated towards 0.

    Raises DataError for a polygon that is not pairs of finite numbers below 2^24.
    """
    is_list = isinstance(polygon, list | tuple) and {type(v) for v in polygon} <= {int, float}
    if not is_list or len(polygon) % 2:
        raise DataError("a polygon must be a list of pairs of numbers [x0, y0, x1, y1, ...]")
    if not all(abs(value) < _FARTHEST for value in polygon):
        raise DataError(f"a polygon has a coordinate that is no number below {_FARTHEST}")
    return np.array(polygon, np.float64).astype(np.int32).reshape(-1, 2)


def rle_of_polygons(polygons: Iterable[np.ndarray], size: tuple[int, int]) -> Rle:
    """Run lengths of the union of polygons, given by corners (n, 2), in an image of size (h, w).

    Polygons are filled including their border, as the published figures have it; two corners make
    a line, one a pixel. Only the box of one polygon at a time is held as pixels.
    """
    height, width = size
    rles = []
    for corners in polygons:
        left, top = np.maximum(corners.min(0, initial=_FARTHEST), 0)
        right, bottom = np.minimum(corners.max(0, initial=-_FARTHEST) + 1, (width, height))
        if right <= left or bottom <= top:
            continue
        part = np.zeros((bottom - top, right - left), np.uint8)
        cv2.fillPoly(part, [corners - np.array([left, top], np.int32)], 1)
        rles.append(rle_of_part(part, (left, top), size))
    return rle_merge(rles) if rles else _rle_of_runs([height * width], size)


def rle_of_part(part: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """Run lengths in an image of size (h, w) where only a part of it, (h', w') in {0, 1} and whole
    inside, has marks; its first pixel lies at `corner` (x, y)."""
    (left, top), (height, width) = corner, size
    framed = np.pad(part, ((1, 1), (0, 0)))
    # where runs of marked pixels begin and end, counted column after column
    rows, columns = np.nonzero(framed[1:] != framed[:-1])
    edges, times = np.unique((columns + left) * height + rows + top, return_counts=True)
    edges = edges[(times == 1) & (edges < height * width)]  # a run may go on in the next column
    return _rle_of_runs(np.diff(edges, prepend=0, append=height * width), size)


def rle_encode(mask: np.ndarray) -> Rle:
    """Run lengths of a mask (h, w) of integers or booleans; whatever is not 0 counts as marked."""
    return _as_json(coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8)))


def rle_decode(rle: Rle) -> np.ndarray:
    """Mask, uint8 (h, w) in {0, 1}, contiguous. Raises DataError if the runs do not fill it."""
    height, width = rle["size"]
    runs = _runs_of_string(rle["counts"], (height, width))
    columns = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


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
    """Compressed run lengths of a COCO annotation, whose counts are a list of runs or a string.

    Raises DataError if its size differs from the image's size (h, w), or the runs do not fill it.
    """
    stated, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(stated, list) or stated != list(size):
        raise DataError(f"run lengths of size {stated}, but the image is {list(size)} (h, w)")
    if isinstance(counts, str):
        _runs_of_string(counts, size)
        return {"size": list(size), "counts": counts}
    is_whole = isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)
    if not is_whole or sum(counts) != size[0] * size[1]:
        raise DataError(_BROKEN.format(*size))
    return _rle_of_runs(counts, size)


def _runs_of_string(counts: str, size: tuple[int, int]) -> np.ndarray:
    """Runs of a compressed string, int64 (n,); pycocotools decodes what does not fill past memory.

    5 bits a character from "0" on, the lowest first, bit 5 set if more follow; the last one's bit 4
    is the sign; from the fourth run on they are differences to the run before the last.
    """
    codes = np.frombuffer(counts.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes < 32)
    starts = np.append(0, ends[:-1] + 1)
    lengths = ends - starts + 1 if len(ends) else ends
    whole = len(ends) and ends[-1] == len(codes) - 1 and codes.min() >= 0 and codes.max() < 64
    if not whole or lengths.max() > 7:  # 35 bits; a broken string may hold a number of millions
        raise DataError("run lengths are no compressed string, or one that was cut off")
    shifts = 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    runs[1::2], runs[2::2] = runs[1::2].cumsum(), runs[2::2].cumsum()
    if runs.min() < 0 or runs.sum() != size[0] * size[1]:
        raise DataError(_BROKEN.format(*size))
    return runs


def _rle_of_runs(runs: Sequence[int], size: tuple[int, int]) -> Rle:
    return _as_json(coco.frPyObjects({"size": list(size), "counts": runs}, *size))


def _as_json(rle: Rle) -> Rle:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
