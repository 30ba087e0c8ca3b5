"""`TEST.threshold auto`: the threshold that suits the supports themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from models.support_tokens import LabelledTokens
from tools.support_encoder import MIRRORS, EncodedSupport
from utils.curves import ScoreHistogram

if TYPE_CHECKING:
    from tools.predictor import Predictor

NEARLY = 0.95  # of the best IoU: thresholds that are as good for all one can tell from so few pixels


def choose_thresholds(
    predictor: Predictor,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    parts: Sequence[EncodedSupport],
    normal: Sequence[LabelledTokens],
    windowed: bool,
) -> dict[str, float]:
    """By method, the middle of the thresholds that are best on the supports: each support is segmented with
    all others (leave one out; an image given twice is one support); a single one is mirrored, and so segmented by what
    it has taught itself.

    Args:
        predictor: who answers.
        pairs: support images (h, w, 3) uint8 RGB and masks (h, w) uint8, all with a defect.
        parts: the same, encoded, one for each.
        normal: further support images, without defect.
        windowed: scale at which the queries are seen.
    """
    histograms = {method: ScoreHistogram() for method in predictor.methods}
    for image, mask in pairs:
        others = [part for (other, _), part in zip(pairs, parts, strict=True) if not np.array_equal(other, image)]
        memory = predictor.encoder.remember(others or parts, normal, windowed=windowed)
        mirrors = MIRRORS[:1] if others else MIRRORS[1:]
        axes = [tuple(axis + 2 for axis in mirror) for mirror in mirrors]  # of (h, w), counted from the front
        images = [np.ascontiguousarray(np.flip(image, a)) for a in axes]
        for a, outcome in zip(axes, predictor.segment(images, memory), strict=True):
            for method, answer in outcome.answers.items():
                histograms[method].update(answer.score, np.flip(mask, a))
    return {method: best_threshold(histogram) for method, histogram in histograms.items()}


def best_threshold(histogram: ScoreHistogram) -> float:
    """Middle of the thresholds around the best one whose IoU is nearly as good."""
    iou = histogram.iou()
    good, best = iou >= NEARLY * iou.max(), int(iou.argmax())
    below, above = np.flatnonzero(~good[:best]), np.flatnonzero(~good[best:])
    first = int(below[-1]) + 1 if len(below) else 0
    last = best + int(above[0]) - 1 if len(above) else len(iou) - 1
    last = min(last, len(iou) - 2)  # no score is above 1, which would find nothing
    return (first + last) / 2 / (len(iou) - 1)
