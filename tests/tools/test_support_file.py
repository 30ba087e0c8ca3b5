from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers import picture, tiny_config, untrained_predictor, variant, write_other_weights
from tools.predictor import Predictor
from utils.errors import ConfigError, WeightsError

QUERY = picture(90, 130, seed=5)


def supports(defects=1, normal=2):
    """Images and masks."""
    masks = [np.zeros((90, 130), np.uint8) for _ in range(defects)]
    for number, mask in enumerate(masks):
        mask[20:40, 30 + number : 60] = 1
    return [picture(90, 130, i) for i in range(defects + normal)], masks + [None] * normal


def answers(predictor):
    return next(predictor.segment([(QUERY, [predictor.memory])])).answers[0]


@pytest.fixture(scope="module")
def taught(predictor):
    """A predictor with a defect and two normal images."""
    predictor = variant(predictor)
    predictor.set_support(*supports())
    return predictor


@pytest.mark.parametrize(("defects", "normal"), [(0, 1), (2, 3)])
def test_a_file_keeps_supports_normal_images_and_thresholds(
    predictor, tmp_path, monkeypatch, defects, normal
):
    monkeypatch.setenv("HOME", str(tmp_path))
    one, other = (variant(predictor, threshold=None, memory_tokens=300) for _ in range(2))
    memory = one.set_support(*supports(defects, normal))
    assert set(memory.thresholds) == ({"SOFS", "prior"} if defects else set())
    one.save_support("~/new folder/a.safetensors")
    loaded = other.load_support(tmp_path / "new folder" / "a.safetensors")
    assert (loaded.thresholds, loaded.window) == (memory.thresholds, memory.window)
    assert len(loaded.normal) == (normal if defects else 0)
    for name, answer in answers(one).items():
        again = answers(other)[name]
        assert np.array_equal(answer.score, again.score)
        assert np.array_equal(answer.label, again.label)
        assert answer.threshold == again.threshold == memory.thresholds.get(name, 0.5)


def test_a_file_of_other_settings_weights_or_format_is_refused(taught, tmp_path):
    file, cpu = tmp_path / "a.safetensors", torch.device("cpu")
    with pytest.raises(ConfigError, match="set_support or load_support"):
        variant(taught).save_support(file)
    taught.save_support(file)
    other = Predictor(taught.methods, replace(taught.settings, crop_size=32), cpu)
    with pytest.raises(WeightsError, match="its settings are not those of this predictor"):
        other.load_support(file)
    backbone = taught.backbone
    backbone.leave_out_position(2, taught.settings.image_size)
    with pytest.raises(WeightsError, match="its settings are not those of this predictor"):
        taught.load_support(file)
    backbone.leave_out_position(0, taught.settings.image_size)
    prior = Predictor({"prior": taught.methods["prior"]}, taught.settings, cpu)
    with pytest.raises(WeightsError, match="its weights are not those"):
        prior.load_support(file)
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        about = opened.metadata()
    background = torch.full_like(tensors["background.1"], float("nan"))
    for part, texts, words in (
        (tensors, about | {"format": "sofs-support-4"}, "its format are not"),
        (tensors, {}, "its format are not"),
        (tensors, about | {"use": "{"}, "damaged"),
        ({n: v for n, v in tensors.items() if n != "normal.1.0"}, about, "normal.1.0 is missing"),
        (tensors | {"background.1": background}, about, "background.1 holds values"),
    ):
        save_file(part, file, metadata=texts)
        with pytest.raises(WeightsError, match=rf"a\.safetensors: .*{words}.*teach the defect"):
            variant(taught).load_support(file)
    for content in (b"", file.read_bytes()[:200]):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.safetensors: not a readable support file"):
            taught.load_support(file)
    with pytest.raises(WeightsError, match="no such support file"):
        taught.load_support(tmp_path / "c.safetensors")


@pytest.mark.parametrize(("taught_in", "asked_in"), [("fp16", "fp32"), ("fp32", "bf16")])
def test_a_defect_taught_in_one_precision_is_segmented_in_another(
    surfaces, tmp_path, taught_in, asked_in
):
    """The answer is that to the same supports there, but for the rounding; other weights are
    refused."""

    def made(precision, **changes):  # always of the same head
        changes |= {"TRAIN__SOFS__prior_residual": True, "TRAIN__precision": precision}
        return untrained_predictor(tiny_config(surfaces, tmp_path, **changes))

    teacher, pupil = made(taught_in), made(asked_in)
    pupil.set_support(*supports())
    expected = answers(pupil)
    teacher.set_support(*supports())
    teacher.save_support(tmp_path / "a.safetensors")
    memory = pupil.load_support(tmp_path / "a.safetensors")
    dtype = torch.float32 if asked_in == "fp32" else torch.bfloat16
    assert {layer.dtype for layer in (*memory.foreground, *memory.background)} == {dtype}
    for name, answer in answers(pupil).items():
        difference = np.abs(answer.score - expected[name].score).max()
        assert difference < 0.05 < 15 * answer.score.std()
    other_head = made("fp32")
    with torch.no_grad():
        other_head.methods["SOFS"].head.own_scale.mul_(1.001)
    weights = write_other_weights(tmp_path / "w.pth")
    for other in (other_head, made("fp32", TRAIN__backbone_checkpoint=weights)):
        with pytest.raises(WeightsError, match="its weights are not those of this predictor"):
            other.load_support(tmp_path / "a.safetensors")


@pytest.mark.parametrize("damage", ["missing", "cut", "wider", "nan", "two sets"])
def test_damaged_tensors_are_refused(taught, tmp_path, damage):
    file = tmp_path / "a.safetensors"
    taught.save_support(file)
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    name = "foreground.0"
    value = tensors.pop(name)
    changed = {
        "cut": value[:, :-1],
        "wider": torch.cat([value, value], dim=-1),
        "nan": value * torch.nan,
        "two sets": torch.cat([value, value]),
    }
    tensors |= {} if damage == "missing" else {name: changed[damage].contiguous()}
    save_file(tensors, file, about)
    with pytest.raises(WeightsError, match=r"a\.safetensors: damaged"):
        variant(taught).load_support(file)
