"""What training leaves behind: the head as safetensors, and a state to go on from."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from models.checkpoint import head_state
from models.sofs import SOFS
from models.weight_files import STATE, read_torch, read_weights, require_state
from models.weights import load_checked
from utils.errors import WeightsError
from utils.files import write_whole

STATE_KEYS = {"head", "optimizer", "scaler", "epoch", "within", "config", "history", "best"}


def save_head(path: Path, model: SOFS, config: str) -> None:
    """Write the trained part as safetensors, names `head.*`, with the config as metadata; whole or not at all."""
    tensors = {f"head.{name}": value.contiguous().cpu() for name, value in model.head.state_dict().items()}
    write_whole(path, save(tensors, metadata={"format": "pt", "config": config}))


def load_head(path: str | Path, model: SOFS, key: str) -> None:
    """Load a head of ours or a published checkpoint into the model.

    Args:
        path: `.safetensors` or PyTorch file.
        model: built with the same settings.
        key: the config key that names the file, for messages.

    Raises:
        WeightsError: missing, unreadable, without a head, or not fitting; lists the first wrong names and shapes.
    """
    state = head_state(read_weights(path, key))
    if not state:
        raise WeightsError(f"{key}: {path} holds no parameters of a SOFS head (names head.* or feature_recorrect.*)")
    load_checked(model.head, state, f"{key}: {path}")


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
        raise WeightsError(f"TRAIN.resume: no training state {path}; set it to checkpoints/state.pth of a run")
    state = read_torch(Path(path), "TRAIN.resume", STATE)
    if not isinstance(state, dict) or not set(state) >= STATE_KEYS:
        raise WeightsError(f"TRAIN.resume: {path} is no training state; expected checkpoints/state.pth of a run")
    require_state(state["head"], f"TRAIN.resume: {path}: head")
    return state
