"""Answers as the page and the downloads need them: levels, masks, tables, archives.

A level is a score in 16 bits, 65535 for 1. Pixels above `cut_of(threshold)` are defect, and at the
threshold that the method took they are exactly the method's mask.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from tools.app.sessions import Answer, Picture, Result
from tools.open_domain import SCORE_LEVELS
from tools.predictor import Prediction
from utils.output_files import write_whole

Thresholds = Mapping[str, float]


def cut_of(threshold: float) -> int:
    """The greatest level that is no defect."""
    return min(int(threshold * SCORE_LEVELS), SCORE_LEVELS - 1)


def levels_of(answer: Prediction) -> np.ndarray:
    """Scores as levels (h, w) uint16, on the side of the cut that their label asks for: where
    rounding would exchange it, one beside."""
    cut = cut_of(answer.threshold)
    levels = np.rint(np.minimum(answer.score, 1) * SCORE_LEVELS).astype(np.uint16)
    return np.where(answer.mask, np.maximum(levels, cut + 1), np.minimum(levels, cut))


def store(answer: Prediction, file: Path) -> Answer:
    """Write the levels of an answer, little-endian in rows, compressed as HTTP's `deflate`."""
    levels = levels_of(answer).astype("<u2", copy=False)
    write_whole(file, zlib.compress(levels.tobytes(), 1))
    marked = int(np.count_nonzero(answer.mask))
    return Answer(file, answer.threshold, int(levels.max()), marked)


def prediction(picture: Picture, answer: Answer, threshold: float | None = None) -> Prediction:
    """A stored answer at another threshold, None: the method's, as a predictor would give it."""
    threshold = answer.threshold if threshold is None else threshold
    levels = np.frombuffer(zlib.decompress(answer.file.read_bytes()), "<u2").reshape(picture.size)
    label = (levels > cut_of(threshold)).astype(np.uint8)
    return Prediction(label, levels / np.float32(SCORE_LEVELS), 0, threshold)


def predictions(picture: Picture, result: Result, thresholds: Thresholds) -> dict[str, Prediction]:
    """By type, the stored answers at these thresholds."""
    return {kind: prediction(picture, answer, thresholds.get(kind))
            for kind, answer in result.answers.items()}  # fmt: skip


COLUMNS = ("type", "number", "x", "y", "width", "height", "centre x", "centre y", "area", "percent", "greatest", "mean")  # fmt: skip


def rows(kind: str, answer: Prediction) -> list[dict]:
    count, components, stats, centres = cv2.connectedComponentsWithStats(
        answer.label, connectivity=8
    )
    sums = np.bincount(components.ravel(), answer.score.ravel(), count)
    found = []
    for n in range(1, count):
        x, y, w, h, area = stats[n].tolist()
        greatest = answer.score[y : y + h, x : x + w][components[y : y + h, x : x + w] == n].max()
        cells = [kind, str(n), str(x), str(y), str(w), str(h), *(f"{c:.1f}" for c in centres[n]),
                 str(area), f"{100 * area / answer.label.size:.3f}", f"{greatest:.3f}",
                 f"{sums[n] / area:.3f}"]  # fmt: skip
        found.append({"type": kind, "box": [x, y, w, h], "cells": cells})
    return found
