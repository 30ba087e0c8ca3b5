"""Device and arithmetic of a job."""

from __future__ import annotations

import torch

from utils.distributed import local_rank, world_size
from utils.errors import ConfigError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")


def arithmetic(device: torch.device, precision: str) -> str:
    """`fp32`, `bf16` or `fp16` as asked for; for `auto` the fastest that the device computes
    natively: bf16 where it does, else fp16 on CUDA and fp32 on the CPU."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if any(capabilities.get(name) for name in NATIVE_BF16) else "fp32"


def half_type(device: torch.device, precision: str) -> torch.dtype | None:
    """Type of the half precision in use, see `arithmetic`; None for `fp32`."""
    return DTYPES.get(arithmetic(device, precision))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision by name, see `arithmetic`; none for `fp32`."""
    half = half_type(device, precision)
    return torch.autocast(device.type, dtype=half or torch.bfloat16, enabled=half is not None)


def pick_device(index: int) -> torch.device:
    """CUDA device `index`, or among several processes the one of each; the CPU without CUDA.
    ConfigError: there are GPUs, but not this one."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if world_size() > 1:
        return torch.device("cuda", local_rank())
    if index >= (number := torch.cuda.device_count()):
        raise ConfigError(f"DEVICE is {index}, but this machine has {number} GPUs, counted from 0")
    return torch.device("cuda", index)
