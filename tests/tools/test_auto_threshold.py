from __future__ import annotations

import numpy as np
import pytest
import torch
from utils.metrics.curves import LEVELS, ScoreHistogram

from tests.helpers import SIZE, surface, tiny_config, untrained_predictor
from tools.auto_threshold import best_threshold
from tools.predictor import Predictor

AXES = ((1,), (0,), (0, 1))


@pytest.mark.parametrize(
    ("background", "defect", "threshold"),
    [
        pytest.param({100: 50}, {700: 9}, 0.4005, id="middle of what separates"),
        pytest.param({0: 50}, {LEVELS: 9}, 0.5, id="nothing between 0 and 1"),
        pytest.param({999: 50}, {LEVELS: 9}, 0.9995, id="below 1, which nothing exceeds"),
        pytest.param({}, {300: 9}, 0.15, id="from 0 on, where all is defect"),
        pytest.param({300: 30}, {600: 1000}, 0.3, id="little background may be marked"),
        pytest.param({400: 120}, {200: 100, 800: 900}, 0.6005, id="around the best alone"),
        pytest.param({0: 900, 500: 4}, {200: 6, 700: 1}, 0.1005, id="defects below background"),
    ],
)
def test_the_threshold_is_the_middle_of_the_best_ones(background, defect, threshold):
    """Pixels are given by their level: {level: count}."""
    histogram = ScoreHistogram()
    for row, counts in zip(histogram.counts, (background, defect), strict=True):
        for level, count in counts.items():
            row[level] = count
    assert best_threshold(histogram) == pytest.approx(threshold)


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_nearly_as_good_as_any(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((100, 200)) < rng.choice([0.01, 0.2])
    score = np.clip(rng.normal(0.3 + 0.3 * truth, rng.choice([0.02, 0.15])), 0, 1)
    histogram = ScoreHistogram()
    histogram.update(score.astype(np.float32), truth.astype(np.uint8))
    chosen, *others = (
        ((score > t) & truth).sum() / ((score > t) | truth).sum()
        for t in (best_threshold(histogram), *np.linspace(0, 0.999, 200))
    )
    assert chosen > 0.94 * max(others) > 0


@pytest.fixture(scope="module")
def auto(surfaces, tmp_path_factory):
    """A predictor whose untrained head answers as the prior, a little changed."""
    changes = {"TEST__threshold": "auto", "TRAIN__SOFS__prior_residual": True}
    return untrained_predictor(tiny_config(surfaces, tmp_path_factory.mktemp("unused"), **changes))


@pytest.fixture(scope="module")
def fixed(auto):
    return Predictor(auto.methods, auto.settings, torch.device("cpu"))


def support(seed, value=250, side=32):
    """An image with a square, and its mask; the square is so large that it is seen whole."""
    rng = np.random.default_rng(seed)
    image, mask = surface(SIZE, rng), np.zeros(SIZE, np.uint8)
    top, left = (int(rng.integers(0, length - side)) for length in SIZE)
    image[top : top + side, left : left + side] = value
    mask[top : top + side, left : left + side] = 1
    return image, mask


def by_hand(fixed, rounds):
    """Thresholds by rounds of (supports, image, mask): the supports segment the image."""
    histograms = {method: ScoreHistogram() for method in fixed.methods}
    for supports, image, mask in rounds:
        memory = fixed.teach(supports)
        (outcome,) = fixed.segment([(np.ascontiguousarray(image), [memory])])
        for method, answer in outcome.answers[0].items():
            histograms[method].update(answer.score, mask)
    return {name: best_threshold(histogram) for name, histogram in histograms.items()}


def near(thresholds):
    return pytest.approx(thresholds, abs=2e-3)


@pytest.mark.parametrize("normal", [False, True])
def test_each_support_is_segmented_by_all_others(auto, fixed, normal):
    """One defect is unlike the others, so a support that helps to segment itself shows; normal
    images help in every round."""
    supports = [support(0), support(1, 230), support(2, 20)]
    others = [(support(2)[0], None)] * normal
    rounds = [([*supports[:i], *supports[i + 1 :], *others], *supports[i]) for i in range(3)]
    thresholds = auto.teach([*supports, *others]).thresholds
    assert thresholds == near(by_hand(fixed, rounds)) and len(set(thresholds.values())) == 2
    with_itself = by_hand(fixed, [([*supports, *others], *pair) for pair in supports])
    assert all(abs(value - with_itself[name]) > 0.01 for name, value in thresholds.items())
    for name, method in auto.methods.items():
        alone = Predictor({name: method}, auto.settings, torch.device("cpu"), threshold=None)
        assert alone.teach([*supports, *others]).thresholds == near({name: thresholds[name]})


def test_a_single_support_is_segmented_in_its_mirror_images(auto, fixed):
    """The threshold goes half the way; an image given twice is one support."""
    image, mask = support(3)
    mirrored = [([(image, mask)], np.flip(image, axes), np.flip(mask, axes)) for axes in AXES]
    half = {name: (0.5 + value) / 2 for name, value in by_hand(fixed, mirrored).items()}
    assert auto.teach([(image, mask)]).thresholds == near(half)
    assert auto.teach([(image, mask)] * 2).thresholds == near(half)


def test_an_image_given_twice_does_not_segment_itself(auto, fixed):
    one, other = support(4), support(5, 200)
    rounds = [([other], *one), ([other], *one), ([one, one], *other)]
    assert auto.teach([one, one, other]).thresholds == near(by_hand(fixed, rounds))


def test_scores_stay_and_are_cut_at_the_threshold(auto, fixed):
    supports, image = [support(0), support(1, 200)], support(7)[0]
    memory, answer = auto.teach(supports), auto.predict(image)
    assert answer.threshold == memory.thresholds["SOFS"] != 0.5
    assert np.array_equal(answer.mask, answer.score > answer.threshold)
    fixed.teach(supports)
    np.testing.assert_allclose(fixed.predict(image).score, answer.score, atol=1e-4)
    assert fixed.predict(image).threshold == 0.5
