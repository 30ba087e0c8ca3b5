"""A taught defect as a file: what is known of the supports, in safetensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from datasets.supports import ViewSettings
from models.sofs import SupportMemory, SupportSummary
from models.support_tokens import SupportTokens, with_joint
from utils.errors import WeightsError
from utils.files import write_whole

FORMAT = "sofs-support-2"


def fingerprint(method: nn.Module, settings: ViewSettings) -> dict[str, str]:
    """What a support file must have in common with the predictor that reads it: views and weights."""
    digest = hashlib.sha256()
    for name, value in sorted(method.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"format": FORMAT, "settings": json.dumps(asdict(settings), sort_keys=True), "weights": digest.hexdigest()}


def save_memory(path: Path, memory: SupportMemory, fingerprint: dict[str, str]) -> None:
    """Write a memory, whole or not at all.

    Args:
        path: of the file, `.safetensors`.
        memory: what is known.
        fingerprint: kept beside it, see `fingerprint`.
    """
    known = memory.known
    tensors = {"share": known.share, "sizes": torch.tensor(known.sizes), "covered": known.covered}
    tensors |= {f"keys.{i}": layer for i, layer in enumerate(known.keys)}
    tensors |= {f"mean.{i}": layer for i, layer in enumerate(known.mean)}
    for number, image in enumerate(known.normal):
        tensors |= {f"normal.{number}.{i}": layer for i, layer in enumerate(image)}
    if memory.summary is not None:
        tensors |= {f"summary.{f.name}": getattr(memory.summary, f.name) for f in fields(SupportSummary)}
    # copies: tensors that share memory cannot be written
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    use = {"windowed": memory.windowed, "thresholds": memory.thresholds}
    write_whole(path, save(tensors, metadata=fingerprint | {"use": json.dumps(use)}))


def load_memory(path: Path, fingerprint: dict[str, str], device: torch.device, *, joint: bool) -> SupportMemory:
    """Read what `save_memory` wrote.

    Args:
        path: of the file.
        fingerprint: of the predictor that asks.
        device: where the memory is wanted.
        joint: whether the joint prior is asked for.

    Raises:
        WeightsError: missing, unreadable, or written with other settings or weights.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such support file; write one with Predictor.save_support")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a readable support file ({error}); teach the defect again") from error
    for name, value in fingerprint.items():
        if metadata.get(name) != value:
            raise WeightsError(
                f"{path}: its {name} are not those of this predictor ({metadata.get(name, 'none')}, here {value}); "
                "use the config and weights that it was written with, or teach the defect again"
            )
    return _memory_of(tensors, json.loads(metadata["use"]), joint)


def _memory_of(tensors: dict[str, Tensor], use: dict[str, Any], joint: bool) -> SupportMemory:
    layers = range(sum(name.startswith("keys.") for name in tensors))
    images = range(sum(name.startswith("normal.") for name in tensors) // len(layers))
    known = SupportTokens(
        keys=[tensors[f"keys.{i}"] for i in layers],
        share=tensors["share"],
        sizes=tensors["sizes"].tolist(),
        covered=tensors["covered"],
        mean=[tensors[f"mean.{i}"] for i in layers],
        joint=None,
        normal=[[tensors[f"normal.{number}.{i}"] for i in layers] for number in images],
    )
    names = [f.name for f in fields(SupportSummary)]
    summary = SupportSummary(**{n: tensors[f"summary.{n}"] for n in names}) if "summary.weight" in tensors else None
    return SupportMemory(with_joint(known) if joint else known, summary, use["windowed"], use["thresholds"])
