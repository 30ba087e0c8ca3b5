"""Start a job in this process, in several new ones, or as one of those that torchrun has started."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import LaunchConfig, elastic_launch
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import _prctl_pr_set_pdeathsig

from utils.distributed import local_rank
from utils.errors import ConfigError, ProcessError, UserError
from utils.signals import SIGNALS, Interrupted, handlers_kept, interruptible

PATIENCE = timedelta(
    minutes=30
)  # of a process for another one, which may be at a longer part of a test
GRACE = 30  # seconds that processes have to end when they are told to
TURN = 5  # seconds that a fault waits for a better one: of the main process, or of the process that the others miss
TOLD = "the main process tells its fault"
USER_ERROR = 2


def launch(job: Callable[..., Any], processes: int, backend: str, *args: Any) -> Any:
    """Run `job(*args)`; returns what it returns in the main process.

    Under torchrun this process is one of those that torchrun has started, however many `processes` says. Otherwise the
    job runs in this process, or in `processes` new ones that torchrun's engine starts on this machine.

    Args:
        job: a module-level function.
        processes: how many; with CUDA one GPU each.
        backend: of the process group on CUDA: `nccl`, `gloo` or `mpi`; on the CPU it is always gloo.
        args: of the job.

    Raises:
        ConfigError: more processes than GPUs.
        UserError: what a process failed with, the main one's if it failed, too.
        ProcessError: a process failed otherwise.
        Interrupted: the processes were told to end.
    """
    if dist.is_torchelastic_launched():
        with process_group(backend):
            return job(*args)
    if processes == 1:
        return job(*args)
    _check_gpus(processes, f"NUM_GPUS is {processes}", "set NUM_GPUS")
    faults = mp.get_context("spawn").SimpleQueue()
    try:
        with handlers_kept(), _quiet():
            return elastic_launch(_config(processes), _member)(job, backend, faults, args)[0]
    except SignalException as error:
        raise _first(faults) or Interrupted(error.sigval) from None
    except ChildFailedError as error:
        fault, killed = _first(faults), _killed(error)
        if isinstance(fault, Interrupted) and isinstance(
            killed, ProcessError
        ):  # told to end as another was killed
            fault = None
        raise fault or killed from None


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return dist.is_torchelastic_launched()


@contextmanager
def process_group(backend: str) -> Iterator[None]:
    """A block in which this process, started by torchrun or its engine, and its siblings are a group. When who has
    started it dies, it is told to end.

    Of a UserError that all have the main process tells, the others end silently. Any other fault leaves the block a
    little later than it came: the launcher takes the first process that ends for the cause, and those who merely miss
    it must not be first.
    """
    _prctl_pr_set_pdeathsig(signal.SIGTERM)  # or it would train on, and the same command be refused
    if torch.cuda.is_available():
        count = int(os.environ["LOCAL_WORLD_SIZE"])
        _check_gpus(count, f"torchrun has started {count} processes", "lower --nproc_per_node")
        torch.cuda.set_device(local_rank())
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(
            max(1, torch.get_num_threads() // int(os.environ["LOCAL_WORLD_SIZE"]))
        )
    store, number, count = next(rendezvous("env://", timeout=PATIENCE))
    group = dist.PrefixStore("group", store)
    dist.init_process_group(
        _backend(backend), store=group, rank=number, world_size=count, timeout=PATIENCE
    )
    try:
        yield
    except UserError:
        if number == 0:
            store.set(TOLD, "")
        elif _within(TURN, lambda: store.check([TOLD])):
            sys.exit(USER_ERROR)
        raise
    except Exception:
        time.sleep(TURN)
        raise
    finally:
        dist.destroy_process_group()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _member(job: Callable[..., Any], backend: str, faults: SimpleQueue, args: tuple) -> Any:
    """A new process's part; what it fails with goes into `faults`."""
    try:
        with interruptible(), process_group(backend):
            return job(*args)
    except UserError as error:
        faults.put(error)
        sys.exit(USER_ERROR)
    except Interrupted as error:
        if error.told:
            faults.put(error)
        sys.exit(error.exit_code)
    except Exception:
        faults.put(ProcessError(f"process {os.environ['RANK']} failed\n{traceback.format_exc()}"))
        sys.exit(1)


def _config(processes: int) -> LaunchConfig:
    """One machine, as `torchrun --standalone`; nothing is started again."""
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in SIGNALS),
        shutdown_timeout=GRACE,
    )


def _backend(name: str) -> str:
    """Of the process group; what is on the CPU goes by gloo."""
    if not torch.cuda.is_available():
        return "gloo"
    if name == "mpi" and not dist.is_mpi_available():
        raise ConfigError(
            "DIST_BACKEND is mpi, which this build of PyTorch does not have; set it to nccl or gloo"
        )
    return f"cpu:gloo,cuda:{name}" if name != "gloo" else name


def _check_gpus(processes: int, fact: str, remedy: str) -> None:
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise ConfigError(
            f"{fact}, but this machine has {torch.cuda.device_count()} GPUs; {remedy}"
        )


def _first(faults: SimpleQueue) -> BaseException | None:
    return None if faults.empty() else faults.get()


def _killed(error: ChildFailedError) -> BaseException:
    """For a process that had no time to say why it ended."""
    number, failure = error.get_first_failure()
    if failure.exitcode - 128 in SIGNALS:
        return Interrupted(failure.exitcode - 128)
    cause = (
        f"was killed by {failure.signal_name()}"
        if failure.exitcode < 0
        else f"ended with {failure.exitcode}"
    )
    return ProcessError(
        f"process {number} {cause}; the kernel's log says more, most often the memory was full"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the engine's log lines, which repeat the fault that is raised here; this process has none of its own."""
    earlier = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(earlier)
