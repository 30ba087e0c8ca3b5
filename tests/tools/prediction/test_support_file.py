from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.helpers import picture, tiny_config, untrained_predictor, variant
from utils.errors import WeightsError


@pytest.fixture(scope="module")
def written(predictor, tmp_path_factory):
    """A taught defect with two normal images as the tensors and the texts of its file."""
    file = tmp_path_factory.mktemp("support") / "a.safetensors"
    masks = [torch.zeros(90, 130).numpy(), None, None]
    masks[0][20:40, 30:60] = 1
    taught = variant(predictor)
    taught.set_support([picture(90, 130, i) for i in range(3)], masks)
    taught.save_support(file)
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def refusal(predictor, folder, tensors, about):
    """Why a file is refused."""
    save_file(tensors, folder / "b.safetensors", metadata=about)
    with pytest.raises(
        WeightsError, match=r"b\.safetensors: damaged, .*; teach the defect again"
    ) as error:
        variant(predictor).load_support(folder / "b.safetensors")
    return str(error.value)


def test_the_file_as_it_was_written_is_read(predictor, written, tmp_path):
    tensors, about = written
    assert {"normal.1.0", "summary.tokens", "keys.2"} <= tensors.keys()
    save_file(tensors, tmp_path / "a.safetensors", metadata=about)
    assert len(variant(predictor).load_support(tmp_path / "a.safetensors").known.normal) == 2


def test_each_tensor_is_needed_and_no_other(predictor, written, tmp_path):
    tensors, about = written
    for name in tensors:
        rest = {n: v for n, v in tensors.items() if n != name}
        assert f"{name} is missing" in refusal(predictor, tmp_path, rest, about)
    assert "other does not belong there" in refusal(
        predictor, tmp_path, tensors | {"other": torch.zeros(1)}, about
    )


def test_each_shape_and_kind_of_number_is_held_against_the_others(predictor, written, tmp_path):
    tensors, about = written
    for name, value in tensors.items():
        for other in (
            torch.cat([value, value], dim=-1),
            value.unsqueeze(0),
            torch.cat([value, value], dim=0),
        ):
            said = refusal(predictor, tmp_path, tensors | {name: other}, about)
            assert (
                "does not fit the model and the other tensors" in said
                or "sizes do not add up" in said
            )
        kind = torch.int32 if value.is_floating_point() else torch.float32
        assert f"{name} is of {kind}" in refusal(
            predictor, tmp_path, tensors | {name: value.to(kind)}, about
        )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(predictor, written, tmp_path, bad):
    tensors, about = written
    for name in ("keys.1", "share", "normal.0.2", "summary.tokens"):
        value = tensors[name].clone()
        value.view(-1)[-1] = bad
        said = refusal(predictor, tmp_path, tensors | {name: value}, about)
        assert f"{name} holds values that are not finite" in said


def test_sizes_of_the_blocks_add_up(predictor, written, tmp_path):
    tensors, about = written
    for change in (1, -1, -(10**9)):
        sizes = tensors["sizes"].clone()
        sizes[0] += change
        assert "sizes do not add up" in refusal(
            predictor, tmp_path, tensors | {"sizes": sizes}, about
        )


@pytest.mark.parametrize(
    "use",
    [
        "{", "", "3", "[]", "{}", "null", '{"windowed": true}', '{"windowed": 1, "thresholds": {}}',
        '{"windowed": true, "thresholds": []}', '{"windowed": true, "thresholds": {"SOFS": "high"}}',
        '{"windowed": true, "thresholds": {"SOFS": NaN}}', '{"windowed": true, "thresholds": {"SOFS": 2}}',
    ],
)  # fmt: skip
def test_how_it_is_used_is_checked(predictor, written, tmp_path, use):
    tensors, about = written
    assert "how it is used cannot be read" in refusal(
        predictor, tmp_path, tensors, about | {"use": use}
    )
    rest = {name: text for name, text in about.items() if name != "use"}
    assert "how it is used cannot be read" in refusal(predictor, tmp_path, tensors, rest)


def test_use_nested_too_deeply_is_refused_in_few_words(predictor, written, tmp_path):
    tensors, about = written
    assert len(refusal(predictor, tmp_path, tensors, about | {"use": "[" * 200_000})) < 1000


def test_normal_images_of_other_numbers_are_refused(predictor, written, tmp_path):
    tensors, about = written
    other = {name.replace("normal.1.", "normal.x."): value for name, value in tensors.items()}
    assert other.keys() != tensors.keys()
    assert "normal.1.0 is missing" in refusal(predictor, tmp_path, other, about)


@pytest.fixture(scope="module")
def by_precision(surfaces, tmp_path_factory):
    """Predictors of the same head and backbone as the config builds them, by precision."""
    folder = tmp_path_factory.mktemp("log")
    heads = {"TRAIN__SOFS__prior_residual": True}
    return {
        precision: untrained_predictor(
            tiny_config(surfaces, folder, TRAIN__precision=precision, **heads)
        )
        for precision in ("fp32", "bf16", "fp16")
    }


@pytest.mark.parametrize("taught", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_a_defect_taught_in_one_precision_is_known_in_another(
    by_precision, tmp_path, taught, asked
):
    """It answers as one that was taught there, but for the rounding."""
    mask = np.zeros((90, 130), np.uint8)
    mask[20:40, 30:60] = 1
    teacher, pupil, image = by_precision[taught], by_precision[asked], picture(90, 130, 5)
    supports = [picture(90, 130, i) for i in range(2)], [mask, None]
    pupil.set_support(*supports)
    expected = next(pupil.segment([image], pupil.memory)).answers
    teacher.set_support(*supports)
    teacher.save_support(tmp_path / "a.safetensors")
    pupil.load_support(tmp_path / "a.safetensors")
    assert {k.dtype for k in pupil.memory.known.keys} == {
        torch.float32 if asked == "fp32" else torch.bfloat16
    }
    for name, answer in next(pupil.segment([image], pupil.memory)).answers.items():
        difference = np.abs(answer.score - expected[name].score)
        assert difference.max() < (1e-6 if taught == asked else 0.05), name
        assert answer.score.std() > 0.003, "there is something to differ in"


def test_other_weights_are_refused_in_any_precision(by_precision, surfaces, tmp_path):
    """Be it of the backbone or of the head."""
    teacher = by_precision["bf16"]
    teacher.set_support([picture(90, 130)], [None])
    teacher.save_support(tmp_path / "a.safetensors")
    for part in ("backbone", "head"):
        other = untrained_predictor(
            tiny_config(surfaces, tmp_path, TRAIN__SOFS__prior_residual=True)
        )
        with torch.no_grad():
            parameters = list(getattr(other.methods["SOFS"], part).parameters())
            parameters[len(parameters) // 2].mul_(1.001)
        with pytest.raises(WeightsError, match="its weights are not those of this predictor"):
            other.load_support(tmp_path / "a.safetensors")
