"""Bars that the scores of images without defect should stay below, where some were taught."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from datasets.refinement import log_odds
from datasets.views import Pair
from models.memory import Memory

if TYPE_CHECKING:
    from tools.predictor import Predictor

MOST_IMAGES = 5  # supports that are segmented, to bound the time of teaching
MARGIN = 2.0  # tokens around a marked defect, which may still look like it
PRIOR, LEVEL = 4, 0.6  # how many normal images the surface counts as; factor of its log-odds
APART, DOUBT = 0.75, 0.5  # log-odds, scales: how much images differ, and the doubt about their mean


def choose_gates(
    predictor: Predictor, memory: Memory, normal_images: Sequence[np.ndarray], pairs: Sequence[Pair]
) -> dict[str, float]:
    """By method, the score that in an image without defect no pixel should exceed.

    Two means tell what is to be expected of such an image: N of the highest log-odds in the n
    normal images, each segmented by all else that was taught, and S of the highest on the normal
    surface of each support, segmented by all that was taught. Images of a product differ, so that
    a normal image tells little, and S counts as much as four of them: the middle is
    (n N + 4 * 0.6 S) / (n + 4). If the highest log-odds of further images have a logistic
    distribution of scale 0.75 + 0.5 / n around it, a share p of them stays below the middle plus
    (0.75 + 0.5 / n) ln(p / (1 - p)), which is the bar. Its constants were fitted, see
    docs/quality.md. Where a method gives no log-odds, the bar is the highest score in the normal
    images.

    Args:
        memory: of supports with a defect and of `normal_images`.
        normal_images: (h, w, 3) uint8 RGB, one at least.
        pairs: images (h, w, 3) uint8 RGB of supports and their masks (h, w) uint8.
    """
    window = memory.scales[-1].window
    normal: dict[str, list[float]] = {name: [] for name in predictor.methods}
    surface: dict[str, list[float]] = {name: [] for name in predictor.methods}
    queries = ((image, [memory.without_normal(n)]) for n, image in enumerate(normal_images))
    for outcome in predictor.segment(queries, refined=False):
        for name, answer in outcome.answers[0].items():
            normal[name].append(float(answer.score.max()))
    asked = pairs[:MOST_IMAGES]
    queries = ((image, [memory]) for image, _ in asked)
    for (_, mask), outcome in zip(asked, predictor.segment(queries, refined=False), strict=True):
        longest = max(mask.shape)
        token = min(window or longest, longest) * predictor.backbone.stride
        margin = MARGIN * token / predictor.settings.image_size
        unmarked = (mask == 0).astype(np.uint8)
        away = cv2.distanceTransform(unmarked, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) > margin
        for name, answer in outcome.answers[0].items() if away.any() else ():
            surface[name].append(float(answer.score.max(where=away, initial=0)))
    gates, n = {}, len(normal_images)
    odds = predictor.normal_gate / (1 - predictor.normal_gate)
    for name, method in predictor.methods.items():
        gates[name] = max(normal[name])
        if method.gives_log_odds:
            of_normal, of_surface = (
                log_odds(np.array(highest)).mean()
                for highest in (normal[name], surface[name] or normal[name])
            )
            bar = (n * of_normal + PRIOR * LEVEL * of_surface) / (n + PRIOR)
            bar += (APART + DOUBT / n) * math.log(odds)
            gates[name] = float(1 / (1 + np.exp(-bar)))
    return gates
