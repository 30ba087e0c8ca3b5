"""What the open domain job writes for a query: masks, scores, labels and an overlay."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.large_images import ImageStrips
from tools.prediction.answers import Prediction
from utils.large_arrays import allocate, let_go
from utils.output_files import file_name
from utils.visualize import overlay, overlay_labels, write_image

SCORE_LEVELS = 65535
ROWS = 128
OVERLAY_SIDE = 4096  # pixels, longer side of the overlay of an image that is too large to be held


def write_answers(
    folder: Path, name: str, image: ImageStrips, answers: dict[str, Prediction]
) -> None:
    """Write the answers about each type of defect to one query, at its size.

    `masks/NAME.png` {0, 255}, `scores/NAME.png` (16 bit, 65535 is probability 1) and `overlays/NAME.png`, the overlay
    of an image read in strips shrunk. With several types masks and scores lie in folders named after them,
    `labels/NAME.png` has 0 for background and i for the i-th type, of those that claim a pixel the one furthest above
    its threshold, and the overlay has a legend below.
    """
    several, file = list(answers) != [""], file_name(name, ".png")
    for kind, answer in answers.items():
        _write_maps(folder, f"{kind}/{file}" if several else file, answer)
    marks = _labels(list(answers.values()))
    if several:
        write_image(folder / "labels" / file, marks)
    let_go(marks)
    shown = image.pixels if image.pixels is not None else image.thumbnail(OVERLAY_SIDE)
    marks = _shrunk(marks, shown.shape[:2])
    picture = overlay_labels(shown, marks, list(answers)) if several else overlay(shown, marks)
    write_image(folder / "overlays" / file, picture)


def _write_maps(folder: Path, path: str, answer: Prediction) -> None:
    levels = allocate(answer.score.shape, np.uint16)
    marks = allocate(answer.score.shape, np.uint8)
    for top in range(0, len(levels), ROWS):
        rows = np.s_[top : top + ROWS]
        levels[rows] = np.rint(np.minimum(answer.score[rows], 1) * SCORE_LEVELS)
        marks[rows] = (answer.label[rows] == 1) * np.uint8(255)
        let_go(levels, marks, answer.score, answer.label)
    write_image(folder / "masks" / path, marks)
    let_go(marks)
    write_image(folder / "scores" / path, levels)
    let_go(levels)


def _labels(answers: list[Prediction]) -> np.ndarray:
    """(h, w) uint8: 0 background, i the i-th answer."""
    labels = allocate(answers[0].score.shape, np.uint8)
    for top in range(0, len(labels), ROWS):
        rows = np.s_[top : top + ROWS]
        claims = np.stack(
            [np.where(a.label[rows] == 1, a.score[rows] - a.threshold, -np.inf) for a in answers]
        )
        labels[rows] = np.where(np.isfinite(claims.max(0)), claims.argmax(0) + 1, 0)
        let_go(labels, *(array for a in answers for array in (a.score, a.label)))
    return labels


def _shrunk(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels at the size of a thumbnail; a defect that is anywhere in a pixel marks it."""
    if labels.shape == size:
        return labels
    step, small = -(-max(labels.shape) // OVERLAY_SIDE), np.empty(size, np.uint8)
    for row in range(size[0]):
        lines = labels[row * step : (row + 1) * step].max(0)
        small[row] = np.maximum.reduceat(lines, np.arange(0, labels.shape[1], step))
        let_go(labels)
    return small
