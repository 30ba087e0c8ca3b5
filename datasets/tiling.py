"""Windows over an image and the way back. Boxes are (top, bottom, left, right), native pixels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

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
