"""`TEST.threshold auto`: the threshold that is best on the supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets.views import Pair
from models.memory import Memory
from utils.metrics.score_curves import ScoreCounts

if TYPE_CHECKING:
    from tools.predictor import Predictor

NEARLY = 0.95  # of the best IoU: the pixels are too few to prefer a threshold above it


def choose_thresholds(
    predictor: Predictor,
    pairs: Sequence[Pair],
    memory_without: Callable[[np.ndarray | None], Memory],
) -> dict[str, float]:
    """By method, the middle of the thresholds that are best on the supports.

    Each support is segmented by all others (leave one out; an image given twice is one support).
    A single support is mirrored and segmented by itself. It is more like itself than other images
    are, so the result is the mean of that threshold and the predictor's.

    Args:
        pairs: support images (h, w, 3) uint8 RGB and masks (h, w) uint8, all with a defect.
        memory_without: the memory of all supports but this image; None: of all.
    """
    asked, alone = pairs, all(np.array_equal(image, pairs[0][0]) for image, _ in pairs)
    if alone:
        mirrored = [[np.flip(array, axes) for array in pair]
                    for pair in pairs for axes in (0, 1, (0, 1))]  # fmt: skip
        asked = [(np.ascontiguousarray(image), mask) for image, mask in mirrored]
    whole = memory_without(None) if alone else None
    # memories are made one after the other: those of many supports would fill the memory
    queries = ((image, [whole or memory_without(image)]) for image, _ in asked)
    counts = {method: ScoreCounts() for method in predictor.methods}
    for (_, mask), outcome in zip(asked, predictor.segment(queries), strict=True):
        for method, answer in outcome.answers[0].items():
            counts[method].update(answer.score, mask)
    best = {method: best_threshold(counts) for method, counts in counts.items()}
    if alone:
        return {method: (predictor.threshold + value) / 2 for method, value in best.items()}
    return best


def best_threshold(counts: ScoreCounts) -> float:
    """Middle of the thresholds around the best one whose IoU is nearly as good."""
    iou = counts.iou()
    good, best = iou >= NEARLY * iou.max(), int(iou.argmax())
    below, above = np.flatnonzero(~good[:best]), np.flatnonzero(~good[best:])
    first = int(below[-1]) + 1 if len(below) else 0
    last = best + int(above[0]) - 1 if len(above) else len(iou) - 1
    last = min(last, len(iou) - 2)  # no score is above a threshold of 1
    return (first + last) / 2 / (len(iou) - 1)
