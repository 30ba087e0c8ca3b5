"""Pixel probes of supports: each is segmented by all others, and what is wrong there is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets.large_images import shrunk
from datasets.refinement import Seen, addition, pixel_features
from datasets.views import Pair
from models.memory import Memory
from models.pixel_probe import Example, PixelProbe, fit_pixel_probe

if TYPE_CHECKING:
    from tools.predictor import Predictor

MOST_IMAGES = 5  # are segmented, to bound the time of teaching
SAMPLE, SEED = 6000, 54  # pixels of an image
LEAST_AREA = 50  # pixels marked in an image, at least


def fit_probes(
    predictor: Predictor,
    pairs: Sequence[Pair],
    window: int,
    memory_without: Callable[[np.ndarray], Memory],
    thresholds: dict[str, float],
) -> dict[str, PixelProbe]:
    """By method whose masks can be refined, the probe of supports. An image given twice is one; of
    one alone there is no probe, nor where nothing is found in any.

    Args:
        pairs: images (h, w, 3) uint8 RGB and masks (h, w) uint8, all with a defect.
        window: side of the windows of queries.
        memory_without: of all supports but this image.
        thresholds: by method, those that were chosen on the supports.
    """
    distinct: list[Pair] = []
    for pair in pairs:
        if not any(np.array_equal(pair[0], image) for image, _ in distinct):
            distinct.append(pair)
    asked = distinct[:MOST_IMAGES] if len(distinct) > 1 else []
    names = [name for name, method in predictor.methods.items() if method.gives_log_odds]
    examples: dict[str, list[Example]] = {name: [] for name in names}
    # memories are made one after the other: those of many supports would fill the memory
    queries = ((image, [memory_without(image)]) for image, _ in asked)
    for (_, mask), outcome in zip(asked, predictor.segment(queries, refined=False), strict=True):
        for name, found in examples.items():
            threshold = thresholds.get(name, predictor.threshold)
            score = outcome.answers[0][name].score
            if (seen := predictor.seen(score, outcome.image, threshold, window)) is not None:
                found.append(example(seen, mask))
    probes = {name: fit_pixel_probe(found) for name, found in examples.items()}
    return {name: probe for name, probe in probes.items() if probe is not None}


def example(seen: Seen, mask: np.ndarray) -> Example:
    """What a probe is fitted to of an answer whose true mask (h, w) uint8 is known."""
    logits, image, token, step = seen
    added = addition(logits, image, token)
    pixels, features = pixel_features(logits, added, image, token)
    share = shrunk(lambda top, bottom: mask[top:bottom].astype(np.float32), mask.shape, step)
    some = np.random.default_rng(SEED).permutation(len(pixels))[:SAMPLE]
    chosen = pixels[some]
    weight = len(pixels) / len(some) / max(share.sum(), LEAST_AREA)
    refined = (logits + added).ravel()[chosen]
    return Example(features[some], refined, share.ravel()[chosen], float(weight))
