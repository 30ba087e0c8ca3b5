"""Device and arithmetic of a job."""

from __future__ import annotations

import torch

from utils.distributed import rank, world_size
from utils.errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision by name: `fp32` (none), `bf16` or `fp16`."""
    return torch.autocast(device.type, dtype=DTYPES.get(precision, torch.bfloat16), enabled=precision in DTYPES)


def pick_device(index: int) -> torch.device:
    """CUDA device `index`, or among several processes that of the own rank; the CPU where there is no CUDA.

    Raises:
        ConfigError: there are GPUs, but not this one.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world_size() > 1:
        return torch.device("cuda", rank())
    if index >= torch.cuda.device_count():
        raise ConfigError(f"DEVICE is {index}, but this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    return torch.device("cuda", index)
