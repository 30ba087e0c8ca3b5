"""What training leaves behind: the head as safetensors, and a state to go on from."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import torch
import yaml
from models.methods.sofs import SOFS
from models.weights import read_torch, read_weights, require_state
from safetensors import safe_open
from safetensors.torch import save
from yacs.config import CfgNode

from method_config.values import leaves
from models.checkpoint import head_state
from models.weights import load_checked
from utils.distributed import is_main
from utils.errors import WeightsError
from utils.output_files import write_whole

LOG = logging.getLogger(__name__)
STATE_KEYS = {"head", "optimizer", "scaler", "epoch", "within", "config", "history", "best"}


def save_head(path: Path, model: SOFS, config: str) -> None:
    """Write the trained part as safetensors, names `head.*`, with the config as metadata; whole or not at all."""
    tensors = {
        f"head.{name}": value.contiguous().cpu() for name, value in model.head.state_dict().items()
    }
    write_whole(path, save(tensors, metadata={"format": "pt", "config": config}))


def load_head(path: str | Path, model: SOFS, key: str, cfg: CfgNode | None = None) -> None:
    """Load a head of ours or a published checkpoint into the model.

    Args:
        path: `.safetensors` or PyTorch file.
        model: built with the same settings.
        key: the config key that names the file, for messages.
        cfg: the settings that the model is built with; those that the head was trained with and that differ are named
            in a warning.

    Raises:
        WeightsError: missing, unreadable, without a head, or not fitting; lists the first wrong names and shapes.
    """
    found = read_weights(path, key)
    try:
        state = head_state(found)
    except WeightsError as error:
        raise WeightsError(f"{key}: {path}: {error}") from error
    if not state:
        names = ", ".join(list(found)[:3]) or "nothing"
        raise WeightsError(
            f"{key}: {path} holds no parameters of a SOFS head (names head.* or feature_recorrect.*), but {names}; "
            "take the head of a training, checkpoints/head.safetensors, or the published one"
        )
    load_checked(model.head, state, f"{key}: {path}")
    other = _other_settings(Path(path), cfg) if cfg is not None else []
    if other and is_main():
        LOG.warning("%s: %s was trained with %s", key, path, ", ".join(other))


def _other_settings(path: Path, cfg: CfgNode) -> list[str]:
    """Settings of the network, in words, that a head of ours was trained with and `cfg` has not."""
    if path.suffix != ".safetensors":
        return []
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("config", "")
    try:
        own = yaml.safe_load(text)
    except yaml.YAMLError:  # of another program
        return []
    here = dict(leaves(cfg))
    return [
        f"{name} {value} (here {here[name]})"
        for name, value in (leaves(own) if isinstance(own, dict) else ())
        if (name == "TRAIN.backbone" or name.startswith("TRAIN.SOFS."))
        and name != "TRAIN.SOFS.smooth_r"
        if value != here.get(name, value)
    ]


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state, whole or not at all."""
    content = io.BytesIO()
    torch.save(state, content)
    write_whole(path, content.getbuffer())


def load_state(path: str | Path) -> dict[str, Any]:
    """Read a training state, tensors and plain values only.

    Raises:
        WeightsError: missing, unreadable, or something else.
    """
    if not Path(path).is_file():
        raise WeightsError(
            f"TRAIN.resume: no training state {path}; set it to checkpoints/state.pth of a run"
        )
    state = read_torch(Path(path), "TRAIN.resume")
    if not isinstance(state, dict) or not set(state) >= STATE_KEYS:
        raise WeightsError(
            f"TRAIN.resume: {path} is no training state; expected checkpoints/state.pth of a run"
        )
    require_state(state["head"], f"TRAIN.resume: {path}: head")
    return state
