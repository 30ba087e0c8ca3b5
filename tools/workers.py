"""Loader processes: how they start, the sample that each is at, and what is said where one dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType, TracebackType
from typing import ClassVar, TypeVar

import torch
from torch.utils.data import get_worker_info

from utils.errors import DataError

T = TypeVar("T")
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)


def start_worker(_: int) -> None:
    """In a worker, before it loads anything: it leaves to the main process what that one tells.

    Ctrl-C reaches all processes of a terminal, and the main one ends the others. And where the main process leaves, be
    it for Ctrl-C or because another worker has died, it hangs up on the thread that hands tensors to it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _unless_hung_up


def _unless_hung_up(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """In a worker only the thread that hands over calls the hook: the fetcher's errors reach the main process."""
    if not isinstance(error, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


class Positions:
    """The sample that each worker has taken up last, in memory that all processes share.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self.rows = torch.full(
            (max(1, workers), 2), -1, dtype=torch.int64
        ).share_memory_()  # process id, number

    def note(self, number: int) -> None:
        """In a worker, before it loads a sample."""
        worker = get_worker_info()
        if worker is not None:
            self.rows[worker.id, 0], self.rows[worker.id, 1] = os.getpid(), number

    def of(self, pid: int) -> int | None:
        """Number of the sample of a worker; None before its first."""
        return next((number for own, number in self.rows.tolist() if own == pid), None)


class Watch:
    """The workers of one pass over a data set; used as a block.

    PyTorch looks for dead workers in a signal handler, too, which raises wherever the main thread happens to be. Within
    the block that one says what died, and where, as well.

    Args:
        positions: of the workers.
        describe: what a number stands for.
    """

    _running: ClassVar[weakref.WeakSet[Watch]] = weakref.WeakSet()

    def __init__(self, positions: Positions, describe: Callable[[int], str]) -> None:
        self.positions, self.describe = positions, describe
        self.processes: list[BaseProcess] = []

    def __enter__(self) -> Watch:
        self._running.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._running.discard(self)

    def starts(self, start: Callable[[], T]) -> T:
        """Call what starts the workers, which are those watched, and return what it returns."""
        before = set(active_children())
        started = start()
        self.processes = [child for child in active_children() if child not in before]
        if self.processes and threading.current_thread() is threading.main_thread():
            _name_deaths()
        return started

    def death(self, patience: float = 0) -> DataError | None:
        """What a worker has died of; None while all live.

        Args:
            patience: seconds to wait for it, as the connections of a process are closed before it has ended.
        """
        if patience and self.processes:
            ended = wait([process.sentinel for process in self.processes], patience)
            for process in self.processes:
                if process.sentinel in ended:
                    process.join()
        dead = [process for process in self.processes if process.exitcode is not None]
        if not dead:
            return None
        first = next((process for process in dead if process.exitcode != 0), dead[0])
        number = self.positions.of(first.pid)
        place = "before its first sample" if number is None else f"at {self.describe(number)}"
        return DataError(
            f"a loader process {_cause(first.exitcode)} {place}; {_remedy(first.exitcode)}"
        )

    @classmethod
    def any_death(cls) -> DataError | None:
        """The same of all watches."""
        return next((death for watch in list(cls._running) if (death := watch.death())), None)


def _name_deaths() -> None:
    """Put the sample into what PyTorch's handler raises."""
    theirs = signal.getsignal(signal.SIGCHLD)
    if getattr(theirs, "names_deaths", False) or not callable(theirs):
        return

    def handler(number: int, frame: FrameType | None) -> None:
        try:
            theirs(number, frame)
        except RuntimeError as error:  # a name for the other error would tie it to this frame, and the frame's workers
            raise (Watch.any_death() or error) from None

    handler.names_deaths = True
    signal.signal(signal.SIGCHLD, handler)


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended by itself (exit code {code})"
    known = {s.value: s.name for s in signal.Signals}
    return f"was ended by {known.get(-code, f'signal {-code}')}"


def _remedy(code: int) -> str:
    if code == -signal.SIGKILL:
        return (
            "that is how the system frees memory: lower TRAIN_SETUPS.num_workers or the batch size"
        )
    if code == -signal.SIGBUS:
        return "shared memory is full: enlarge /dev/shm, or lower TRAIN_SETUPS.num_workers"
    if -code in CRASHES:
        return "a library crashed on one of these files: see which one other programs do not open, and replace it"
    return "run again; if it comes back, TRAIN_SETUPS.num_workers 0 shows where it happens"
