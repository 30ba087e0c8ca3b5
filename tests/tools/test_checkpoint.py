from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer

from method_config import load_config
from models.backbone import Backbone
from models.head import Head
from models.methods.sofs import SOFS
from models.weights import read_weights
from tools.checkpoint import STATE_KEYS, load_head, load_state, save_head, save_state
from utils.errors import WeightsError


def model(seed=0, **options):
    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=28, patch_size=14, embed_dim=8, depth=1, num_heads=1, num_classes=0
    )
    vit.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    options = {"reduce_dim": 8, "embed_dim": 8} | options
    return SOFS(Backbone(vit, [0], 14), Head(8, 2, **options))


@pytest.mark.parametrize("options", [{}, {"meta_cls": False}, {"prior_residual": True}])
def test_a_head_comes_back_as_it_was(tmp_path, options):
    path = tmp_path / "new" / "head.safetensors"
    written, read = model(0, **options), model(1, **options)
    backbone = {n: p.clone() for n, p in read.backbone.state_dict().items()}
    save_head(path, written, "RNG_SEED: 54\n")
    load_head(path, read, "TEST.load_model_path")
    theirs = written.head.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in read.head.state_dict().items())
    assert all(
        torch.equal(value, backbone[name]) for name, value in read.backbone.state_dict().items()
    )
    with safe_open(path, "pt") as file:
        assert file.metadata()["config"] == "RNG_SEED: 54\n"
    assert [p.name for p in path.parent.iterdir()] == ["head.safetensors"]


def test_a_head_that_does_not_fit(tmp_path):
    save_head(tmp_path / "head.safetensors", model(reduce_dim=4), "")
    with pytest.raises(
        WeightsError, match=r"TEST\.load_model_path: .*head\.safetensors does not fit.*query_reduce"
    ):
        load_head(tmp_path / "head.safetensors", model(), "TEST.load_model_path")


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_a_head_under_the_prefix_of_a_training_is_read(tmp_path, prefix):
    written, read = model(0), model(1)
    state = {f"{prefix}{name}": value for name, value in written.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "head.pth")
    load_head(tmp_path / "head.pth", read, "TEST.load_model_path")
    assert all(
        torch.equal(value, written.head.state_dict()[name])
        for name, value in read.head.state_dict().items()
    )


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("TEST.load_model_path", r"head\.safetensors beside it"),
        ("TRAIN.backbone_checkpoint", "the weights of a backbone"),
    ],
)
def test_a_training_state_in_place_of_weights_is_told_as_that(tmp_path, key, remedy):
    save_state(
        tmp_path / "state.pth",
        dict.fromkeys(STATE_KEYS) | {"head": model().head.state_dict(), "optimizer": {}},
    )
    with pytest.raises(
        WeightsError, match=rf"{key}: .*state\.pth is a training state, .* {remedy}"
    ):
        read_weights(tmp_path / "state.pth", key)


def test_a_file_without_a_head(tmp_path):
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"KEY: .*other\.pth holds no parameters of a SOFS head"):
        load_head(tmp_path / "other.pth", model(), "KEY")


def test_a_state_comes_back_and_a_failed_write_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoints" / "state.pth"
    state = dict.fromkeys(STATE_KEYS) | {"head": {"w": torch.arange(3.0)}, "epoch": 7}
    save_state(path, state)
    assert load_state(path)["epoch"] == 7 and torch.equal(
        load_state(path)["head"]["w"], state["head"]["w"]
    )
    with pytest.raises(Exception, match="pickle"):
        save_state(path, state | {"epoch": lambda: None})
    assert load_state(path)["epoch"] == 7


@pytest.mark.parametrize("content", [{"epoch": 1}, [1], {"head.w": torch.zeros(1)}])
def test_something_else_is_no_state(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"TRAIN\.resume: .*x\.pth is no training state"):
        load_state(tmp_path / "x.pth")


class Strange:
    """A class that a weights file must not bring along."""


def test_missing_damaged_and_dangerous_states(tmp_path):
    with pytest.raises(WeightsError, match=r"TRAIN\.resume: no training state .*gone\.pth"):
        load_state(tmp_path / "gone.pth")
    save_state(tmp_path / "cut.pth", dict.fromkeys(STATE_KEYS, torch.zeros(100)))
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:-200])
    torch.save(dict.fromkeys(STATE_KEYS) | {"epoch": Strange()}, tmp_path / "strange.pth")
    reasons = {
        "cut": "is not a readable training state",
        "strange": r"was not loaded: it asks for .*Strange",
    }
    for name, reason in reasons.items():
        with pytest.raises(WeightsError, match=rf"TRAIN\.resume: .*{name}\.pth {reason}"):
            load_state(tmp_path / f"{name}.pth")


def test_a_state_whose_head_is_none_is_refused(tmp_path):
    save_state(tmp_path / "state.pth", dict.fromkeys(STATE_KEYS, 3))
    with pytest.raises(WeightsError, match=r"state\.pth: head holds no state dict"):
        load_state(tmp_path / "state.pth")


def test_two_copies_of_a_head_in_one_file_are_refused(tmp_path):
    """Which of them is meant cannot be told."""
    own = {f"head.{name}": value for name, value in model().head.state_dict().items()}
    torch.save(
        own | {f"module.{name}": 0 * value for name, value in own.items()}, tmp_path / "head.pth"
    )
    with pytest.raises(
        WeightsError, match=r"KEY: .*head\.pth: head\.\S+ and module\.head\.\S+ are one parameter"
    ):
        load_head(tmp_path / "head.pth", model(), "KEY")


@pytest.mark.parametrize("name", ["ema", "model_ema", "net"])
def test_a_wrapped_head_is_read(tmp_path, name):
    written, read = model(0), model(1)
    torch.save({"epoch": 3, name: written.state_dict()}, tmp_path / "head.pth")
    load_head(tmp_path / "head.pth", read, "KEY")
    assert all(
        torch.equal(value, written.head.state_dict()[n])
        for n, value in read.head.state_dict().items()
    )
    torch.save({"epoch": 3, "other": written.state_dict()}, tmp_path / "head.pth")
    with pytest.raises(
        WeightsError, match=r"holds no state dict \(names to tensors\), but epoch, other"
    ):
        load_head(tmp_path / "head.pth", read, "KEY")


def test_a_head_of_other_settings_is_told(tmp_path, caplog):
    """Shapes fit, and answers would be others."""
    path, trained = (
        tmp_path / "head.safetensors",
        load_config([], ["TRAIN.SOFS.transformer_nums_heads", 8]),
    )
    save_head(path, model(), trained.dump())
    load_head(path, model(), "KEY", trained)
    assert not caplog.records
    here = load_config([], ["TRAIN.SOFS.prior_layer_pointer", [0, 1], "TRAIN_SETUPS.epochs", 3])
    load_head(path, model(), "KEY", here)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"KEY: {path} was trained with TRAIN.SOFS.prior_layer_pointer [5, 6, 7, 8, 9, 10] (here "
        "[0, 1]), TRAIN.SOFS.transformer_nums_heads 8 (here 4)"
    )
