"""Defects: the connected parts of what is marked in an image, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

from datasets.annotations import UNNAMED, coco_mark
from tools.predictor import Prediction
from utils.large_arrays import allocate, let_go

ROWS = 128  # of a map, handled at once
COLUMNS = ("type", "number", "x", "y", "width", "height", "centre_x", "centre_y", "area_pixels",
           "area_percent", "greatest_score", "mean_score")  # fmt: skip


@dataclass(frozen=True)
class Defect:
    """Marked pixels of one type that touch each other at sides or corners.

    Attributes:
        kind: the type; "" where the supports name none.
        number: from 1 among those of its type, from top to bottom.
        box: x, y, width and height, pixels.
        centre: mean x and y of its pixels, whose centres lie at whole numbers.
        area: pixels.
        percent: area in percent of the image.
        greatest, mean: of the scores of its pixels.
        mark: segmentation, bbox and area as a COCO file holds them, see `coco_mark`.
    """

    kind: str
    number: int
    box: tuple[int, int, int, int]
    centre: tuple[float, float]
    area: int
    percent: float
    greatest: float
    mean: float
    mark: dict[str, Any]

    def row(self) -> list[str | int | float]:
        """The values of `COLUMNS`."""
        values = (self.area, self.percent, self.greatest, self.mean)
        return [self.kind or UNNAMED, self.number, *self.box, *self.centre, *values]


def find_defects(
    answers: dict[str, Prediction], *, min_area: int = 1, min_score: float = 0.0
) -> tuple[list[Defect], dict[str, Prediction]]:
    """The defects of an image, by type in the order of the answers, and the answers without those
    that are left out.

    Args:
        answers: by type of defect.
        min_area: pixels; smaller defects are left out.
        min_score: defects whose greatest score is lower are left out.
    """
    defects, kept = [], {}
    for kind, answer in answers.items():
        found, kept[kind] = _find(kind, answer, min_area, min_score)
        defects += found
    return defects, kept


def _find(
    kind: str, answer: Prediction, min_area: int, min_score: float
) -> tuple[list[Defect], Prediction]:
    size = answer.label.shape
    if (frame := _frame(answer.label)) is None:
        return [], answer
    left, top = frame[1].start, frame[0].start
    marks = (answer.label[frame] == 1).astype(np.uint8)
    count, labels, stats, centres = cv2.connectedComponentsWithStats(marks, connectivity=8)
    greatest, sums, scores = np.full(count, -np.inf), np.zeros(count), answer.score[frame]
    for rows in _blocks(len(marks)):
        inside = labels[rows] > 0
        numbers, values = labels[rows][inside], scores[rows][inside]
        np.maximum.at(greatest, numbers, values)
        np.add.at(sums, numbers, values)
        let_go(answer.score, answer.label)
    greatest = greatest.round(6)  # what a table shows can be given as a bound
    stays = (stats[:, cv2.CC_STAT_AREA] >= min_area) & (greatest >= min_score)
    stays[0] = False
    if not stays[1:].all():
        answer = replace(answer, label=_with(stays, labels, frame, size))
    # in an order that does not depend on OpenCV's threads
    keys = np.column_stack([centres[:, ::-1], stats[:, [4, 3, 2, 0, 1]]])
    defects = []
    for place in np.lexsort(keys.T):
        if not stays[place]:
            continue
        x, y, width, height, area = stats[place].tolist()
        part = labels[y : y + height, x : x + width] == place
        corner, (right, down) = (left + x, top + y), centres[place]
        numbers = (left + right, top + down, 100 * area / (size[0] * size[1]), greatest[place],
                   sums[place] / area)  # fmt: skip
        centre_x, centre_y, *rest = (float(f"{number:.6g}") for number in numbers)
        about = (len(defects) + 1, (*corner, width, height), (centre_x, centre_y), area, *rest)
        defects.append(Defect(kind, *about, coco_mark(part, corner, size)))
    return defects, answer


def _frame(label: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of all that is marked; None where nothing is."""
    down, right = np.zeros(label.shape[0], bool), np.zeros(label.shape[1], bool)
    for rows in _blocks(len(label)):
        marks = label[rows] == 1
        down[rows] = marks.any(1)
        right |= marks.any(0)
        let_go(label)
    if not down.any():
        return None
    ends = [np.flatnonzero(seen)[[0, -1]].tolist() for seen in (down, right)]
    return slice(ends[0][0], ends[0][1] + 1), slice(ends[1][0], ends[1][1] + 1)


def _with(
    stays: np.ndarray, labels: np.ndarray, frame: tuple[slice, slice], size: tuple[int, int]
) -> np.ndarray:
    """The label (h, w) uint8 {0, 1} of the components that stay."""
    label = allocate(size, np.uint8)
    for rows in _blocks(size[0]):
        label[rows] = 0
        let_go(label)
    inner = label[frame]
    for rows in _blocks(len(labels)):
        inner[rows] = stays[labels[rows]]
        let_go(label)
    return label


def _blocks(height: int) -> Iterator[slice]:
    return (slice(top, top + ROWS) for top in range(0, height, ROWS))
