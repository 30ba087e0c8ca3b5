"""Windows over an image and the way back. Boxes are (top, bottom, left, right), native pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from utils.large_arrays import allocate, let_go, pages, trim_heap

Box = tuple[int, int, int, int]
ROWS = 64  # written at once
PUBLISHED_CUT = 0.9


def tile(height: int, width: int, window: int, overlap: float = 0.0) -> list[Box]:
    """Windows of a side in pixels that cover an image row by row, the last ones moved back inside;
    where the image is smaller, or the side is 0, its whole. overlap: share of its side in common
    with the next, < 1.
    """
    if not window:
        return [(0, height, 0, width)]
    step = max(1, round(window * (1 - overlap)))
    tops, lefts = (
        [min(start, length - window) for start in range(0, length - window + step, step)]
        if length > window
        else [0]
        for length in (height, width)
    )
    sides = min(window, height), min(window, width)
    return [(top, top + sides[0], left, left + sides[1]) for top in tops for left in lefts]


def fitted_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Shape of a window once its longer side is resized to `size` pixels, before padding."""
    scale = size / max(height, width)
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def to_native(maps: Tensor, box: Box, *, aligned: bool = False) -> Tensor:
    """Bring an answer (S, S) float back to the pixels of its window, (bottom - top, right - left):
    the inverse of resizing and padding. aligned: interpolate with aligned corners, as published.
    """
    shape = box[1] - box[0], box[3] - box[2]
    rows, columns = fitted_shape(*shape, maps.shape[-1])
    valid = maps[None, None, :rows, :columns].float()
    if (rows, columns) != shape:
        shrinks = rows > shape[0] and not aligned
        options = {"mode": "bilinear", "align_corners": aligned, "antialias": shrinks}
        valid = F.interpolate(valid, shape, **options)
    return valid[0, 0]


class Blender:
    """Blends windows that come row by row; it holds sums of the rows that may still change.

    Where windows overlap, a pixel is the mean of their probabilities, weighted by the distance to
    each window's border, so that no seam shows; it is defect above the threshold.
    """

    def __init__(self, height: int, width: int, threshold: float) -> None:
        self.threshold = threshold
        self.score = allocate((height, width), np.float32)
        self.label = allocate((height, width), np.uint8)
        self.top, self.sums = 0, np.zeros((0, 2, width), np.float32)

    def add(self, window_map: Tensor, box: Box) -> None:
        """Add the (S, S) float answer for a window; windows come from top to bottom."""
        top, bottom, left, right = box
        self._close(top)
        if bottom - top > len(self.sums):
            rows = pages((bottom - top, *self.sums.shape[1:]), np.float32)
            rows[: len(self.sums)] = self.sums
            self.sums = rows
        weight = fading(bottom - top, right - left)
        total, weights = self.sums[: bottom - top, :, left:right].swapaxes(0, 1)
        total += to_native(window_map, box).cpu().numpy() * weight
        weights += weight

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Label (height, width) uint8 {0, 1} and score (height, width) float32 in [0, 1]."""
        self._close(self.top + len(self.sums))
        return self.label, self.score

    def _close(self, row: int) -> None:
        """Rows above `row` are final."""
        count = row - self.top
        if count <= 0:
            return
        for start in range(0, count, ROWS):
            total, weights = self.sums[start : min(start + ROWS, count)].swapaxes(0, 1)
            final = np.s_[self.top + start : self.top + start + len(total)]
            self.score[final] = np.divide(total, weights, out=total)
            self.label[final] = total > self.threshold
            let_go(self.score, self.label)
        if isinstance(self.score, np.memmap):
            trim_heap()
        self.top, rest = row, self.sums[count:]
        # a copy of nothing, so that the rows above are given back
        self.sums = rest if len(rest) else rest.copy()


def averaged(mergers: Sequence[Blender | PublishedStitching]) -> tuple[np.ndarray, np.ndarray]:
    """Label and score, see `Blender.finish`, of an image seen at one scale or several, by the mean
    of their scores and the first one's threshold."""
    label, score = mergers[0].finish()
    if len(mergers) == 1:
        return label, score
    others = [merger.finish()[1] for merger in mergers[1:]]
    for start in range(0, len(score), ROWS):  # of large arrays in files
        rows = np.s_[start : start + ROWS]
        score[rows] = np.mean([score[rows], *(other[rows] for other in others)], axis=0)
        label[rows] = score[rows] > mergers[0].threshold
        let_go(score, label, *others)
    return label, score


@lru_cache(maxsize=8)
def fading(height: int, width: int) -> np.ndarray:
    """Weights (height, width) float32 of a window's pixels, by distance to its borders."""
    steps = (np.arange(n) + 0.5 for n in (height, width))
    rows, columns = (np.minimum(step, step[::-1]) / len(step) for step in steps)
    return np.outer(rows, columns).astype(np.float32)


class PublishedStitching:
    """The published stitching, used as `Blender`: windows are made binary at the threshold, resized
    with aligned corners, cut at 0.9 and averaged."""

    def __init__(self, height: int, width: int, threshold: float) -> None:
        self.threshold = threshold
        self.votes, self.total, self.count = np.zeros((3, height, width), np.float32)

    def add(self, window_map: Tensor, box: Box) -> None:
        """Add the (S, S) float answer for a window."""
        region = np.s_[box[0] : box[1], box[2] : box[3]]
        binary = to_native((window_map > self.threshold).float(), box, aligned=True)
        self.votes[region] += (binary > PUBLISHED_CUT).cpu().numpy()
        self.total[region] += to_native(window_map, box, aligned=True).cpu().numpy()
        self.count[region] += 1

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Label, the mean vote, and mean score, (height, width) float32 each."""
        return self.votes / self.count, self.total / self.count
