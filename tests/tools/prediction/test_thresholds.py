from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.helpers import SIZE, surface, tiny_config, untrained_predictor
from tools.prediction.support_encoder import MIRRORS
from tools.prediction.thresholds import best_threshold
from tools.predictor import Predictor
from utils.metrics.score_curves import STEPS, ScoreCounts

AXES = ((1,), (0,), (0, 1))


def histogram(background, defect):
    """Of pixels by their step: {step: count}."""
    found = ScoreCounts()
    for row, counts in zip(found.counts, (background, defect), strict=True):
        for step, count in counts.items():
            row[step] = count
    return found


@pytest.mark.parametrize(
    ("background", "defect", "threshold"),
    [
        pytest.param({100: 50}, {700: 9}, 0.4005, id="middle of what separates"),
        pytest.param({0: 50}, {STEPS: 9}, 0.5, id="nothing between 0 and 1"),
        pytest.param({999: 50}, {STEPS: 9}, 0.9995, id="below 1, which nothing exceeds"),
        pytest.param({}, {300: 9}, 0.15, id="from 0 on, where all is defect"),
        pytest.param({300: 30}, {600: 1000}, 0.3, id="so little background may be found, too"),
        pytest.param({400: 120}, {200: 100, 800: 900}, 0.6005, id="around the best alone"),
        pytest.param({0: 900, 500: 4}, {200: 6, 700: 1}, 0.1005, id="defects below background"),
    ],
)
def test_the_threshold_is_the_middle_of_the_best_ones(background, defect, threshold):
    assert best_threshold(histogram(background, defect)) == pytest.approx(threshold)


