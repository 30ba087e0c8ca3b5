"""Intersection over union per class, mIoU and FB-IoU, from integer pixel counts (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

IGNORE = 255


def intersection_union(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel counts of one image.

    Args:
        prediction: (h, w), {0, 1}; or fractions, the votes of the published stitching: a vote from 0.5 on counts in
            the foreground's area, but only a vote of exactly 0 or 1 can match the target.
        target: (h, w), {0, 1}, 255 where a pixel is ignored.

    Returns:
        intersection and union, each (2,) int64: background, foreground.
    """
    counted = target != IGNORE
    p, t = np.asarray(prediction)[counted], np.asarray(target)[counted]
    foreground = p >= 0.5
    intersection = np.array([((p == v) & (t == v)).sum() for v in (0, 1)], np.int64)
    area = np.array([(~foreground).sum(), foreground.sum()], np.int64)
    return intersection, area + np.array([(t == v).sum() for v in (0, 1)], np.int64) - intersection


class SegmentationMeter:
    """Adds up pixel counts per class.

    Args:
        classes: keys of all classes that may come, in the order of the table.
    """

    def __init__(self, classes: Iterable[Hashable]) -> None:
        self.classes = list(classes)
        self.counts = torch.zeros(len(self.classes), 5, dtype=torch.int64)

    def update(self, key: Hashable, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one query of class `key`; see `intersection_union`."""
        self.add(key, *intersection_union(prediction, target))

    def add(self, key: Hashable, intersection: Sequence[int], union: Sequence[int]) -> None:
        """Add the counts of one query, each background and foreground."""
        self.counts[self.classes.index(key)] += torch.tensor([*intersection, *union, 1])

    def queries(self) -> Tensor:
        """(classes,) int64, number of queries."""
        return self.counts[:, 4]

    def class_iou(self) -> dict[Hashable, float | None]:
        """Foreground IoU per class; None where its union is empty."""
        return {
            k: _ratio(int(c[1]), int(c[3])) for k, c in zip(self.classes, self.counts, strict=True)
        }

    def miou(self) -> float | None:
        """Mean foreground IoU over the classes that have a union; the published code gives NaN if one has none."""
        values = [v for v in self.class_iou().values() if v is not None]
        return sum(values) / len(values) if values else None

    def fb_iou(self) -> float | None:
        """Mean of background and foreground IoU, each pooled over all classes; None where either has no union."""
        total = self.counts.sum(0).tolist()
        values = [_ratio(total[0], total[2]), _ratio(total[1], total[3])]
        return None if None in values else sum(values) / 2


def _ratio(intersection: int, union: int) -> float | None:
    return intersection / union if union else None


def mean_std(values: list[float | None]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation over repeats, without the undefined ones; None, None if none is left."""
    known = [v for v in values if v is not None]
    return (float(np.mean(known)), float(np.std(known))) if known else (None, None)
