"""Supports and queries at two scales."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from datasets import large_images
from datasets.windows import tile
from tests.datasets.bad_files import saved
from tests.helpers import picture, variant
from tools.auto_threshold import best_threshold
from tools.predictor import Predictor
from utils.errors import WeightsError
from utils.metrics.score_curves import ScoreCounts

SIZE = (100, 150)


def supports(normal=1):
    """Two images with a small defect each and their masks, and some normal images."""
    images, masks = [picture(*SIZE, seed=i) for i in range(2 + normal)], []
    for number in range(2):
        mask = np.zeros(SIZE, np.uint8)
        mask[20:40, 30 + 20 * number :][:, :20] = 1
        masks.append(mask)
    return images, masks + [None] * normal


def taught(predictor, grids=(1, 2, 3), normal=1, **changes):
    """A predictor with grids that knows two small defects and some normal images."""
    settings = replace(predictor.settings, grids=grids)
    asked = Predictor(predictor.methods, settings, torch.device("cpu"), normal_gate=0.0, **changes)
    asked.set_support(*supports(normal))
    return asked


@pytest.fixture(scope="module")
def scaled(predictor):
    return taught(predictor)


def apart(memory):
    """The memories of the two scales, each alone, with the thresholds of the whole."""
    return [replace(m, coarse=None, thresholds=memory.thresholds) for m in memory.scales]


def test_supports_are_taught_at_both_scales_with_the_normal_images(scaled):
    memory, coarse = scaled.memory.scales
    assert (memory.window, coarse.window) == (34, 50) and coarse.coarse is None
    for scale in (memory, coarse):
        (normal,), count = scale.normal, len(tile(*SIZE, scale.window))
        assert normal[0].shape[1] == count * 64
    whole = taught(scaled, (1,)).memory
    assert whole.window == SIZE[0] and whole.coarse is None


def test_the_score_is_the_mean_of_those_at_each_scale(scaled, tmp_path, monkeypatch):
    """As array and as a file in strips, beside other memories and images."""
    image, other = picture(170, 130, seed=8), replace(scaled.memory.coarse, window=0)
    memories = [*apart(scaled.memory), scaled.memory, other, scaled.memory]
    file = saved(tmp_path / "a.png", image)
    (at_once,) = scaled.segment([(image, memories)])
    monkeypatch.setattr(large_images, "AT_ONCE", 10_000)
    strips, _, alone = scaled.segment([(file, memories), (picture(60, 90), memories[2:4]),
                                       (file, memories[2:3])])  # fmt: skip
    assert strips.image.pixels is None
    for outcome in (at_once, strips):
        first, second, *both = outcome.answers
        assert len(both) == 3
        for name in scaled.methods:
            mean = (first[name].score + second[name].score) / 2
            assert np.abs(first[name].score - second[name].score).max() > 1e-3
            for answers in (both[0], both[2], alone.answers[0]):
                answer = answers[name]
                np.testing.assert_allclose(answer.score, mean, atol=1e-5)
                assert np.array_equal(answer.label, answer.score > answer.threshold)
                assert answer.label.dtype == np.uint8 and answer.threshold == 0.5
                assert answer.windows == first[name].windows + second[name].windows == 20 + 12
            assert both[1][name].windows == 1


def test_the_threshold_is_chosen_on_the_mean_of_the_scores_at_both_scales(predictor):
    """Each support is segmented by the other one, at the two scales of both."""
    settings = replace(predictor.settings, grids=(1, 2, 3), support_windows=True)
    counts = {name: ScoreCounts() for name in predictor.methods}
    asked, fixed = (
        Predictor(predictor.methods, settings, torch.device("cpu"), threshold=t, normal_gate=0.0)
        for t in (None, 0.5)
    )
    images, masks = supports()
    asked.set_support(images, masks)
    for own, other in ((0, 1), (1, 0)):
        memory = fixed.set_support([images[other], images[2]], [masks[other], None])
        assert len(memory.scales) == 2
        answers = next(fixed.segment([(images[own], [memory])])).answers[0]
        for name, answer in answers.items():
            counts[name].update(answer.score, masks[own])
    chosen = {name: best_threshold(scores) for name, scores in counts.items()}
    assert asked.memory.thresholds == pytest.approx(chosen, abs=2e-3)
    answers = next(asked.segment([(picture(*SIZE, seed=8), [asked.memory])])).answers[0]
    for name, answer in answers.items():
        assert answer.threshold == asked.memory.thresholds[name]
        assert np.array_equal(answer.label, answer.score > answer.threshold)


@pytest.mark.parametrize("normal", [0, 2])
def test_a_support_file_keeps_both_scales(predictor, tmp_path, normal):
    one = taught(predictor, normal=normal, threshold=None)
    one.save_support(tmp_path / "a.safetensors")
    other = Predictor(one.methods, one.settings, torch.device("cpu"))
    loaded = other.load_support(tmp_path / "a.safetensors")
    assert [m.window for m in loaded.scales] == [m.window for m in one.memory.scales] == [34, 50]
    query = picture(120, 140, seed=8)
    ours, theirs = (next(p.segment([(query, [p.memory])])).answers[0] for p in (one, other))
    for name, answer in ours.items():
        for part, value in asdict(answer).items():
            assert np.array_equal(value, getattr(theirs[name], part)), part


@pytest.mark.parametrize("damage", ["missing", "cut", "nan", "two sets", "no layer", "all missing"])
def test_a_damaged_coarse_tensor_is_refused(scaled, tmp_path, damage):
    file, name = tmp_path / "a.safetensors", "coarse.foreground.0"
    scaled.save_support(file)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        tensors = {n: opened.get_tensor(n) for n in opened.keys()}  # noqa: SIM118
    value = tensors[name]
    if damage == "no layer":
        tensors = {n: t for n, t in tensors.items() if not n.startswith("coarse.mean.")}
    elif damage == "all missing":
        tensors = {n: t for n, t in tensors.items() if not n.startswith("coarse.")}
    elif damage == "missing":
        del tensors[name]
    else:
        changed = {"cut": value[:, :-1], "nan": value * torch.nan,
                   "two sets": torch.cat([value, value])}  # fmt: skip
        tensors[name] = changed[damage].contiguous()
    save_file(tensors, file, about)
    with pytest.raises(WeightsError, match=r"a\.safetensors: damaged"):
        variant(scaled).load_support(file)
