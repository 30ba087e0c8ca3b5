"""`TEST.threshold auto`: the threshold that suits the supports themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets.views import Pair
from models.support_tokens import LabelledTokens
from tools.prediction.support_encoder import EncodedSupport
from utils.metrics.score_curves import ScoreCounts

if TYPE_CHECKING:
    from tools.predictor import Predictor

NEARLY = (
    0.95  # of the best IoU: thresholds that are as good for all one can tell from so few pixels
)


def choose_thresholds(
    predictor: Predictor,
    pairs: Sequence[Pair],
    parts: Sequence[EncodedSupport],
    normal: Sequence[LabelledTokens],
    windowed: bool,
) -> dict[str, float]:
    """By method, the middle of the thresholds that are best on the supports: each support is segmented with all others
    (leave one out; an image given twice is one support). A single one is mirrored, and so segmented by what it has
    taught itself; it is more like itself than other images are, so only half the way from the predictor's own threshold
    is gone.

    Args:
        predictor: who answers.
        pairs: support images (h, w, 3) uint8 RGB and masks (h, w) uint8, all with a defect.
        parts: the same, encoded, one for each.
        normal: further support images, without defect.
        windowed: scale at which the queries are seen.
    """
    histograms = {method: ScoreCounts() for method in predictor.methods}
    alone = all(np.array_equal(image, pairs[0][0]) for image, _ in pairs)
    for pair in pairs:
        others = [
            part
            for (image, _), part in zip(pairs, parts, strict=True)
            if not np.array_equal(image, pair[0])
        ]
        memory = predictor.encoder.remember(others or parts, normal, windowed=windowed)
        asked = _turned(pair, mirrors_known=len(predictor.encoder.mirrors) > 1) if alone else [pair]
        outcomes = predictor.segment((image for image, _ in asked), memory)
        for (_, mask), outcome in zip(asked, outcomes, strict=True):
            for method, answer in outcome.answers.items():
                histograms[method].update(answer.score, mask)
    chosen = {method: best_threshold(histogram) for method, histogram in histograms.items()}
    if not alone:
        return chosen
    return {method: (predictor.threshold + threshold) / 2 for method, threshold in chosen.items()}


def _turned(pair: Pair, *, mirrors_known: bool) -> list[Pair]:
    """An image and its mask as the supports do not show them: mirrored, or, where mirror images are known, turned by a
    quarter."""
    if mirrors_known:
        turns = [lambda array, k=k: np.rot90(array, k) for k in (1, 3)]
    else:
        turns = [lambda array, axes=axes: np.flip(array, axes) for axes in (0, 1, (0, 1))]
    return [
        (np.ascontiguousarray(turn(pair[0])), np.ascontiguousarray(turn(pair[1]))) for turn in turns
    ]


def best_threshold(histogram: ScoreCounts) -> float:
    """Middle of the thresholds around the best one whose IoU is nearly as good."""
    iou = histogram.iou()
    good, best = iou >= NEARLY * iou.max(), int(iou.argmax())
    below, above = np.flatnonzero(~good[:best]), np.flatnonzero(~good[best:])
    first = int(below[-1]) + 1 if len(below) else 0
    last = best + int(above[0]) - 1 if len(above) else len(iou) - 1
    last = min(last, len(iou) - 2)  # no score is above 1, which would find nothing
    return (first + last) / 2 / (len(iou) - 1)
