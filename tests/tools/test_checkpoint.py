from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors import safe_open
from timm.models.vision_transformer import VisionTransformer

from method_config import load_config
from models.backbone import Backbone
from models.head import Head
from models.methods.sofs import SOFS
from tests.helpers import picture, tiny_config, untrained_predictor
from tools.checkpoint import STATE_KEYS, load_head, load_state, save_head, save_state
from utils.errors import WeightsError


def model(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 8, "depth": 1, "num_heads": 1}
    vit = VisionTransformer(**sizes, num_classes=0)
    vit.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    return SOFS(Backbone(vit, [0], 14), Head(8, 2, **{"reduce_dim": 8, "embed_dim": 8} | options))


def same(module, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"meta_cls": False}, {"prior_residual": True}])
def test_a_head_comes_back_as_it_was(tmp_path, options):
    path = tmp_path / "new" / "head.safetensors"
    written, read = model(0, **options), model(1, **options)
    save_head(path, written, "RNG_SEED: 54\n")
    load_head(path, read, "TEST.load_model_path")
    assert same(read.head, written.head) and same(read.backbone, model(1, **options).backbone)
    with safe_open(path, "pt") as file:
        assert file.metadata()["config"] == "RNG_SEED: 54\n"
    assert [p.name for p in path.parent.iterdir()] == ["head.safetensors"]


def test_a_head_answers_as_before_it_was_saved(surfaces, tmp_path):
    """Also supports that were taught before; those of another head are refused."""
    cfg = tiny_config(surfaces, tmp_path, DATASET__grids=[1, 3])
    written, read, other = (untrained_predictor(cfg) for _ in range(3))
    for number, predictor in enumerate((written, read, other)):
        torch.manual_seed(number)
        for parameter in predictor.methods["SOFS"].head.parameters():
            torch.nn.init.normal_(parameter, 0, 0.3)
    mask, file = np.zeros((90, 130), np.uint8), tmp_path / "head.safetensors"
    mask[20:30, 30:40] = 1
    written.set_support([picture(90, 130)], [mask])
    written.save_support(tmp_path / "support.safetensors")
    save_head(file, written.methods["SOFS"], "")
    load_head(file, read.methods["SOFS"], "TEST.load_model_path")
    with pytest.raises(WeightsError, match="its weights are not those"):
        other.load_support(tmp_path / "support.safetensors")
    ours = written.predict(picture(90, 130, 1)).score
    read.load_support(tmp_path / "support.safetensors")
    other.set_support([picture(90, 130)], [mask])
    assert len(read.memory.scales) == 2 and ours.std() > 0.01
    assert np.array_equal(read.predict(picture(90, 130, 1)).score, ours)
    assert np.abs(other.predict(picture(90, 130, 1)).score - ours).max() > 0.01


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("model.", "ema"), ("module._orig_mod.", "state_dict")]
)
def test_a_head_under_the_prefix_and_the_name_of_a_training_is_read(tmp_path, prefix, wrapper):
    written, read = model(0), model(1)
    state = {f"{prefix}{name}": value for name, value in written.state_dict().items()}
    torch.save({"epoch": 3, wrapper: state}, tmp_path / "head.pth")
    load_head(tmp_path / "head.pth", read, "KEY")
    assert same(read.head, written.head)


HEAD = {f"head.{name}": value for name, value in model().head.state_dict().items()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "other": HEAD}, r"holds no state dict \(names to tensors\), but epoch"),
        ({"conv.weight": torch.zeros(1)}, "holds no parameters of a SOFS head"),
        (HEAD | {"head.query_reduce.weight": torch.zeros(1)}, "does not fit.*query_reduce"),
        (HEAD | {f"module.{n}": v for n, v in HEAD.items()}, "module.head.* are one parameter"),
    ],
)
def test_a_file_without_one_head_that_fits_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(WeightsError, match=rf"KEY: .*head\.pth.* {words}"):
        load_head(tmp_path / "head.pth", model(), "KEY")


def test_a_state_comes_back_and_a_failed_write_leaves_the_old_one(tmp_path):
    path = tmp_path / "checkpoints" / "state.pth"
    state = dict.fromkeys(STATE_KEYS) | {"head": {"w": torch.arange(3.0)}, "epoch": 7}
    save_state(path, state)
    assert torch.equal(load_state(path)["head"]["w"], state["head"]["w"])
    with pytest.raises(Exception, match="pickle"):
        save_state(path, state | {"epoch": lambda: None})
    assert load_state(path)["epoch"] == 7


class Strange:
    """A class that a weights file must not bring along."""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no training state .*x"),
        (b"PK\x03\x04" + bytes(300), "x.pth cannot be read .*train anew"),
        ({"epoch": 1}, "x.pth is no training state"),
        (dict.fromkeys(STATE_KEYS, Strange()), "x.pth was not loaded: it asks for .*Strange"),
    ],
)
def test_missing_damaged_dangerous_and_other_files_are_no_states(tmp_path, content, words):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"TRAIN\.resume: .*{words}"):
        load_state(path)


def test_settings_with_which_a_head_was_trained_and_that_differ_are_named(tmp_path, caplog):
    """Shapes fit, and answers would be others."""
    path = tmp_path / "head.safetensors"
    trained = load_config([], ["TRAIN.SOFS.transformer_nums_heads", 8])
    save_head(path, model(), trained.dump())
    load_head(path, model(), "KEY", trained)
    assert not caplog.records
    here = load_config([], ["TRAIN.SOFS.prior_layer_pointer", [0, 1], "TRAIN_SETUPS.epochs", 3])
    load_head(path, model(), "KEY", here)
    (record,) = caplog.records
    differences = "TRAIN.SOFS.prior_layer_pointer [5, 6, 7, 8, 9, 10] (here [0, 1]), "
    differences += "TRAIN.SOFS.transformer_nums_heads 8 (here 4)"
    assert record.getMessage() == f"KEY: {path} was trained with {differences}"
