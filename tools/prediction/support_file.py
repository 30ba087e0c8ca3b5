"""A taught defect as a file: what is known of the supports, in safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from datasets.views import ViewSettings
from models.sofs import SupportMemory, SupportSummary
from models.support_tokens import SupportTokens, with_joint
from models.weight_files import not_finite
from models.weights import digest
from utils.errors import BROKEN, WeightsError
from utils.output_files import write_whole

FORMAT = "sofs-support-3"


def fingerprint(method: nn.Module, settings: ViewSettings) -> dict[str, str]:
    """What a support file must have in common with the predictor that reads it: views, layers and weights, in any
    precision."""
    head, backbone = getattr(method, "head", None), method.backbone
    weights = f"{backbone.identity} {digest(head.state_dict()) if head is not None else ''}"
    known = asdict(settings) | {"layers": backbone.layers, "stride": backbone.stride}
    return {
        "format": FORMAT,
        "settings": json.dumps(known, sort_keys=True),
        "weights": weights.strip(),
    }


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
        tensors |= {
            f"summary.{f.name}": getattr(memory.summary, f.name) for f in fields(SupportSummary)
        }
    # copies: tensors that share memory cannot be written
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    use = {"windowed": memory.windowed, "thresholds": memory.thresholds}
    write_whole(path, save(tensors, metadata=fingerprint | {"use": json.dumps(use)}))


def widths(method: nn.Module) -> dict[str, int]:
    """Lengths of a support file that the method gives: channels of each layer and, of a head, both its widths."""
    known = {f"C{i}": channels for i, channels in enumerate(method.backbone.channels)}
    head = getattr(method, "head", None)
    return known | (
        {"R": head.support_reduce[0].out_channels, "E": head.support_mix[0].out_channels}
        if head
        else {}
    )


def load_memory(
    path: Path,
    fingerprint: dict[str, str],
    widths: dict[str, int],
    device: torch.device,
    *,
    dtype: torch.dtype,
    joint: bool,
) -> SupportMemory:
    """Read what `save_memory` wrote, in whatever precision it was taught.

    Args:
        path: of the file.
        fingerprint: of the predictor that asks.
        widths: of its main method.
        device: where the memory is wanted.
        dtype: in which tokens are compared.
        joint: whether the joint prior is asked for.

    Raises:
        WeightsError: missing, unreadable, damaged, or written with other settings or weights.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such support file; write one with Predictor.save_support")
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a readable support file ({error}); teach the defect again"
        ) from error
    for name, value in fingerprint.items():
        if metadata.get(name) != value:
            raise WeightsError(
                f"{path}: its {name} are not those of this predictor ({metadata.get(name, 'none')}, here {value}); "
                "use the config and weights that it was written with, or teach the defect again"
            )
    if fault := _fault(tensors, widths):
        raise WeightsError(f"{path}: damaged, {fault}; teach the defect again")
    return _memory_of(tensors, _use(metadata.get("use", ""), path), dtype, joint)


def _use(text: str, path: Path) -> dict[str, Any]:
    """How a memory is used, as `save_memory` wrote it."""
    try:
        use = json.loads(text)
        thresholds = {str(name): float(value) for name, value in use["thresholds"].items()}
        if not isinstance(use["windowed"], bool) or not all(
            0 <= value <= 1 for value in thresholds.values()
        ):
            raise ValueError(text)
    except BROKEN as error:
        raise WeightsError(
            f"{path}: damaged, how it is used cannot be read ({text!r:.200}); teach the defect again"
        ) from error
    return {"windowed": use["windowed"], "thresholds": thresholds}


def _fault(tensors: dict[str, Tensor], widths: dict[str, int]) -> str:
    """What is wrong with the tensors of a support file; "" for nothing."""
    expected = _shapes(tensors, sum(name.startswith("C") for name in widths))
    if strange := sorted(tensors.keys() ^ expected.keys()):
        return f"{strange[0]} {'is missing' if strange[0] in expected else 'does not belong there'}"
    lengths = dict(widths)
    for name, shape in expected.items():
        value = tensors[name]
        fits = value.ndim == len(shape) and all(
            (lengths.setdefault(want, have) if isinstance(want, str) else want) == have
            for want, have in zip(shape, value.shape, strict=True)
        )
        if not fits:
            return f"{name} has shape {tuple(value.shape)}, which does not fit the model and the other tensors"
        wanted = {"sizes": torch.int64, "covered": torch.bool}.get(name)
        if value.dtype != wanted if wanted else not value.is_floating_point():
            return f"{name} is of {value.dtype}"
    if broken := not_finite(tensors):
        return f"{broken[0]} holds values that are not finite"
    sizes = tensors["sizes"]
    if (sizes < 1).any() or sizes.sum() != lengths["F"] or lengths["F"] > lengths["T"]:
        return "sizes do not add up"
    return ""


def _shapes(tensors: dict[str, Tensor], layers: int) -> dict[str, tuple[int | str, ...]]:
    """Names that belong together, with their shapes; the same letter stands for the same length."""
    images = range(len({name.split(".")[1] for name in tensors if name.startswith("normal.")}))
    shapes: dict[str, tuple[int | str, ...]] = {
        "share": (1, "F"),
        "sizes": ("K",),
        "covered": (1, "K"),
    }
    for i in range(layers):
        shapes |= {f"keys.{i}": (1, "T", f"C{i}"), f"mean.{i}": (1, 1, f"C{i}")}
        shapes |= {f"normal.{n}.{i}": (1, f"N{n}", f"C{i}") for n in images}
    if any(name.startswith("summary.") for name in tensors):
        own = {"weight": (1, "K"), "prototype": (1, "R"), "tokens": (1, "M", "E"), "shares": (1, "M"),
               "support_prototype": (1, "E")}  # fmt: skip
        shapes |= {f"summary.{name}": shape for name, shape in own.items()}
    return shapes


def _memory_of(
    tensors: dict[str, Tensor], use: dict[str, Any], dtype: torch.dtype, joint: bool
) -> SupportMemory:
    compared = {n: v.to(dtype) for n, v in tensors.items() if n.startswith(("keys.", "normal."))}
    exact = {
        n: v.float() for n, v in tensors.items() if dtype == torch.float32 and v.is_floating_point()
    }
    tensors = tensors | exact | compared
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
    summary = (
        SupportSummary(**{n: tensors[f"summary.{n}"] for n in names})
        if "summary.weight" in tensors
        else None
    )
    return SupportMemory(
        with_joint(known) if joint else known, summary, use["windowed"], use["thresholds"]
    )
