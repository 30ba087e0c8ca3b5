"""The files of a training: the head as safetensors, and a state to go on from."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from yacs.config import CfgNode

from method_config.values import leaves
from models.methods.sofs import SOFS
from models.weights import load_checked, read_torch, read_weights
from utils.distributed import is_main
from utils.errors import ConfigError, WeightsError
from utils.output_files import write_whole

LOG = logging.getLogger(__name__)
AUTO = "auto"
HEAD = Path("checkpoints", "head.safetensors")
BEST, STATE = HEAD.with_name("best.safetensors"), HEAD.with_name("state.pth")
STATE_KEYS = {"head", "optimizer", "scaler", "epoch", "within", "config", "history", "best"}
# settings that choose which images are held out, and with them what the best score so far means
FIXED = ("RNG_SEED", "TRAIN_SETUPS.TEST_SETUPS.val_state", "TRAIN_SETUPS.TEST_SETUPS.val_share")
# settings, or beginnings of their names, without an effect on what is learnt
FREE = ("DEVICE", "DIST_BACKEND", "OUTPUT_DIR", "RUN_NAME", "TEST.", "TEST_SETUPS.",
        "DATASET.vision_data_", "TRAIN.enable", "TRAIN.resume", "TRAIN.save_model",
        "TRAIN_SETUPS.num_workers", "TRAIN_SETUPS.TEST_SETUPS.")  # fmt: skip
_TRANSFORMER = r"^feature_recorrect\.query_semantic_transformer\.mix_transformer\."
_ATTENTION = _TRANSFORMER + r"sa_layers\.(\d+)\.attn\.attn\.linear_"
# published names of parameters and ours, in the order in which they are tried
RENAMES = {
    # of DistributedDataParallel, Lightning and torch.compile
    r"^(?:module\.|model\.|_orig_mod\.)+": "",
    rf"{_ATTENTION}q\.": r"head.transformer.\1.attention.query.",
    rf"{_ATTENTION}k\.": r"head.transformer.\1.attention.key.",
    rf"{_ATTENTION}v\.": r"head.transformer.\1.attention.value.",
    rf"{_ATTENTION}o\.": r"head.transformer.\1.attention.out.",
    rf"{_TRANSFORMER}sa_layers\.(\d+)\.ffn\.layers\.": r"head.transformer.\1.feed_forward.",
    rf"{_TRANSFORMER}sa_layers\.(\d+)\.": r"head.transformer.\1.",
    rf"{_TRANSFORMER}support_prototype\.": "head.support_prototype.",
    r"^feature_recorrect\.down_query\.": "head.query_reduce.",
    r"^feature_recorrect\.down_supp\.": "head.support_reduce.",
    r"^feature_recorrect\.down_supp_semantic\.": "head.prototype_reduce.",
    r"^feature_recorrect\.supp_merge_semantic\.": "head.support_mix.",
    r"^feature_recorrect\.query_merge_semantic\.": "head.query_mix.",
    r"^feature_recorrect\.cls_semantic\.": "head.classifier.",
}


def our_name(published: str) -> str:
    """Our name of a published parameter; a name of ours is returned as it is."""
    for pattern, replacement in RENAMES.items():
        published = re.sub(pattern, replacement, published)
    return published


def head_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's part of a checkpoint, published or ours, under the names of `models.head.Head`; a
    published backbone is left out: it has a file of its own. WeightsError: two names stand for one
    parameter."""
    given: dict[str, str] = {}
    for name in state:
        ours = our_name(name)
        if ours in given and ours.startswith("head."):
            raise WeightsError(f"{given[ours]} and {name} are one parameter of the head; keep one "
                               "copy of it in the file")  # fmt: skip
        given[ours] = name
    head = {ours: state[name] for ours, name in given.items() if ours.startswith("head.")}
    return {ours.removeprefix("head."): value for ours, value in head.items()}


def save_head(path: Path, model: SOFS, config: str) -> None:
    """Write the trained part as safetensors, names `head.*`, with the config as metadata; whole or
    not at all."""
    state = model.head.state_dict().items()
    tensors = {f"head.{name}": value.contiguous().cpu() for name, value in state}
    write_whole(path, save(tensors, metadata={"format": "pt", "config": config}))


def load_head(path: str | Path, model: SOFS, key: str, cfg: CfgNode | None = None) -> None:
    """Load a head of ours or a published checkpoint, a `.safetensors` or PyTorch file that the
    config key `key` names, into the model. A warning names the settings of the head's training that
    differ from `cfg`, with which the model is built.

    WeightsError: missing, unreadable, without a head, or not fitting; lists the first wrong names
    and shapes.
    """
    weights = read_weights(path, key)
    try:
        state = head_state(weights)
    except WeightsError as error:
        raise WeightsError(f"{key}: {path}: {error}") from error
    if not state:
        names = ", ".join(list(weights)[:3]) or "nothing"
        raise WeightsError(
            f"{key}: {path} holds no parameters of a SOFS head (names head.* or feature_recorrect.*"
            f"), but {names}; take checkpoints/head.safetensors of a training, or the published one"
        )
    load_checked(model.head, state, f"{key}: {path}")
    if cfg is None or Path(path).suffix != ".safetensors" or not is_main():
        return
    with safe_open(path, "pt") as file:
        config = (file.metadata() or {}).get("config", "")
    try:
        trained = yaml.safe_load(config)
    except yaml.YAMLError:  # of another program
        return
    here, other = dict(leaves(cfg)), []
    for name, value in leaves(trained) if isinstance(trained, dict) else ():
        model = name == "TRAIN.backbone" or name.startswith("TRAIN.SOFS.")
        if model and name != "TRAIN.SOFS.smooth_r" and value != here.get(name, value):
            other.append(f"{name} {value} (here {here[name]})")
    if other:
        LOG.warning("%s: %s was trained with %s", key, path, ", ".join(other))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state, whole or not at all."""
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, content.getbuffer())


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a training state, tensors and plain values only. WeightsError: it is none."""
    expected = "checkpoints/state.pth of a run"
    if not Path(path).is_file():
        raise WeightsError(f"TRAIN.resume: no training state {path}; set it to {expected}")
    state = read_torch(Path(path), "TRAIN.resume")
    if not isinstance(state, dict) or not set(state) >= STATE_KEYS:
        raise WeightsError(f"TRAIN.resume: {path} is no training state; expected {expected}")
    return state


def epochs_done(path: Path) -> int:
    """Whole epochs of the training state in a file, see `load_state`; 0 where there is none."""
    return load_state(path)["epoch"] if path.is_file() else 0


def compare_settings(cfg: CfgNode, config: str, file: Path) -> None:
    """Warn of settings that differ from those that the state in a file was trained with, its config
    as YAML. ConfigError: with the present ones other images would be held out."""
    earlier = dict(leaves(yaml.safe_load(config)))
    for key, value in leaves(cfg):
        before = earlier.get(key, value)
        if key in FIXED and value != before:
            reason = f"{file} was written with {key} {before!r}, now it is {value!r}"
            remedy = "and other images would be held out; set it back"
            raise ConfigError(f"TRAIN.resume: {reason}, {remedy}")
        if value != before and not key.startswith(FREE):
            LOG.warning("%s was %r in the training that goes on, now it is %r", key, before, value)
