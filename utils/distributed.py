"""One process or many, with the same code."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from utils.errors import ConfigError, UserError


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_processes(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum of a CPU tensor over all processes, on the CPU."""
    if world_size() == 1:
        return tensor
    moved = tensor.to(device, copy=True)
    dist.all_reduce(moved)
    return moved.cpu()


def gather_objects(value: Any) -> list[Any]:
    """What every process has, in the order of ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def launch(job: Callable[..., None], processes: int, backend: str, *args: Any) -> None:
    """Run `job(*args)` in this process, or in `processes` new ones joined in a group.

    Args:
        job: a module-level function.
        processes: how many; with CUDA one GPU each.
        backend: of the group; on the CPU gloo takes the place of nccl.
        args: of the job.

    Raises:
        ConfigError: more processes than GPUs.
        UserError: the first that a process failed with.
    """
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ConfigError(f"NUM_GPUS is {processes}, but this machine has {torch.cuda.device_count()}; set NUM_GPUS")
    if processes == 1:
        job(*args)
        return
    backend = backend if torch.cuda.is_available() else "gloo"
    faults = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(_member, (job, processes, backend, _free_port(), faults, args), nprocs=processes, join=False)
    try:
        while not context.join():
            pass
    except (mp.ProcessRaisedException, mp.ProcessExitedException):
        if faults.empty():
            raise
        raise faults.get() from None


def _member(
    number: int, job: Callable[..., None], processes: int, backend: str, port: int, faults: SimpleQueue, args: tuple
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    dist.init_process_group(backend, rank=number, world_size=processes)
    try:
        job(*args)
    except UserError as error:
        faults.put(error)
        raise
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
