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
from utils.errors import OutputError
from utils.output_files import not_written

FORMAT = "%(asctime)s %(levelname)s %(message)s"
NOW_AND_THEN = 60  # seconds between lines of progress where they are kept
PICTURES = ("datasets.images", "datasets.masks", "datasets.orientation")
_HELD = 10_000  # lines that wait for the run's file
LOG = logging.getLogger(__name__)


class _Console(logging.Handler):
    """Standard output, around progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            with tqdm.external_write_mode(file=sys.stdout):
                say(self.format(record))
        except OutputError as error:  # once: the run, which has a log of its own, goes on
            say(f"error: {error}", sys.stderr)
        except Exception:  # as every handler of the library does
            self.handleError(record)


class _RunFile(logging.FileHandler):
    """A log file whose faults end the run, in place of a traceback per line on the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where a line could not be written.

        Raises:
            OutputError: the disk refused.
        """
        error = sys.exception()
        if isinstance(error, OSError):
            raise not_written(self.baseFilename, error) from error
        super().handleError(record)


def setup_logging(file: Path | None = None) -> None:
    """Send INFO and above to standard output, beside progress bars, and to `file`. Other processes than the main one
    tell errors and, once there is a file, what they are warned of in the pictures that they alone read.

    Until a file is given the lines are held, and it begins with them.

    Raises:
        OutputError: the file cannot be opened.
    """
    root = logging.getLogger()
    held = next((handler for handler in root.handlers if isinstance(handler, MemoryHandler)), None)
    handlers: list[logging.Handler] = [_Console()]
    if file is None:
        handlers.append(MemoryHandler(_HELD, flushLevel=logging.CRITICAL + 1))
    else:
        handlers.append(_run_file(file))
    for handler in handlers:
        if not is_main():
            handler.addFilter(
                lambda r: r.levelno >= logging.ERROR or (file is not None and r.name in PICTURES)
            )
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    if held is not None and file is not None and is_main():
        held.setTarget(handlers[1])  # closing hands over what is held
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    if hasattr(sys.stdout, "reconfigure"):  # a file name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    root.setLevel(logging.INFO if is_main() else logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)


def _run_file(file: Path) -> _RunFile:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return _RunFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise not_written(file, error) from error


class _Lines:
    """What a progress bar writes, as lines of the log."""

    def write(self, text: str) -> None:
        """Log the bar's text, which begins with a carriage return."""
        if text := text.replace("\x1b[A", "").strip():
            LOG.info("%s", text)

    def flush(self) -> None:
        """Lines are written at once."""


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """A progress bar of the main process; where standard error is no terminal, a line of the log now and then.

    Args:
        items: what is gone through; None: the caller calls `update`.
        options: of `tqdm`.
    """
    if sys.stderr.isatty():
        return tqdm(items, disable=not is_main(), **options)
    calm = {
        "file": _Lines(),
        "mininterval": NOW_AND_THEN,
        "delay": NOW_AND_THEN,
        "maxinterval": 2 * NOW_AND_THEN,
    }
    return tqdm(items, disable=not is_main(), ncols=100, **calm, **options)
