from __future__ import annotations

import numpy as np
import pytest
import torch

from tools.predictor import Predictor


@pytest.fixture
def supports():
    """Five supports (5, 3, 64, 64) and their masks."""
    masks = torch.zeros(5, 64, 64, dtype=torch.uint8)
    masks[:, 10:30, 20:50] = 1
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(0)), masks


@pytest.fixture
def passes(predictor):
    """Batch sizes of the backbone's forward passes, in their order."""
    sizes = []
    hook = predictor.backbone.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    yield sizes
    hook.remove()


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def variant(predictor, **changes):
    options = {"image_size": 64, "crop_size": 64, "device": torch.device("cpu")} | changes
    return Predictor(predictor.methods, **options)


def test_methods_share_each_pass_and_supports_are_seen_once(predictor, passes, supports):
    assert list(predictor.methods) == ["SOFS", "prior"]
    memory = predictor.remember(*supports)
    assert passes == [4, 1]
    for _ in range(2):
        passes.clear()
        answers = predictor.segment(picture(150, 192), memory, windowed=True)
        assert passes == [4, 4, 1], "nine windows"
    passes.clear()
    predictor.segment(picture(150, 192), memory, windowed=False)
    assert passes == [1]
    assert list(answers) == ["SOFS", "prior"]
    assert not np.array_equal(answers["SOFS"].score, answers["prior"].score)


def test_a_method_answers_alike_alone_and_beside_another(predictor, supports):
    image, both = picture(70, 130), predictor.segment(picture(70, 130), predictor.remember(*supports), windowed=True)
    for name, method in predictor.methods.items():
        alone = Predictor({name: method}, image_size=64, crop_size=64, device=torch.device("cpu"))
        answer = alone.segment(image, alone.remember(*supports), windowed=True)[name]
        np.testing.assert_allclose(answer.score, both[name].score, atol=1e-6)


def test_windows_per_pass_do_not_change_the_answer(predictor, supports):
    image = picture(150, 192)
    scores = []
    for count in (1, 3, 100):
        asked = variant(predictor, window_batch=count)
        answers = asked.segment(image, asked.remember(*supports), windowed=True)
        scores.append([answers[name].score for name in answers])
    for other in scores[1:]:
        np.testing.assert_allclose(other, scores[0], atol=1e-5)


@pytest.mark.parametrize("merge", ["probability", "reference"])
def test_a_window_over_a_small_image_is_the_whole_image(predictor, supports, merge):
    asked = variant(predictor, merge=merge)
    memory, image = asked.remember(*supports), picture(40, 51)
    windowed, resized = (asked.segment(image, memory, windowed=w) for w in (True, False))
    for name in asked.methods:
        assert np.array_equal(windowed[name].score, resized[name].score)
        assert np.array_equal(windowed[name].label, resized[name].label)


@pytest.mark.parametrize("size", [(33, 201), (65, 64), (129, 131), (1, 7)])
@pytest.mark.parametrize("windowed", [True, False])
def test_answers_have_the_size_of_the_image(predictor, supports, size, windowed):
    answers = predictor.segment(picture(*size), predictor.remember(*supports), windowed=windowed)
    for answer in answers.values():
        assert answer.score.shape == answer.mask.shape == size
        assert answer.score.dtype == np.float32 and answer.label.dtype == np.uint8 and answer.mask.dtype == bool
        assert answer.score.min() >= 0 and answer.score.max() <= 1


def test_windows_see_their_own_part_of_the_image(predictor, supports):
    """A change in the lower right window leaves the scores of the upper left one as they are."""
    image, memory = picture(128, 128), predictor.remember(*supports)
    changed = image.copy()
    changed[64:, 64:] = 0
    before, after = (predictor.segment(i, memory, windowed=True)["prior"].score for i in (image, changed))
    assert np.array_equal(before[:64, :64], after[:64, :64])
    assert np.abs(before[64:, 64:] - after[64:, 64:]).max() > 0.01


def test_threshold_cuts_the_score(predictor, supports):
    image, asked = picture(64, 64), variant(predictor, threshold=0.45)
    answer = asked.segment(image, asked.remember(*supports), windowed=False)["prior"]
    assert np.array_equal(answer.mask, answer.score > 0.45)
    assert 0 < answer.mask.mean() < 1


def test_half_precision_stays_near(predictor, supports):
    image, half = picture(64, 64), variant(predictor, precision="bf16")
    exact = predictor.segment(image, predictor.remember(*supports), windowed=False)
    answers = half.segment(image, half.remember(*supports), windowed=False)
    for name, answer in answers.items():
        assert answer.score.dtype == np.float32
        assert 0 < np.abs(answer.score - exact[name].score).max() < 0.1
