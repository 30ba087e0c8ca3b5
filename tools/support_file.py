"""Support files: the memory of a defect's supports in safetensors."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from models.comparison import Comparison
from models.memory import Memory
from models.weights import digest
from utils.errors import BROKEN, WeightsError
from utils.output_files import write_whole
from utils.precision import autocast, half_type

if TYPE_CHECKING:
    from tools.predictor import Predictor

FORMAT = "sofs-support-12"  # what was chosen on supports is of the score as it is now


def save_memory(path: str | Path, memory: Memory, predictor: Predictor, kind: str = "") -> None:
    """Write a memory, and the type of its defect, with the fingerprint of its predictor, whole or
    not at all."""
    windows = [scale.window for scale in memory.scales]
    use = {"windows": windows, "thresholds": memory.thresholds, "gates": memory.gates}
    use |= {"border_offset": memory.border_offset}
    metadata = fingerprint(predictor) | {"use": json.dumps(use), "type": kind}
    write_whole(Path(path).expanduser(), save(memory.to_tensors(), metadata=metadata))


@torch.inference_mode()
def load_memory(path: str | Path, predictor: Predictor) -> Memory:
    """Read what `save_memory` wrote, in any precision.

    Raises:
        WeightsError: missing, unreadable, damaged, or written with other settings or weights.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"{path}: no such support file; write one with Predictor.save_support")
    try:
        with safe_open(path, "pt", device=str(predictor.device)) as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = f"not a readable support file ({error}); teach the defect again"
        raise WeightsError(f"{path}: {reason}") from error
    for name, value in fingerprint(predictor).items():
        if about.get(name) != value:
            other = f"{about.get(name, 'none')}, here {value}"
            raise WeightsError(f"{path}: its {name} are not those of this predictor ({other}); "
                               "use its config and weights or teach the defect again")  # fmt: skip
    dtype = half_type(predictor.device, predictor.precision) or torch.float32
    if dtype == torch.float32:
        tensors = {n: v.float() if v.is_floating_point() else v for n, v in tensors.items()}
    try:
        memory = Memory.from_tensors(tensors, **json.loads(about["use"])).in_type(dtype)
        # a tensor that does not fit the model or the others shows in the answers to a blank window
        with autocast(predictor.device, predictor.precision):
            channels = predictor.backbone.channels
            blank = [torch.zeros(1, c, 2, 2, device=predictor.device) for c in channels]
            for scale, method in product(memory.scales, predictor.methods.values()):
                if method.answer(Comparison(blank, scale), (2, 2)).shape != (1, 2, 2):
                    raise ValueError("it answers for several sets of supports")
        return memory
    except (*BROKEN, RuntimeError) as error:
        raise WeightsError(f"{path}: damaged ({error!s:.200}); teach the defect again") from error


def type_of(path: Path) -> str:
    """The type of defect that a file which `load_memory` reads was written with; "" without one."""
    with safe_open(path, "pt") as file:
        return file.metadata().get("type", "")


def fingerprint(predictor: Predictor) -> dict[str, str]:
    """What a support file and its reader must have in common, equal in any precision."""
    backbone = predictor.backbone
    state = predictor.methods[predictor.main].state_dict()
    weights = {name: value for name, value in state.items() if not name.startswith("backbone.")}
    settings = asdict(predictor.settings)
    settings |= {"layers": backbone.layers, "stride": backbone.stride}
    settings |= {"position_directions": backbone.position_directions}
    return {
        "format": FORMAT,
        "settings": json.dumps(settings, sort_keys=True),
        "weights": f"{backbone.identity} {digest(weights) if weights else ''}".strip(),
    }
