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
from models.methods import Method
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
        "DATASET.vision_data_", "TRAIN.enable", "TRAIN.feature_cache_path", "TRAIN.resume",
        "TRAIN.save_model", "TRAIN_SETUPS.num_workers", "TRAIN_SETUPS.TEST_SETUPS.")  # fmt: skip
OF_THE_BACKBONE = ("TRAIN.backbone", "TRAIN.SOFS.prior_layer_pointer", "TRAIN.SOFS.vit_patch_size",
                   "TRAIN.position_directions")  # fmt: skip
OF_THE_LOSS = ("TRAIN.SOFS.smooth_r",)
_TRANSFORMER = r"^feature_recorrect\.query_semantic_transformer\.mix_transformer\."
_ATTENTION = _TRANSFORMER + r"sa_layers\.(\d+)\.attn\.attn\.linear_"
# published names of parameters of SOFS and ours, in the order in which they are tried
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
    """The head's part of a checkpoint, published or ours, under the names of a method's `head`; a
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


def save_head(path: Path, model: Method, config: str) -> None:
    """Write the trained part as safetensors, names `head.*`, with the method's name and the config
    as metadata; whole or not at all."""
    state = model.head.state_dict().items()
    tensors = {f"head.{name}": value.contiguous().cpu() for name, value in state}
    about = {"format": "pt", "method": model.name, "config": config}
    write_whole(path, save(tensors, metadata=about))


def load_head(path: str | Path, model: Method, key: str, cfg: CfgNode | None = None) -> None:
    """Load a head of ours or a published checkpoint, a `.safetensors` or PyTorch file that the
    config key `key` names, into the model. A warning names the settings of the head's training that
    differ from `cfg`, with which the model is built.

    WeightsError: missing, unreadable, without a head, of another method, or not fitting; lists the
    first wrong names and shapes.
    """
    weights, about = read_weights(path, key), _metadata(path)
    method = _method_of(weights, about) or model.name
    if method != model.name:
        remedy = f"set {key.split('.')[0]}.method to {method}, or take a head of {model.name}"
        raise WeightsError(f"{key}: {path} holds a head of {method}, not of {model.name}; {remedy}")
    try:
        state = head_state(weights)
    except WeightsError as error:
        raise WeightsError(f"{key}: {path}: {error}") from error
    if not state:
        names, published = ", ".join(list(weights)[:3]) or "nothing", model.name == SOFS.name
        known = f"head.*{' or feature_recorrect.*' if published else ''}"
        remedy = f"of a training{', or the published one' if published else ''}"
        raise WeightsError(
            f"{key}: {path} holds no parameters of a {model.name} head (names {known}), but "
            f"{names}; take checkpoints/head.safetensors {remedy}"
        )
    load_checked(model.head, state, f"{key}: {path}")
    if cfg is not None and is_main():
        _compare_training(cfg, about.get("config", ""), model.name, f"{key}: {path}")


def _metadata(path: str | Path) -> dict[str, str]:
    """What a safetensors file says about itself; {} of another file."""
    if Path(path).suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _method_of(weights: dict[str, Tensor], about: dict[str, str]) -> str | None:
    """The method whose head a file holds, as far as it tells."""
    published = any("feature_recorrect." in name for name in weights)
    # our files did not name it while SOFS was the only one
    return SOFS.name if published else about.get("method", SOFS.name if "config" in about else None)


def _compare_training(cfg: CfgNode, config: str, method: str, source: str) -> None:
    """Warn of settings of a method and its backbone that differ from those in the config, as YAML,
    that a head was trained with."""
    try:
        trained = yaml.safe_load(config)
    except yaml.YAMLError:  # of another program
        return
    here, other = dict(leaves(cfg)), []
    for name, value in leaves(trained) if isinstance(trained, dict) else ():
        own = name.upper().startswith(f"TRAIN.{method}.".upper()) and name not in OF_THE_LOSS
        if (own or name in OF_THE_BACKBONE) and value != here.get(name, value):
            other.append(f"{name} {value} (here {here[name]})")
    if other:
        LOG.warning("%s was trained with %s", source, ", ".join(other))


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
    as YAML. ConfigError: it is of another method, or with the present ones other images would be
    held out."""
    earlier = dict(leaves(yaml.safe_load(config)))
    if (method := earlier.get("TRAIN.method", cfg.TRAIN.method)) != cfg.TRAIN.method:
        remedy = f"set TRAIN.method to {method}, or TRAIN.resume to a state of {cfg.TRAIN.method}"
        raise ConfigError(f"TRAIN.resume: {file} is a training of {method}; {remedy}")
    for key, value in leaves(cfg):
        before = earlier.get(key, value)
        if key in FIXED and value != before:
            reason = f"{file} was written with {key} {before!r}, now it is {value!r}"
            remedy = "and other images would be held out; set it back"
            raise ConfigError(f"TRAIN.resume: {reason}, {remedy}")
        if value != before and not key.startswith(FREE):
            LOG.warning("%s was %r in the training that goes on, now it is %r", key, before, value)
