"""Log lines on the console and in the run's file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm.contrib.logging import _TqdmLoggingHandler as TqdmHandler

from utils.distributed import is_main
from utils.errors import OutputError

FORMAT = "%(asctime)s %(levelname)s %(message)s"


class _RunFile(logging.FileHandler):
    """A log file whose faults end the run, in place of a traceback per line on the console."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called where a line could not be written.

        Raises:
            OutputError: the disk refused.
        """
        error = sys.exception()
        if isinstance(error, OSError):
            raise OutputError(f"{self.baseFilename} cannot be written ({error.strerror}); free space there") from error
        super().handleError(record)


def setup_logging(file: Path | None = None) -> None:
    """Send INFO and above to standard output, beside progress bars, and to `file`; other processes tell errors only.

    Raises:
        OutputError: the file cannot be opened.
    """
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if is_main() else logging.ERROR)
    handlers: list[logging.Handler] = [TqdmHandler()]
    handlers[0].stream = sys.stdout
    if hasattr(sys.stdout, "reconfigure"):  # a file name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    if file is not None and is_main():
        handlers.append(_run_file(file))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
        root.addHandler(handler)


def _run_file(file: Path) -> _RunFile:
    try:
        return _RunFile(file, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(
            f"{file} cannot be written ({error.strerror}); see to what stands there and to the folder's permissions"
        ) from error
