"""Log lines on the console and in the run's file, and the progress of long loops."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from tqdm import tqdm

from utils.console import say
from utils.distributed import is_main
from utils.output_files import not_written

SECONDS_BETWEEN_LINES = 60  # of progress, where standard error is no terminal
READERS = ("datasets.images", "datasets.masks", "datasets.orientation")
LOG = logging.getLogger(__name__)


class _Console(logging.Handler):
    """Standard output, above progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stdout):
            say(self.format(record))


def setup_logging(file: Path | None = None) -> None:
    """Send INFO and above to standard output and to `file`, which begins with the lines since the
    last call without a file. Processes other than the main one log errors and, once there is a
    file, warnings about the images that only they read. OutputError: it cannot be opened."""
    root, main = logging.getLogger(), is_main()
    kept: logging.Handler = MemoryHandler(10_000, flushLevel=logging.CRITICAL + 1)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            kept = logging.FileHandler(file, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise not_written(file, error) from error
    handlers = [_Console(), kept]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        if not main:
            handler.addFilter(lambda r: r.levelno >= logging.ERROR or (file and r.name in READERS))
    for handler in list(root.handlers):
        if isinstance(handler, MemoryHandler) and file is not None and main:
            handler.setTarget(kept)  # to which closing hands the lines
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if main else logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)


class _Lines:
    """A stream for a progress bar that logs what the bar writes."""

    def write(self, text: str) -> None:
        # without the characters that move the cursor
        if text := text.replace("\x1b[A", "").strip():
            LOG.info("%s", text)

    def flush(self) -> None:
        """Lines are written at once."""


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A progress bar of the main process; where standard error is no terminal, a log line a minute.
    Without items the caller calls `update`; options are those of `tqdm`."""
    if not (sys.stderr and sys.stderr.isatty()):
        pause = SECONDS_BETWEEN_LINES
        calm = {"mininterval": pause, "delay": pause, "maxinterval": 2 * pause, "ncols": 100}
        options = calm | {"file": _Lines()} | options
    return tqdm(items, disable=not is_main(), **options)
