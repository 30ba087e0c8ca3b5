"""What every invented input is held to: time, memory, and that nothing is written outside one folder; and a count."""

from __future__ import annotations

import faulthandler
import functools
import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings

TIMES = int(
    os.environ.get("SOFS_FUZZ", "1")
)  # as many inputs as `make test` tries; other ones from 2 on
TALLY = os.environ.get(
    "SOFS_FUZZ_TALLY"
)  # file to which each test adds a line: how many inputs it tried
SECONDS = 30.0  # of CPU, for one input: far more than any takes, on a slow machine too, far less than a blow-up
HANGS = 120  # seconds for one input, on the clock
GROWTH = 400 << 20  # bytes of memory, for all inputs of a test
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2, "os.truncate": 1,
    "os.chmod": 1, "os.chown": 1, "os.utime": 1, "shutil.rmtree": 1, "shutil.move": 2, "shutil.copyfile": 2,
}  # fmt: skip
_watch: dict[str, list] = {"folders": [], "outside": []}


class Hang(BaseException):
    """Not an Exception: neither a job nor Hypothesis is to catch it and go on."""


def fuzzed(count: int):
    """Decorates a `given` test, which then tries `count` inputs, always the same, and fails where it tried fewer;
    SOFS_FUZZ=N tries N times as many, new ones."""
    wanted = count * TIMES
    chosen = settings(
        max_examples=wanted,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )

    def decorate(test):
        inner, tried = test.hypothesis.inner_test, 0

        @functools.wraps(inner)
        def counted(*args, **kwargs):
            nonlocal tried
            tried += 1
            return inner(*args, **kwargs)

        def run():
            test.hypothesis.inner_test = counted
            chosen(test)()
            assert tried >= wanted, f"{tried} inputs were tried, not {wanted}"
            if TALLY:
                with open(TALLY, "a") as file:
                    file.write(f"{tried}\n")

        return run

    return decorate


@contextmanager
def bounded_time():
    """The block takes at most SECONDS of this process's CPU time; one that hangs is broken off after HANGS seconds, or
    ends the process where it cannot be."""

    def break_off(*_):
        raise Hang(f"an input took more than {HANGS} s")

    start, before = time.process_time(), signal.signal(signal.SIGALRM, break_off)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    faulthandler.dump_traceback_later(
        2 * HANGS, exit=True, file=sys.__stderr__
    )  # no handler runs in compiled code
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    taken = time.process_time() - start
    assert taken < SECONDS, f"{taken:.1f} s of CPU for one input"


@contextmanager
def bounded_memory():
    """The block does not raise the most memory that this process ever had by more than GROWTH."""
    before = most_memory()
    yield
    assert most_memory() - before < GROWTH, f"{(most_memory() - before) >> 20} MiB more"


def most_memory() -> int:
    """Bytes."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10


@contextmanager
def writes_only(*folders):
    """The block changes no file outside some folders; compiled modules and devices are free."""
    _watch["folders"] = [os.path.realpath(folder) for folder in folders]
    _watch["outside"] = []
    try:
        yield
    finally:
        _watch["folders"] = []
    assert not _watch["outside"], _watch["outside"]


def _audit(event, args):
    if not _watch["folders"]:
        return
    if event == "open":
        path, _, flags = args
        paths = [path] if flags & _WRITING else []
    else:
        paths = args[: _CHANGES.get(event, 0)]
    folder = args[-1] if event in _CHANGES and isinstance(args[-1], int) and args[-1] >= 0 else None
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            below = f"/proc/self/fd/{folder}" if folder is not None else ""
            if not _is_free(os.path.join(below, os.fsdecode(path))):
                _watch["outside"].append((event, path))


def _is_free(path):
    found = os.path.realpath(path)
    inside = any(
        found == folder or found.startswith(folder + os.sep) for folder in _watch["folders"]
    )
    return inside or found.startswith("/dev/") or "__pycache__" in found


sys.addaudithook(_audit)
