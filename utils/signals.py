"""SIGTERM and Ctrl-C: they end a job at once, or, where it would lose work, after the step that it is at."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_OFFSET = 128  # of the exit code of who was ended by a signal, as shells have it


class Interrupted(KeyboardInterrupt):
    """The job was told to end.

    Args:
        number: of the signal.
        told: what was saved, for people.
    """

    def __init__(self, number: int, told: str = "") -> None:
        self.number, self.told = signal.Signals(number), told
        super().__init__(f"interrupted by {self.number.name}" + (f": {told}" if told else ""))

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        return type(self), (int(self.number), self.told)

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM."""
        return EXIT_OFFSET + self.number


class Pending:
    """What a block was told while it could not be interrupted."""

    number = 0  # of the signal; 0: none


@contextmanager
def interruptible() -> Iterator[None]:
    """A block that SIGTERM and Ctrl-C end with `Interrupted`; outside the main thread it changes nothing."""

    def end(number: int, frame: FrameType | None) -> None:
        _let_workers_end()
        raise Interrupted(number)

    with _handled_by(end):
        yield


@contextmanager
def postponed(*, alone: bool) -> Iterator[Pending]:
    """A block that SIGTERM and Ctrl-C do not end: it asks for them where it can leave.

    Args:
        alone: told twice it ends at once. One of several processes may be told by the terminal and by who started it.
    """
    pending, own = Pending(), os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own:  # a loader worker, which its parent ends
            return
        if pending.number and alone:
            raise Interrupted(number)
        pending.number = number
        _let_workers_end()

    with _handled_by(note):
        try:
            yield pending
        except Exception as error:  # most likely what was told has ended another process
            if pending.number:
                raise Interrupted(pending.number) from error
            raise
    if pending.number:  # told after it was last asked
        raise Interrupted(pending.number)


def hold_signals() -> None:
    """Let SIGTERM and Ctrl-C wait until a block of this module begins."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_workers_end() -> None:
    """From here on the process ends, and that loader workers do is no fault: they may be told, too."""
    signal.signal(
        signal.SIGCHLD, lambda number, frame: None
    )  # not SIG_DFL: one that waits would be told as lost


@contextmanager
def handlers_kept() -> Iterator[None]:
    """A block after which the signals are handled as before it, whatever it has set."""
    if threading.current_thread() is not threading.main_thread():  # others may set none
        yield
        return
    earlier = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    with handlers_kept():
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield
