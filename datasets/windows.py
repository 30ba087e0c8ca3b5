"""Windows over an image and the way back. Boxes are (top, bottom, left, right), native pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from utils.large_arrays import allocate, let_go, pages, trim_heap

Box = tuple[int, int, int, int]


def starts(length: int, window: int, overlap: float = 0.0) -> list[int]:
    """Starts of windows along one axis, each sharing `overlap` of its side with the next; the last one is moved back
    inside."""
    if length <= window:
        return [0]
    step = max(1, round(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return [min(i * step, length - window) for i in range(count)]


def tile(height: int, width: int, window: int, overlap: float = 0.0) -> list[Box]:
    """Windows that cover an image, row by row; an image smaller than a window gives its whole side.

    Args:
        height, width: of the image, pixels.
        window: side of a window, pixels.
        overlap: share of its side that a window has in common with the next, 0 to less than 1.
    """
    return [
        (top, min(top + window, height), left, min(left + window, width))
        for top in starts(height, window, overlap)
        for left in starts(width, window, overlap)
    ]


def fitted_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Shape of a window once its longer side is resized to `size` pixels, before padding."""
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def to_native(maps: Tensor, box: Box, *, reference: bool = False) -> Tensor:
    """Bring a network map back to the pixels of its window: the inverse of resizing and padding.

    Args:
        maps: (S, S) float, the answer for the padded square.
        box: the window.
        reference: interpolate with aligned corners, as published; else with pixel centres, as images are resized.

    Returns:
        (bottom - top, right - left) float.
    """
    height, width = box[1] - box[0], box[3] - box[2]
    rows, columns = fitted_shape(height, width, maps.shape[-1])
    valid = maps[None, None, :rows, :columns].float()
    if (rows, columns) != (height, width):
        shrinks = rows > height and not reference
        valid = F.interpolate(
            valid, (height, width), mode="bilinear", align_corners=reference, antialias=shrinks
        )
    return valid[0, 0]


REFERENCE_THRESHOLD = 0.9
ROWS = 64  # written at once


class Blender:
    """Blends windows that come row by row; only the rows that later windows can still change are held open.

    Where windows overlap, a pixel is the mean of their probabilities, weighted by the distance to each window's border:
    a window fades out where another takes over, so that no seam shows.

    Args:
        height, width: of the image, pixels.
        threshold: probability above which a pixel is defect.

    Attributes:
        score: (height, width) float32 in [0, 1], complete after `finish`.
        label: (height, width) uint8 {0, 1}.
    """

    def __init__(self, height: int, width: int, threshold: float) -> None:
        self.threshold = threshold
        self.score = allocate((height, width), np.float32)
        self.label = allocate((height, width), np.uint8)
        self.top = 0
        self.total = np.zeros((0, width), np.float32)
        self.weight = np.zeros((0, width), np.float32)

    def add(self, window_map: Tensor, box: Box) -> None:
        """Add the (S, S) float answer for a window; no window may begin above one that was added before."""
        top, bottom, left, right = box
        self._close(top)
        self._reopen(bottom)
        weight = fading(bottom - top, right - left)
        region = np.s_[: bottom - top, left:right]
        self.total[region] += to_native(window_map, box).cpu().numpy() * weight
        self.weight[region] += weight

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Close all rows: label and score."""
        self._close(self.top + len(self.total))
        return self.label, self.score

    def _reopen(self, bottom: int) -> None:
        """Rows up to `bottom` are open."""
        count = bottom - self.top
        if count <= len(self.total):
            return
        for name in ("total", "weight"):
            known, rows = getattr(self, name), pages((count, self.score.shape[1]), np.float32)
            rows[: len(known)] = known
            setattr(self, name, rows)

    def _close(self, row: int) -> None:
        """Rows above `row` are final."""
        count = row - self.top
        if count <= 0:
            return
        blended = np.divide(self.total[:count], self.weight[:count], out=self.total[:count])
        for start in range(0, count, ROWS):
            rows = blended[start : start + ROWS]
            final = np.s_[self.top + start : self.top + start + len(rows)]
            self.score[final], self.label[final] = rows, rows > self.threshold
            let_go(self.score, self.label)
        if isinstance(self.score, np.memmap):
            trim_heap()
        self.top, self.total, self.weight = (
            row,
            *(self._rest(rows, count) for rows in (self.total, self.weight)),
        )

    @staticmethod
    def _rest(rows: np.ndarray, count: int) -> np.ndarray:
        return rows[count:] if count < len(rows) else rows[:0].copy()


@lru_cache(maxsize=8)
def fading(height: int, width: int) -> np.ndarray:
    """Weights (height, width) float32 of a window's pixels, in proportion to the distance to the nearest borders."""
    rows, columns = (
        np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / n for n in (height, width)
    )
    return np.outer(rows, columns).astype(np.float32)


def merge_probability(
    maps: Sequence[Tensor], boxes: Sequence[Box], height: int, width: int, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Blend windows that are all there, see `Blender`.

    Args:
        maps: per window an (S, S) float map.
        boxes: the windows, row by row; together they cover the image.
        height, width: of the image, pixels.
        threshold: probability above which a pixel is defect.

    Returns:
        label (height, width) uint8 {0, 1} and score (height, width) float32.
    """
    blender = Blender(height, width, threshold)
    for window_map, box in zip(maps, boxes, strict=True):
        blender.add(window_map, box)
    return blender.finish()


def merge_reference(
    maps: Sequence[Tensor], boxes: Sequence[Box], height: int, width: int, threshold: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """The published stitching: binary per window, resized with aligned corners, cut at 0.9, averaged.

    Returns:
        label (height, width) float32, a vote: fractional where overlapping windows disagree; and heat map likewise.
    """
    label = np.zeros((height, width), np.float32)
    heat, count = np.zeros_like(label), np.zeros_like(label)
    for window_map, box in zip(maps, boxes, strict=True):
        region = np.s_[box[0] : box[1], box[2] : box[3]]
        binary = (window_map > threshold).float()
        label[region] += (
            (to_native(binary, box, reference=True) > REFERENCE_THRESHOLD).cpu().numpy()
        )
        heat[region] += to_native(window_map, box, reference=True).cpu().numpy()
        count[region] += 1
    return label / count, heat / count
