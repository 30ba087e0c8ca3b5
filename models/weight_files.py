"""Weights files, wherever they come from: read without running code, and refused where they hold something else."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import WeightsError

STATE = "training state"
# of a state dict, in their order; DINOv2's teacher is what it gives
WRAPPERS = (
    "teacher",
    "model",
    "state_dict",
    "model_state_dict",
    "ema_state_dict",
    "model_ema",
    "ema",
    "net",
)
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def read_weights(path: str | Path, key: str) -> dict[str, Tensor]:
    """Read a state dict from a `.safetensors` or PyTorch file, tensors only, on the CPU.

    Args:
        path: the file; a nested state dict, such as under `model`, `state_dict` or `teacher`, is unwrapped.
        key: the config key that names the file, for messages.

    Raises:
        WeightsError: missing, unreadable, with code, or not a state dict of plain tensors.
    """
    path = require_file(path, key)
    state = (
        _read_safetensors(path, key)
        if path.suffix == ".safetensors"
        else read_torch(path, key, "weights file")
    )
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if isinstance(state, dict) and isinstance(state.get("head"), dict) and "optimizer" in state:
        remedy = "the weights of a backbone" if "backbone" in key else "head.safetensors beside it"
        raise WeightsError(
            f"{key}: {path} is a training state, for TRAIN.resume; set {key} to {remedy}"
        )
    return require_state(state, f"{key}: {path}")


def require_file(path: str | Path, key: str) -> Path:
    """The path of a weights file that exists.

    Raises:
        WeightsError: it does not; names the config key `key`.
    """
    if not Path(path).is_file():
        raise WeightsError(
            f"{key}: no weights file {path}; set {key} to an existing .pth or .safetensors file"
        )
    return Path(path)


def require_state(state: Any, source: str) -> dict[str, Tensor]:
    """A state dict, where it is one of plain tensors that hold as many values as they say.

    Raises:
        WeightsError: it is something else; names `source` and the first such tensor.
    """
    named = isinstance(state, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    )
    if not named:
        held = (
            f", but {', '.join(map(str, list(state)[:5]))}"
            if isinstance(state, dict) and state
            else ""
        )
        raise WeightsError(
            f"{source} holds no state dict (names to tensors){held}; expected model weights"
        )
    for name, value in state.items():
        if fault := _fault(value):
            raise WeightsError(f"{source}: {name} {fault}; save the model's state_dict() anew")
    return state


def read_torch(path: Path, key: str, what: str) -> Any:
    """Read a file of `torch.save`, tensors and plain values alone, on the CPU.

    Args:
        path: the file.
        key: the config key that names it, for messages.
        what: it should be.

    Raises:
        WeightsError: unreadable, or it asks for code: names the function or class, which is not called.
    """
    try:
        if zipfile.is_zipfile(path):
            _refuse_compressed(path, key)
        return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        if wanted := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise WeightsError(
                f"{key}: {path} was not loaded: it asks for {wanted[1]}, which is no tensor, and to load it would run "
                "code that came with the file; take it from a source that you trust, saved as a plain state dict or as "
                ".safetensors"
            ) from error
        raise _unreadable(path, key, what, error) from error


@contextmanager
def without_code() -> Iterator[None]:
    """A block in which no library unpickles more than tensors, whatever it asks of `torch.load`."""
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        os.environ.pop(FORCE)
        if before is not None:
            os.environ[FORCE] = before


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity."""
    return [
        name for name, value in state.items() if value.is_floating_point() and not _is_finite(value)
    ]


def _is_finite(value: Tensor) -> bool:
    whole = value.float() if value.element_size() == 1 else value  # the 8-bit types lack isfinite
    return bool(torch.isfinite(whole).all())


def _read_safetensors(path: Path, key: str) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, OSError, and what an unknown type raises
        raise _unreadable(path, key, "weights file", error) from error


def _unreadable(path: Path, key: str, what: str, error: Exception) -> WeightsError:
    return WeightsError(
        f"{key}: {path} is not a readable {what} ({type(error).__name__}): cut off, or a web page saved under its "
        f"name? Take another copy, or {'remove it to train anew' if what == STATE else 'download it again'}"
    )


def _refuse_compressed(path: Path, key: str) -> None:
    """A thousandth of the bytes could unfold to more than the memory; `torch.save` never compresses."""
    with zipfile.ZipFile(path) as archive:
        packed = next(
            (i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED), None
        )
    if packed is not None:
        raise WeightsError(f"{key}: {path} is a compressed archive ({packed}), which torch.save does not write; "
                           "unpack it and set the key to the weights file in it")  # fmt: skip


def _fault(value: Tensor) -> str:
    """What keeps a tensor from being plain; "" for nothing."""
    if value.is_meta:
        return "has a shape and no values"
    if value.layout != torch.strided or value.is_quantized:
        return f"is stored as {value.layout if value.layout != torch.strided else value.dtype}, not as plain numbers"
    claimed, held = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    return f"claims {claimed} bytes, and the file holds {held}" if claimed > held else ""
