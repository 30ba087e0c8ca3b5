"""Windows over an image and the merge of what was said of them. Boxes are (top, bottom, left, right), native pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional as F

Box = tuple[int, int, int, int]
REFERENCE_THRESHOLD = 0.9


def starts(length: int, window: int) -> list[int]:
    """Starts of windows side by side along one axis; the last one is moved back inside."""
    if length <= window:
        return [0]
    count = -(-length // window)
    return [min(i * window, length - window) for i in range(count)]


def tile(height: int, width: int, window: int) -> list[Box]:
    """Windows of side `window` that cover an image, row by row; one smaller than `window` gives the whole side."""
    return [
        (top, min(top + window, height), left, min(left + window, width))
        for top in starts(height, window)
        for left in starts(width, window)
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
        valid = F.interpolate(valid, (height, width), mode="bilinear", align_corners=reference, antialias=shrinks)
    return valid[0, 0]


def merge_probability(maps: Sequence[Tensor], boxes: Sequence[Box], height: int, width: int) -> np.ndarray:
    """Blend windows into one map: the mean of the probabilities wherever windows overlap.

    Args:
        maps: per window an (S, S) float map.
        boxes: the windows; together they cover the image.
        height, width: of the image, pixels.

    Returns:
        (height, width) float32.
    """
    total = np.zeros((height, width), np.float32)
    count = np.zeros((height, width), np.float32)
    for window_map, box in zip(maps, boxes, strict=True):
        region = np.s_[box[0] : box[1], box[2] : box[3]]
        total[region] += to_native(window_map, box).cpu().numpy()
        count[region] += 1
    return total / count


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
        label[region] += (to_native(binary, box, reference=True) > REFERENCE_THRESHOLD).cpu().numpy()
        heat[region] += to_native(window_map, box, reference=True).cpu().numpy()
        count[region] += 1
    return label / count, heat / count


def merge(
    maps: Sequence[Tensor], boxes: Sequence[Box], size: tuple[int, int], *, mode: str, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Windows to the answer for the image.

    Args:
        maps, boxes: see `merge_probability`.
        size: (height, width) of the image.
        mode: `probability`, or `reference` for the published stitching.
        threshold: probability above which a pixel is defect.

    Returns:
        label (height, width): uint8 {0, 1}, or the float32 votes of the published stitching, fractional where
        overlapping windows disagree; and score (height, width) float32 in [0, 1].
    """
    if mode == "reference":
        return merge_reference(maps, boxes, *size, threshold=threshold)
    score = merge_probability(maps, boxes, *size)
    return (score > threshold).astype(np.uint8), score
