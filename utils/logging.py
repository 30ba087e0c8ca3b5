"""Log lines on the console and in the run's file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm.contrib.logging import _TqdmLoggingHandler as TqdmHandler

from utils.distributed import is_main

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def setup_logging(file: Path | None = None) -> None:
    """Send INFO and above to standard output, beside progress bars, and to `file`; other processes tell errors only."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.INFO if is_main() else logging.ERROR)
    handlers: list[logging.Handler] = [TqdmHandler()]
    handlers[0].stream = sys.stdout
    if file is not None and is_main():
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
        root.addHandler(handler)
