"""What every invented input is held to: CPU time, memory, and writing in one folder alone."""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("SOFS_FUZZ", "1"))  # times as many inputs; other ones from 2 on
SECONDS = 30.0  # of CPU, for one input: far more than any takes, far less than a blow-up
GROWTH = 400 << 20  # bytes of memory, for all inputs of a test
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# events of the interpreter that change files, and how many paths they name
_ONE = "os.mkdir os.remove os.rmdir os.truncate os.chmod os.chown os.utime shutil.rmtree"
_TWO = "os.rename os.symlink os.link shutil.move shutil.copyfile"
_CHANGES = dict.fromkeys(_ONE.split(), 1) | dict.fromkeys(_TWO.split(), 2)
_watch: dict[str, list] = {"folders": [], "outside": []}


def fuzzed(count: int):
    """Decorates a `given` test, which then tries `count` inputs, the same in each run.

    SOFS_FUZZ=N tries N times as many, new ones.
    """
    chosen = settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: chosen(test)


@contextmanager
def bounded_time():
    """The block takes at most SECONDS of this process's CPU time."""
    start = time.process_time()
    yield
    taken = time.process_time() - start
    assert taken < SECONDS, f"{taken:.1f} s of CPU for one input"


@contextmanager
def bounded_memory():
    """The block raises the most memory that this process ever had by at most GROWTH."""
    before = _most_memory()
    yield
    assert _most_memory() - before < GROWTH, f"{(_most_memory() - before) >> 20} MiB more"


def _most_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10


@contextmanager
def writes_only(*folders):
    """The block changes no file outside some folders; compiled modules and devices are free."""
    _watch.update(folders=[os.path.realpath(folder) for folder in folders], outside=[])
    try:
        yield
    finally:
        _watch["folders"] = []
    assert not _watch["outside"], _watch["outside"]


def _audit(event, args):
    if not _watch["folders"]:
        return
    paths = args[: _CHANGES.get(event, 0)]
    if event == "open" and args[2] & _WRITING:
        paths = args[:1]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            place = os.path.realpath(os.fsdecode(path))
            inside = any(f"{place}/".startswith(f"{folder}/") for folder in _watch["folders"])
            if not inside and not place.startswith("/dev/") and "__pycache__" not in place:
                _watch["outside"].append((event, path))


sys.addaudithook(_audit)
