from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers import picture, tiny_config, untrained_predictor, variant
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


@pytest.fixture(scope="module")
def written(taught, tmp_path_factory):
    """The tensors and the texts of a support file."""
    file = tmp_path_factory.mktemp("support") / "a.safetensors"
    taught.save_support(file)
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


@pytest.fixture
def refusal(taught, tmp_path):
    """The error that a file of some tensors and texts gets; "" where it answers as `taught`."""
    expected = answers(taught)

    def load(tensors, about):
        file = tmp_path / "b.safetensors"
        save_file({n: v.contiguous() for n, v in tensors.items()}, file, metadata=about)
        reader = variant(taught)
        try:
            reader.load_support(file)
        except WeightsError as error:
            assert "b.safetensors: " in str(error) and "teach the defect again" in str(error)
            assert len(str(error)) < 1000
            return str(error)
        for name, answer in answers(reader).items():
            np.testing.assert_allclose(answer.score, expected[name].score, atol=1e-5)
        return ""

    return load


@pytest.mark.parametrize(("defects", "normal"), [(0, 1), (2, 0), (2, 3)])
def test_a_file_keeps_supports_normal_images_and_thresholds(
    predictor, tmp_path, monkeypatch, defects, normal
):
    monkeypatch.setenv("HOME", str(tmp_path))
    one, other = (variant(predictor, threshold=None, memory_tokens=300) for _ in range(2))
    memory = one.set_support(*supports(defects, normal))
    assert set(memory.thresholds) == ({"SOFS", "prior"} if defects else set())
    one.save_support("~/new folder/a.safetensors")
    loaded = other.load_support(tmp_path / "new folder" / "a.safetensors")
    assert (loaded.thresholds, loaded.windowed) == (memory.thresholds, memory.windowed)
    assert len(loaded.normal) == (normal if defects else 0)
    for name, answer in answers(one).items():
        again = answers(other)[name]
        assert np.array_equal(answer.score, again.score)
        assert np.array_equal(answer.label, again.label)
        assert answer.threshold == again.threshold == memory.thresholds.get(name, 0.5)


def test_a_file_of_other_settings_weights_or_format_is_refused(taught, written, refusal, tmp_path):
    file, cpu = tmp_path / "a.safetensors", torch.device("cpu")
    with pytest.raises(ConfigError, match="set_support or load_support"):
        variant(taught).save_support(file)
    taught.save_support(file)
    other = Predictor(taught.methods, replace(taught.settings, crop_size=32), cpu)
    with pytest.raises(WeightsError, match="its settings are not those of this predictor"):
        other.load_support(file)
    prior = Predictor({"prior": taught.methods["prior"]}, taught.settings, cpu)
    with pytest.raises(WeightsError, match="its weights are not those"):
        prior.load_support(file)
    tensors, about = written
    assert "its format are not" in refusal(tensors, about | {"format": "sofs-support-1"})
    assert "its format are not" in refusal(tensors, {})
    for content in (b"", file.read_bytes()[:200], b"x" * 1000):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.safetensors: not a readable support file"):
            taught.load_support(file)
    with pytest.raises(WeightsError, match="no such support file"):
        taught.load_support(tmp_path / "c.safetensors")


def test_damaged_tensors_are_refused_or_change_nothing(written, refusal):
    """Each is needed, and no other; one of another shape or type may still hold the same."""
    tensors, about = written
    assert refusal(tensors, about) == "" and {"normal.1.0", "extras.SOFS.tokens"} <= tensors.keys()
    refused = 0
    # of several layers or normal images the first
    for name in (n for n in tensors if not n.endswith((".1", ".2")) and "l.1" not in n):
        rest, value = {n: v for n, v in tensors.items() if n != name}, tensors[name]
        assert "damaged" in refusal(rest, about), name
        double = [torch.cat([value, value], dim=axis) for axis in {0, value.dim() - 1}]
        for other in (*double, value.double()):
            refused += "damaged" in refusal(tensors | {name: other}, about)
    assert refused > 20
    assert "other does not belong there" in refusal(tensors | {"other": torch.zeros(1)}, about)
    renamed = {name.replace("normal.1.", "normal.x."): v for name, v in tensors.items()}
    assert "normal.1.0 is missing" in refusal(renamed, about)
    for name in ("background.1", "share", "normal.0.2", "extras.SOFS.tokens"):
        for bad in (float("nan"), float("inf")):
            value = tensors[name].clone()
            value.view(-1)[-1] = bad
            error = refusal(tensors | {name: value}, about)
            assert f"{name} holds values that are not finite" in error
    for change in (1, -1, -(10**9)):
        sizes = tensors["sizes"].clone()
        sizes[0] += change
        assert "sizes" in refusal(tensors | {"sizes": sizes}, about)


USES = ["{", "3", "{}", "[" * 200_000, '{"windowed": 1, "thresholds": {}}', '{"windowed": true}']
USES += [f'{{"windowed": true, "thresholds": {{"SOFS": {v}}}}}' for v in ('"high"', "NaN", "2")]


@pytest.mark.parametrize("use", USES)
def test_how_a_memory_is_used_is_checked(written, refusal, use):
    tensors, about = written
    assert "damaged" in refusal(tensors, about | {"use": use})


@pytest.fixture(scope="module")
def in_precision(surfaces, tmp_path_factory):
    """Makes a predictor as the config builds it, always of the same head."""
    folder, changes = tmp_path_factory.mktemp("log"), {"TRAIN__SOFS__prior_residual": True}

    def make(precision):
        config = tiny_config(surfaces, folder, TRAIN__precision=precision, **changes)
        return untrained_predictor(config)

    return make


@pytest.mark.parametrize(("taught_in", "asked_in"), [("fp16", "fp32"), ("fp32", "bf16")])
def test_a_defect_taught_in_one_precision_is_segmented_in_another(
    in_precision, tmp_path, taught_in, asked_in
):
    """The answer is that to the same supports there, but for the rounding; other weights are
    refused."""
    teacher, pupil = in_precision(taught_in), in_precision(asked_in)
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
    for part in ("backbone", "head"):
        other = in_precision("fp32")
        with torch.no_grad():
            parameters = list(getattr(other.methods["SOFS"], part).parameters())
            parameters[len(parameters) // 2].mul_(1.001)
        with pytest.raises(WeightsError, match="its weights are not those of this predictor"):
            other.load_support(tmp_path / "a.safetensors")
