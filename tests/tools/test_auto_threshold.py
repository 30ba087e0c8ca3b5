from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import SIZE, surface, tiny_config, untrained_predictor, variant
from tools.auto_threshold import best_threshold
from utils.metrics.score_curves import STEPS, ScoreCounts


@pytest.mark.parametrize(
    ("background", "defect", "threshold"),
    [
        pytest.param({100: 50}, {700: 9}, 0.4005, id="middle of what separates"),
        pytest.param({999: 50}, {STEPS: 9}, 0.9995, id="below 1, which nothing exceeds"),
        pytest.param({}, {300: 9}, 0.15, id="from 0 on, where all is defect"),
        pytest.param({300: 30}, {600: 1000}, 0.3, id="little background may be marked"),
        pytest.param({0: 900, 500: 4}, {200: 6, 700: 1}, 0.1005, id="defects below background"),
    ],
)
def test_the_threshold_is_the_middle_of_the_best_ones(background, defect, threshold):
    """Pixels are given by their step: {step: count}."""
    counts = ScoreCounts()
    for row, pixels in zip(counts.counts, (background, defect), strict=True):
        row[list(pixels)] = list(pixels.values())
    assert best_threshold(counts) == pytest.approx(threshold)


@settings(max_examples=20)
@given(st.integers(0, 99), st.sampled_from([0.01, 0.2]), st.sampled_from([0.02, 0.15]))
def test_the_threshold_is_nearly_as_good_as_any(seed, share, spread):
    rng = np.random.default_rng(seed)
    truth = rng.random((100, 200)) < share
    score, counts = np.clip(rng.normal(0.3 + 0.3 * truth, spread), 0, 1), ScoreCounts()
    counts.update(score.astype(np.float32), truth)
    tried = np.array([best_threshold(counts), *np.linspace(0, 0.999, 50)])
    marked = [score > threshold for threshold in tried]
    chosen, *others = ((m & truth).sum() / (m | truth).sum() for m in marked)
    assert chosen > 0.94 * max(others) > 0


@pytest.fixture(scope="module")
def auto(surfaces, tmp_path_factory):
    """A predictor whose untrained head answers as the prior, a little changed."""
    changes = {"TEST__threshold": "auto", "TRAIN__SOFS__prior_residual": True}
    return untrained_predictor(tiny_config(surfaces, tmp_path_factory.mktemp("unused"), **changes))


def support(seed, value=250, side=32):
    """An image with a square, and its mask; the square is so large that it is seen whole."""
    rng = np.random.default_rng(seed)
    image, mask = surface(SIZE, rng), np.zeros(SIZE, np.uint8)
    top, left = (int(rng.integers(0, length - side)) for length in SIZE)
    image[top : top + side, left : left + side] = value
    mask[top : top + side, left : left + side] = 1
    return image, mask


def by_hand(auto, rounds):
    """Thresholds by rounds of (supports, image, mask): the supports segment the image."""
    fixed, counts = variant(auto), {method: ScoreCounts() for method in auto.methods}
    for supports, image, mask in rounds:
        memory = fixed.teach(supports)
        (outcome,) = fixed.segment([(np.ascontiguousarray(image), [memory])])
        for method, answer in outcome.answers[0].items():
            counts[method].update(answer.score, mask)
    return {name: best_threshold(counts) for name, counts in counts.items()}


def near(thresholds):
    return pytest.approx(thresholds, abs=2e-3)


def test_each_support_is_segmented_by_all_others(auto):
    """One defect is unlike the others, so a support that helps to segment itself shows; normal
    images help in every round."""
    supports = [support(0), support(1, 230), support(2, 20)]
    others = [(support(2)[0], None)]
    rounds = [([*supports[:i], *supports[i + 1 :], *others], *supports[i]) for i in range(3)]
    thresholds = auto.teach([*supports, *others]).thresholds
    assert thresholds == near(by_hand(auto, rounds)) and len(set(thresholds.values())) == 2
    with_itself = by_hand(auto, [([*supports, *others], *pair) for pair in supports])
    assert all(abs(value - with_itself[name]) > 0.01 for name, value in thresholds.items())


def test_supports_of_different_numbers_of_views_are_told_apart(surfaces, tmp_path):
    """Each is seen in as many windows as cover it; no crop shows anything else."""
    changes = {"TRAIN__SOFS__prior_residual": True, "DATASET__support_windows": True}
    changes |= {"DATASET__name": "VISION_V1_ND", "TEST__threshold": "auto"}
    auto = untrained_predictor(tiny_config(surfaces, tmp_path, **changes))
    supports = []
    for number, width in enumerate((150, 50)):
        image, mask = surface((64, width), np.random.default_rng(number)), np.zeros((64, width))
        image[10:30, 0], mask[10:30, 0] = 250, 1
        supports.append((image, mask.astype(np.uint8)))
    rounds = [(supports[1:], *supports[0]), (supports[:1], *supports[1])]
    assert auto.teach(supports).thresholds == near(by_hand(auto, rounds))


def test_a_single_support_is_segmented_in_its_mirror_images(auto):
    """The threshold goes half the way; an image given twice is one support."""
    image, mask = support(3)
    mirrored = [([(image, mask)], np.flip(image, axes), np.flip(mask, axes))
                for axes in (0, 1, (0, 1))]  # fmt: skip
    half = {name: (0.5 + value) / 2 for name, value in by_hand(auto, mirrored).items()}
    for times in (1, 2):
        assert auto.teach([(image, mask)] * times).thresholds == near(half)
    one, other = support(4), support(5, 200)
    rounds = [([other], *one), ([other], *one), ([one, one], *other)]
    assert auto.teach([one, one, other]).thresholds == near(by_hand(auto, rounds))
