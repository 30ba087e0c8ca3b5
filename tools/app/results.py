"""Answers as the page and the downloads need them: levels, masks, tables, archives.

A level is a score in 16 bits, 65535 for 1. Pixels above `cut_of(threshold)` are defect, and at the
threshold that the method took they are exactly the method's mask.
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.annotations import coco_json
from tools.app.sessions import Answer, Picture, Result
from tools.defects import COLUMNS, Defect
from tools.open_domain import SCORE_LEVELS
from tools.predictor import Prediction
from utils.output_files import write_whole

Thresholds = Mapping[str, float]
Found = Sequence[tuple[Picture, Sequence[Defect]]]  # by image


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


def csv_text(found: Found) -> str:
    """The table of all defects, a line each."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["file", *COLUMNS])
    lines.writerows([p.name, *defect.row()] for p, defects in found for defect in defects)
    return text.getvalue()


def coco_text(found: Found, kinds: Iterable[str]) -> str:
    """All defects as a COCO file."""
    images = ((p.name, p.size, [(d.kind, d.mark) for d in defects]) for p, defects in found)
    return "".join(coco_json(list(kinds), images))
