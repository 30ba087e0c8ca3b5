from __future__ import annotations

import numpy as np
import pytest
import torch

from models.methods.contrast import Contrast
from models.methods.prior import Prior
from tests.helpers import ask, picture, spotted, variant
from tools.predictor import Predictor


def log_odds(probability):
    return np.log(probability / (1 - probability))


@pytest.fixture(scope="module")
def scored(predictor):
    """A predictor of a method that gives log-odds, without training, and of one that does not."""
    methods = {"contrast": Contrast(predictor.backbone), "prior": Prior(predictor.backbone)}
    return Predictor(methods, predictor.settings, torch.device("cpu"))


@pytest.fixture(scope="module")
def taught():
    """Two supports, the second marked all over, and two normal images, with small marks."""
    supports = [spotted((64, 64), 0, [(20, 30)]), spotted((64, 64), 1, [(0, 0)], side=64)]
    normal = [spotted((64, 64), seed, [(9, 9)], side=3)[0] for seed in (4, 5)]
    return supports, normal


def expected(predictor, supports, normal, share):
    """The bars, from answers of predictors that were taught part of it."""
    images, masks = [list(part) for part in zip(*supports, strict=True)]
    empty, bars = [None] * len(normal), {}
    knows_all = variant(predictor, normal_gate=0.0)
    knows_all.set_support(images + normal, masks + empty)
    found = {name: ([], []) for name in predictor.methods}
    for number, image in enumerate(normal):
        others = normal[:number] + normal[number + 1 :]
        without = variant(predictor, normal_gate=0.0)
        without.set_support(images + others, masks + empty[1:])
        for name, answer in ask(without, image).items():
            found[name][0].append(answer.score.max())
    for image, mask in supports:
        # a token is 8 of the 64 pixels, and two of them around a defect do not count
        marked, pixels = np.argwhere(mask), np.indices(mask.shape)[..., None]
        away = (np.hypot(*(pixels - marked.T[:, None, None])) > 16).all(-1)
        for name, answer in ask(knows_all, image).items() if away.any() else ():
            found[name][1].append(answer.score[away].max())
    for name, (normals, surfaces) in found.items():
        means = (np.mean([log_odds(score) for score in scores]) for scores in (normals, surfaces))
        n = len(normal)
        bar = np.dot((n, 4 * 0.6), tuple(means)) / (n + 4) + (0.75 + 0.5 / n) * log_odds(share)
        bars[name] = max(normals) if name == "prior" else 1 / (1 + np.exp(-bar))
    return bars


@pytest.mark.parametrize(("share", "count"), [(0.6, 2), (0.9, 2), (0.9, 1), (0.3, 1)])
def test_the_bar_is_made_of_what_normal_images_and_normal_surface_score(
    scored, taught, share, count
):
    (supports, normal), gated = taught, variant(scored, normal_gate=share)
    images, masks = zip(*supports, strict=True)
    gated.set_support([*images, *normal[:count]], [*masks, *[None] * count])
    bars = expected(scored, supports, normal[:count], share)
    assert gated.memory.gates == pytest.approx(bars, abs=1e-5)


def test_normal_images_stand_for_a_surface_that_is_marked_all_over(scored, taught):
    (_, (image, mask)), (normal, _) = taught
    gated, free = (variant(scored, normal_gate=share) for share in (0.5, 0.0))
    gated.set_support([image, normal], [mask, None])
    free.set_support([image], [mask])
    assert free.memory.gates == {}
    highest = log_odds(ask(free, normal)["contrast"].score.max())
    assert log_odds(gated.memory.gates["contrast"]) == pytest.approx(3.4 / 5 * highest, abs=1e-4)


def test_an_image_whose_scores_stay_below_the_bar_has_no_defect(scored):
    """Masks of images above it are untouched, and scores of all."""
    (image, mask), seen = spotted((64, 64), 0, [(20, 30)]), picture(64, 64, seed=3)
    normal = [spotted((64, 64), seed, [(9, 9)], side=3)[0] for seed in (4, 5)]
    gated, free = (variant(scored, threshold=0.3, normal_gate=gate) for gate in (0.6, 0.0))
    for taught in (gated, free):
        taught.set_support([image, *normal], [mask, None, None])
    emptied, others = 0, [spotted((64, 64), seed, [(9, 40)])[0] for seed in range(6, 12)]
    for query in (image, seen, *normal, *others):
        without = ask(free, query)
        for name, ours in ask(gated, query).items():
            theirs = without[name]
            np.testing.assert_array_equal(ours.score, theirs.score)
            below = ours.score.max() <= gated.memory.gates[name]
            emptied += bool(below and theirs.mask.any())
            assert np.array_equal(ours.mask, theirs.mask & (not below))
    assert emptied, "one at least has a mask without the bar"
    assert ask(gated, image)["prior"].mask.any()
