"""Device and arithmetic of a job."""

from __future__ import annotations

import logging

import torch

from utils.distributed import local_rank, world_size
from utils.errors import ConfigError
from utils.warn_once import warn_once

LOG = logging.getLogger(__name__)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NATIVE = {  # capabilities of a CPU that computes them itself, by their names in torch
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "fp16_arith"),
}


def arithmetic(device: torch.device, precision: str) -> str:
    """`fp32`, `bf16` or `fp16` as asked for, with a warning where a CPU only imitates it; for
    `auto` the fastest that the device computes natively: bf16 where it does, else fp16 on CUDA and
    fp32 on the CPU."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bf16" if native else "fp16") if precision == "auto" else precision
    capabilities = torch.cpu.get_capabilities()
    native = [p for p, units in NATIVE.items() if any(capabilities.get(unit) for unit in units)]
    if precision == "auto":
        return "bf16" if "bf16" in native else "fp32"
    if precision in NATIVE and precision not in native:
        slower = "slower than fp32, without AVX-512 about twenty times"
        warn_once(
            LOG,
            f"TRAIN.precision is {precision}, which this CPU only imitates: it is {slower}; "
            "set it to auto",
        )
    return precision


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