@pytest.mark.parametrize("seed", range(10))
def test_the_threshold_is_nearly_as_good_as_any(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(20000) < rng.choice([0.01, 0.2])
    score = np.clip(rng.normal(0.3 + 0.3 * truth, rng.choice([0.02, 0.15])), 0, 1).astype(
        np.float32
    )
    found = ScoreCounts()
    found.update(score[None], truth[None].astype(np.uint8))
    ious = {
        t: iou_of([score], [truth], t) for t in [best_threshold(found), *np.linspace(0, 0.999, 200)]
    }
    assert next(iter(ious.values())) > 0.94 * max(ious.values()) > 0


def iou_of(scores, truths, threshold):
    pairs = [(score > threshold, truth) for score, truth in zip(scores, truths, strict=True)]
    return sum((p & t).sum() for p, t in pairs) / sum((p | t).sum() for p, t in pairs)


@pytest.fixture(scope="module")
def auto(surfaces, tmp_path_factory):
    """A predictor whose head, though untrained, says what the prior says, a little changed."""
    changes = {"TEST__threshold": "auto", "TRAIN__SOFS__prior_residual": True}
    return untrained_predictor(tiny_config(surfaces, tmp_path_factory.mktemp("unused"), **changes))


@pytest.fixture(scope="module")
def fixed(auto):
    return Predictor(auto.methods, auto.settings, torch.device("cpu"))


def support(seed, value=250, side=32):
    """An image with a square, and its mask; so large that it is seen whole, whatever is drawn."""
    rng = np.random.default_rng(seed)
    image, mask = surface(SIZE, rng), np.zeros(SIZE, np.uint8)
    top, left = int(rng.integers(0, SIZE[0] - side)), int(rng.integers(0, SIZE[1] - side))
    image[top : top + side, left : left + side], mask[top : top + side, left : left + side] = (
        value,
        1,
    )
    return image, mask


def thresholds_by_hand(fixed, rounds):
    """From rounds of supports, images and masks: what the first say of the second, against the third."""
    histograms = {method: ScoreCounts() for method in fixed.methods}
    for supports, image, mask in rounds:
        memory = fixed.set_support(*zip(*supports, strict=True))
        for method, answer in next(
            fixed.segment([np.ascontiguousarray(image)], memory)
        ).answers.items():
            histograms[method].update(answer.score, mask)
    return {method: best_threshold(found) for method, found in histograms.items()}


def taught(auto, supports):
    return auto.set_support(*zip(*supports, strict=True)).thresholds


def test_each_support_is_segmented_by_all_others(auto, fixed):
    """One defect is unlike the others: a support that helped to find itself would give other thresholds."""
    supports = [support(0), support(1, 230), support(2, 20)]
    others = [(supports[:i] + supports[i + 1 :], *pair) for i, pair in enumerate(supports)]
    assert taught(auto, supports) == pytest.approx(thresholds_by_hand(fixed, others), abs=2e-3)
    with_itself = thresholds_by_hand(fixed, [(supports, *pair) for pair in supports])
    assert all(
        abs(threshold - with_itself[name]) > 0.01
        for name, threshold in taught(auto, supports).items()
    )


def test_a_single_support_is_segmented_in_its_mirror_images(auto, fixed):
    image, mask = support(3)
    mirrored = [([(image, mask)], np.flip(image, axes), np.flip(mask, axes)) for axes in AXES]
    half_way = {
        name: (0.5 + found) / 2 for name, found in thresholds_by_hand(fixed, mirrored).items()
    }
    assert taught(auto, [(image, mask)]) == pytest.approx(half_way, abs=2e-3)


def test_a_single_support_known_in_the_mirror_is_turned_by_a_quarter(auto, fixed, monkeypatch):
    image, mask = support(3)
    turned = [([(image, mask)], np.rot90(image, k), np.rot90(mask, k)) for k in (1, 3)]
    for predictor in (auto, fixed):
        monkeypatch.setattr(predictor.encoder, "mirrors", MIRRORS)
    half_way = {
        name: (0.5 + found) / 2 for name, found in thresholds_by_hand(fixed, turned).items()
    }
    assert taught(auto, [(image, mask)]) == pytest.approx(half_way, abs=2e-3)


def test_an_image_given_twice_does_not_find_itself(auto, fixed):
    one, again, other = support(4), support(4), support(5, 200)
    alone = taught(auto, [one])
    assert taught(auto, [one, again]) == pytest.approx(alone, abs=2e-3)
    rounds = [([other], *one), ([other], *one), ([one, one], *other)]
    assert taught(auto, [one, again, other]) == pytest.approx(
        thresholds_by_hand(fixed, rounds), abs=2e-3
    )


def test_no_other_threshold_is_much_better_on_the_supports(auto, fixed):
    supports = [support(seed) for seed in range(3)]
    for method, threshold in taught(auto, supports).items():
        scores = []
        for number, (image, _) in enumerate(supports):
            memory = fixed.set_support(
                *zip(*(s for i, s in enumerate(supports) if i != number), strict=True)
            )
            scores.append(next(fixed.segment([image], memory)).answers[method].score)
        truths = [mask > 0 for _, mask in supports]
        best = max(iou_of(scores, truths, t) for t in np.linspace(0, 0.999, 300))
        assert iou_of(scores, truths, threshold) > 0.94 * best


def test_a_method_has_the_threshold_that_it_has_alone(auto):
    supports = [support(0), support(1, 200)]
    both = taught(auto, supports)
    assert both.keys() == auto.methods.keys() and len(set(both.values())) == 2
    for name, method in auto.methods.items():
        alone = Predictor({name: method}, auto.settings, torch.device("cpu"), threshold=None)
        assert taught(alone, supports) == pytest.approx({name: both[name]}, abs=2e-3)


def test_normal_images_are_known_in_each_round(auto, fixed):
    """One that looks like a defect tells more than any other."""
    supports, normal = [support(0), support(1, 230)], (support(2)[0], None)
    rounds = [([supports[1 - i], normal], *pair) for i, pair in enumerate(supports)]
    found = taught(auto, [*supports, normal])
    assert found == pytest.approx(thresholds_by_hand(fixed, rounds), abs=2e-3)
    assert all(
        abs(found[name] - threshold) > 0.01 for name, threshold in taught(auto, supports).items()
    )


def test_answers_are_cut_at_the_threshold_also_from_a_file(auto, fixed, tmp_path):
    supports, image = [support(0), support(1, 200)], support(7)[0]
    known = taught(auto, supports)
    first = auto.predict(image)
    assert first.threshold == known["SOFS"] != 0.5 and np.array_equal(
        first.mask, first.score > first.threshold
    )
    fixed.set_support(*zip(*supports, strict=True))
    np.testing.assert_allclose(fixed.predict(image).score, first.score, atol=1e-4)
    assert fixed.predict(image).threshold == 0.5
    auto.save_support(tmp_path / "a.safetensors")
    taught(auto, [support(8)])
    auto.load_support(tmp_path / "a.safetensors")
    assert json.dumps(auto.memory.thresholds) == json.dumps(known)
    assert auto.predict(image).threshold == first.threshold
    assert np.array_equal(auto.predict(image).mask, first.mask)
