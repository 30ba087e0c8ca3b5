"""SIGTERM and Ctrl-C end a job at once or, where it would lose work, after the step it is at."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """Signal `number` asked the job to end; `saved` is a sentence about what was saved."""

    def __init__(self, number: int, saved: str = "") -> None:
        self.number, self.saved = signal.Signals(number), saved
        super().__init__(f"interrupted by {self.number.name}" + (f": {saved}" if saved else ""))

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int, str]]:
        return type(self), (int(self.number), self.saved)

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C and 143 after SIGTERM, as in shells."""
        return 128 + self.number


class Pending:
    """The signal that a `postponed` block has received, 0 without one."""

    number = 0


@contextmanager
def interruptible() -> Iterator[None]:
    """A block that SIGTERM and Ctrl-C end at once by raising `Interrupted`."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled_by(end):
        yield


@contextmanager
def postponed(*, alone: bool) -> Iterator[Pending]:
    """A block that SIGTERM and Ctrl-C do not end: it reads `number` where it can leave.

    Where `alone`, a second signal ends the block at once; one of several processes may receive the
    same Ctrl-C twice, from the terminal and from its launcher. Interrupted: the block ended without
    having read the signal, or failed for lack of a process that the signal had already ended.
    """
    pending = Pending()

    def note(number: int, frame: FrameType | None) -> None:
        if pending.number and alone:
            raise Interrupted(number)
        pending.number = number

    with _handled_by(note):
        try:
            yield pending
        except RuntimeError as error:
            if pending.number:
                raise Interrupted(pending.number) from error
            raise
    if pending.number:
        raise Interrupted(pending.number)


def when_parent_ends(act: Callable[[], None]) -> None:
    """Have a thread call `act` when the process that started this one has ended, also if killed."""

    def wait() -> None:
        parent_process().join()
        act()

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    earlier = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, previous in earlier.items():
            signal.signal(number, previous)
