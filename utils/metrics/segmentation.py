"""Class IoU, mIoU and FB-IoU, from integer pixel counts (paper, section 4.1)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

IGNORE = 255


def intersection_union(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Intersection and union of one image in pixels, each (2,) int64: background, foreground.

    `target` is (h, w), {0, 1}, 255 where a pixel is ignored. `prediction` is (h, w), {0, 1}; or
    fractions, the votes of the published stitching: a vote from 0.5 on counts in the foreground's
    area, but only a vote of exactly 0 or 1 can match the target.
    """
    counted = target != IGNORE
    p, t = np.asarray(prediction)[counted], np.asarray(target)[counted]
    foreground = np.count_nonzero(p >= 0.5)
    intersection = np.array([np.count_nonzero((p == v) & (t == v)) for v in (0, 1)], np.int64)
    areas = np.array([p.size - foreground, foreground], np.int64)
    areas += [np.count_nonzero(t == v) for v in (0, 1)]
    return intersection, areas - intersection


class SegmentationMeter:
    """Adds up pixel counts per class, of `classes` in the order of the table.

    `counts` is (classes, 5) int64: intersection and union, each of background and foreground, and
    queries; those of several processes add up.
    """

    def __init__(self, classes: Iterable[Hashable]) -> None:
        self.classes = list(classes)
        self.counts = torch.zeros(len(self.classes), 5, dtype=torch.int64)

    def update(self, key: Hashable, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one query of class `key`, as `intersection_union` takes it."""
        self.add(key, *intersection_union(prediction, target))

    def add(self, key: Hashable, intersection: Sequence[int], union: Sequence[int]) -> None:
        """Add the counts of one query, each background and foreground."""
        self.counts[self.classes.index(key)] += torch.tensor([*intersection, *union, 1])

    def queries(self) -> Tensor:
        """(classes,) int64, number of queries."""
        return self.counts[:, 4]

    def class_iou(self) -> dict[Hashable, float | None]:
        """Foreground IoU per class; None where its union is empty."""
        rows = zip(self.classes, self.counts.tolist(), strict=True)
        return {key: share(row[1], row[3]) for key, row in rows}

    def miou(self) -> float | None:
        """Mean foreground IoU of the classes that have a union; published: NaN if one has none."""
        values = [v for v in self.class_iou().values() if v is not None]
        return sum(values) / len(values) if values else None

    def fb_iou(self) -> float | None:
        """Mean of background and foreground IoU, each of all classes; None: one has no union."""
        total = self.counts.sum(0).tolist()
        values = [share(total[0], total[2]), share(total[1], total[3])]
        return None if None in values else sum(values) / 2


def share(part: int, whole: int) -> float | None:
    """A part of a whole; None of nothing."""
    return part / whole if whole else None


def product_mean(values: Mapping[tuple[str, int], float | None]) -> float | None:
    """Mean over the classes of each product, then over products, of what is defined; None where
    nothing is. `values` are by class, (product, category)."""
    products: dict[str, list[float | None]] = {}
    for (product, _), value in values.items():
        products.setdefault(product, []).append(value)
    return mean_std([mean_std(classes)[0] for classes in products.values()])[0]


def mean_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and population standard deviation of the values that are defined; None where none is."""
    defined = [v for v in values if v is not None]
    return (float(np.mean(defined)), float(np.std(defined))) if defined else (None, None)
