from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from datasets.large_images import ImageStrips
from models.methods.contrast import Contrast
from models.methods.prior import Prior
from models.pixel_probe import fit_pixel_probe
from tests.helpers import surface, variant
from tools.pixel_probes import example
from tools.predictor import Predictor

SIZE, MARGIN = (96, 128), 7


def part(seed):
    """A surface with a dark spot, marked generously: by a margin around what is seen."""
    rng = np.random.default_rng(seed)
    image, mask = surface(SIZE, rng), np.zeros(SIZE, np.uint8)
    centre = int(rng.integers(30, 98)), int(rng.integers(30, 66))
    cv2.circle(image, centre, 9, (20, 20, 20), -1)
    cv2.circle(mask, centre, 9 + MARGIN, 1, -1)
    return image, mask


@pytest.fixture(scope="module")
def probing(predictor):
    """A predictor of methods with and without log-odds, with pixel probes."""
    methods = {"contrast": Contrast(predictor.backbone), "prior": Prior(predictor.backbone)}
    options = {"refined": True, "pixel_probe": True}
    settings = replace(predictor.settings, support_windows=True)
    return Predictor(methods, settings, torch.device("cpu"), **options)


def answers(asked, image, memory=None):
    return next(asked.segment([(image, [memory or asked.memory])])).answers[0]


def iou(found, mask):
    return (found & (mask > 0)).sum() / (found | (mask > 0)).sum()


def test_masks_are_as_wide_as_those_of_the_supports(probing):
    supports, queries = [part(seed) for seed in range(4)], [part(seed) for seed in range(10, 16)]
    plain, gains = variant(probing, refined=True), []
    for asked in (plain, probing):
        asked.teach(supports)
    assert not plain.memory.pixel_probes and set(probing.memory.pixel_probes) == {"contrast"}
    for image, mask in queries:
        before, after = answers(plain, image), answers(probing, image)
        assert np.array_equal(before["prior"].label, after["prior"].label)
        gains.append(iou(after["contrast"].mask, mask) - iou(before["contrast"].mask, mask))
    assert np.mean(gains) > 0.05


def test_each_support_is_segmented_by_all_others(probing):
    """At most five of them; normal images help in each round."""
    supports = [part(seed) for seed in range(6)]
    normal = (surface(SIZE, np.random.default_rng(9)), None)
    fixed, found = variant(probing, normal_gate=0.0), []
    for number, (image, mask) in enumerate(supports[:5]):
        memory = fixed.teach([*supports[:number], *supports[number + 1 :], normal])
        score = answers(fixed, image, memory)["contrast"].score
        found.append(example(fixed.seen(score, ImageStrips(image), 0.5, memory.window), mask))
    expected = fit_pixel_probe(found)
    taught = probing.teach([*supports, normal])
    got = taught.pixel_probes["contrast"]
    features = found[0].features
    assert np.abs(expected.correct(features)).max() > 0.1
    np.testing.assert_allclose(got.correct(features), expected.correct(features), atol=1e-3)


def test_a_single_image_has_no_probe_nor_have_masks_that_are_not_refined(probing):
    one, other = part(0), part(1)
    assert not variant(probing, pixel_probe=True).teach([one, other]).pixel_probes
    assert not probing.teach([one]).pixel_probes
    assert not probing.teach([one, one, (other[0], None)]).pixel_probes
    assert probing.teach([one, other]).pixel_probes


def test_a_probe_is_fitted_about_the_threshold_that_is_chosen(probing):
    supports, (query, mask) = [part(seed) for seed in range(3)], part(10)
    auto = variant(probing, threshold=None, refined=True, pixel_probe=True)
    memory = auto.teach(supports)
    assert set(memory.thresholds) == {"contrast", "prior"} and memory.pixel_probes
    answer = answers(auto, query)["contrast"]
    assert answer.threshold == memory.thresholds["contrast"]
    assert np.array_equal(answer.mask, answer.score > answer.threshold)
    assert iou(answer.mask, mask) > 0.5


def test_a_support_file_keeps_the_probe(probing, tmp_path):
    probing.teach([part(0), part(1)])
    query, ours = part(10)[0], answers(probing, part(10)[0])["contrast"]
    probing.save_support(tmp_path / "a.safetensors")
    other = variant(probing, refined=True, pixel_probe=True)
    other.load_support(tmp_path / "a.safetensors")
    again = answers(other, query)["contrast"]
    assert np.array_equal(ours.score, again.score) and np.array_equal(ours.label, again.label)
