"""One process or many with the same code: start them, and let them exchange what they have."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
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

from utils.errors import ConfigError, ProcessError, UserError
from utils.signals import SIGNALS, Interrupted, interruptible, when_parent_ends

PATIENCE = timedelta(minutes=30)  # of one process for another, whose part of a test may be longer
USER_ERROR = 2  # exit code


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return dist.is_torchelastic_launched()


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a CPU tensor over all processes; the tensor stays as it is."""
    if world_size() > 1:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def largest(number: int) -> int:
    """The largest of the numbers that the processes have."""
    result = torch.tensor(number)
    if world_size() > 1:
        dist.all_reduce(result, dist.ReduceOp.MAX)
    return int(result)


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in the order of ranks."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def from_main(value: Any) -> Any:
    """The value of the main process."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def launch(job: Callable[..., Any], processes: int, backend: str, *args: Any) -> Any:
    """Run `job(*args)`, a module-level function; returns what it returns in the main process.

    Under torchrun this process is one of its own, whatever `processes` is. Otherwise the job runs
    in this process, or in `processes` new ones of this machine, with CUDA on one GPU each.
    `backend` is that of the process group on CUDA: `nccl`, `gloo` or `mpi`; on the CPU it is gloo.

    Raises:
        ConfigError: more processes than GPUs, or a backend that PyTorch was built without.
        UserError: the one of a process; of several the one of the lowest rank.
        ProcessError: a process failed otherwise, or was killed.
        Interrupted: a signal asked the processes to end.
    """
    if started_by_torchrun():
        return _run_of_torchrun(job, backend, args)
    if processes == 1:
        return job(*args)
    _check_gpus(processes, f"NUM_GPUS is {processes}", "set NUM_GPUS")
    engine = logging.getLogger("torch.distributed.elastic")  # its lines repeat what is raised here
    engine.addHandler(logging.NullHandler())
    engine.propagate = False
    context = mp.get_context("forkserver")  # which imports what they need once, for all processes
    context.set_forkserver_preload([p.__module__ for p in (job, *args) if callable(p)])
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, max_restarts=0, monitor_interval=0.02,
        start_method="forkserver",
        run_id=str(uuid.uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        local_addr="localhost", logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        signals_to_handle=",".join(number.name for number in SIGNALS),
    )  # fmt: skip
    faults = context.SimpleQueue()
    try:
        with interruptible():  # which also restores the handlers that the engine replaces
            return elastic_launch(config, _run_member)(job, backend, faults, args)[0]
    except (SignalException, ChildFailedError) as error:
        ending = error
    found = []
    while not faults.empty():
        found.append(faults.get())
    raise _fault(ending, found)


def _fault(
    ending: SignalException | ChildFailedError, found: list[tuple[int, BaseException]]
) -> BaseException:
    """What a job of several processes ends with, of all that they have met, in its order: a fault
    that comes later may only be that the first process is missed."""
    if user_errors := {number: error for number, error in found if isinstance(error, UserError)}:
        return user_errors[min(user_errors)]
    number, failure = ending.get_first_failure() if isinstance(ending, ChildFailedError) else (0, 0)
    if isinstance(ending, SignalException):
        fault = Interrupted(ending.sigval)
    elif failure.exitcode - 128 in SIGNALS:
        fault = Interrupted(failure.exitcode - 128)
    elif failure.exitcode < 0:
        cause = "the kernel's log says more, most often the memory was full"
        return ProcessError(f"process {number} was killed by {failure.signal_name()}; {cause}")
    else:
        fault = ProcessError(f"process {number} ended with exit code {failure.exitcode}")
    return next((error for _, error in found if type(error) is type(fault)), fault)


def _run_member(job: Callable[..., Any], backend: str, faults: SimpleQueue, args: tuple) -> Any:
    """The part of one new process. Its fault goes into `faults` before the others miss it."""
    # to the process, the signal may come to another thread and leave the main one asleep
    main_thread = threading.main_thread().ident
    when_parent_ends(lambda: signal.pthread_kill(main_thread, signal.SIGTERM))
    number = int(os.environ["RANK"])
    try:
        with interruptible(), _process_group(backend):
            return job(*args)
    except UserError as error:
        faults.put((number, error))
        sys.exit(USER_ERROR)
    except Interrupted as error:
        if error.saved:
            faults.put((number, error))
        sys.exit(error.exit_code)
    except Exception:  # reported, with its traceback, by the process that started this one
        faults.put((number, ProcessError(f"process {number} failed\n{traceback.format_exc()}")))
        sys.exit(1)


def _run_of_torchrun(job: Callable[..., Any], backend: str, args: tuple) -> Any:
    """Run the job in one of torchrun's processes. The first that meets a UserError raises it; the
    others end without a message, also those that only miss a process that has ended."""
    with _process_group(backend) as store:
        try:
            return job(*args)
        except UserError:
            if store.add("user_errors", 1) > 1:
                sys.exit(USER_ERROR)
            raise
        except RuntimeError:
            if store.check(["user_errors"]):
                sys.exit(USER_ERROR)
            raise


@contextmanager
def _process_group(backend: str) -> Iterator[dist.Store]:
    """A block in which this process and its siblings are a group; yields the store they share.

    After a fault the connections stay open until the process has ended: who misses it fails later.
    """
    siblings, name = int(os.environ["LOCAL_WORLD_SIZE"]), "gloo"
    if torch.cuda.is_available():
        _check_gpus(siblings, f"torchrun has {siblings} processes", "lower --nproc_per_node")
        torch.cuda.set_device(local_rank())
        if backend == "mpi" and not dist.is_mpi_available():
            raise ConfigError("DIST_BACKEND is mpi, which this build of PyTorch does not have; "
                              "set it to nccl or gloo")  # fmt: skip
        name = f"cpu:gloo,cuda:{backend}" if backend != "gloo" else "gloo"
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // siblings))
    store, number, count = next(rendezvous("env://", timeout=PATIENCE))
    group = dist.PrefixStore("group", store)
    dist.init_process_group(name, store=group, rank=number, world_size=count, timeout=PATIENCE)
    yield store
    dist.destroy_process_group()


def _check_gpus(processes: int, fact: str, remedy: str) -> None:
    if torch.cuda.is_available() and processes > (count := torch.cuda.device_count()):
        raise ConfigError(f"{fact}, but this machine has {count} GPUs; {remedy}")
