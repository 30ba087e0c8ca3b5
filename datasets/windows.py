"""Windows over an image and the way back. Boxes are (top, bottom, left, right), native pixels."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from utils.large_arrays import allocate, let_go, pages, trim_heap

Box = tuple[int, int, int, int]


def starts(length: int, window: int, overlap: float = 0.0) -> list[int]:
    """Starts of windows along one axis that share `overlap` of their side with the next.

    The last one is moved back so that it ends with the image.
    """
    if length <= window:
        return [0]
    step = max(1, round(window * (1 - overlap)))
    count = -(-(length - window) // step) + 1
    return [min(i * step, length - window) for i in range(count)]


def tile(height: int, width: int, window: int, overlap: float = 0.0) -> list[Box]:
    """Windows that cover an image, row by row; where a side is shorter than a window, its whole.

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


def to_native(maps: Tensor, box: Box, *, aligned: bool = False) -> Tensor:
    """Bring a network map back to the pixels of its window: the inverse of resizing and padding.

    Args:
        maps: (S, S) float, the answer for the padded square.
        box: the window.
        aligned: interpolate with aligned corners, as published; else with pixel centres, as images
            are resized.

    Returns:
        (bottom - top, right - left) float.
    """
    height, width = box[1] - box[0], box[3] - box[2]
    rows, columns = fitted_shape(height, width, maps.shape[-1])
    valid = maps[None, None, :rows, :columns].float()
    if (rows, columns) != (height, width):
        shrinks = rows > height and not aligned
        valid = F.interpolate(
            valid, (height, width), mode="bilinear", align_corners=aligned, antialias=shrinks
        )
    return valid[0, 0]


ROWS = 64  # written at once


class Blender:
    """Blends windows that come row by row; it holds sums of the rows that may still change.

    Where windows overlap, a pixel is the mean of their probabilities, weighted by the distance to
    each window's border: a window fades out where another takes over, so that no seam shows.

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
        """Add the (S, S) float answer for a window; windows come from top to bottom."""
        top, bottom, left, right = box
        self._close(top)
        count = bottom - self.top
        if count > len(self.total):
            for name in ("total", "weight"):
                before, rows = getattr(self, name), pages((count, self.score.shape[1]), np.float32)
                rows[: len(before)] = before
                setattr(self, name, rows)
        weight = fading(bottom - top, right - left)
        region = np.s_[: bottom - top, left:right]
        self.total[region] += to_native(window_map, box).cpu().numpy() * weight
        self.weight[region] += weight

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Close all rows: label and score."""
        self._close(self.top + len(self.total))
        return self.label, self.score

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
        # a copy of nothing, so that the rows above are given back
        rest = np.s_[count:] if count < len(self.total) else np.s_[:0]
        self.top, self.total, self.weight = row, self.total[rest], self.weight[rest]
        if not len(self.total):
            self.total, self.weight = self.total.copy(), self.weight.copy()


@lru_cache(maxsize=8)
def fading(height: int, width: int) -> np.ndarray:
    """Weights (height, width) float32 of a window's pixels, by distance to its borders."""
    rows, columns = (
        np.minimum(np.arange(n) + 0.5, n - np.arange(n) - 0.5) / n for n in (height, width)
    )
    return np.outer(rows, columns).astype(np.float32)


PUBLISHED_CUT = 0.9


class PublishedStitching:
    """The published stitching: windows binary, resized with aligned corners, cut at 0.9, averaged.

    Args:
        height, width: of the image, pixels.
        threshold: probability above which a pixel of a window is defect.
    """

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
        """Label (height, width) float32, a mean vote, and mean score (height, width) float32."""
        return self.votes / self.count, self.total / self.count
