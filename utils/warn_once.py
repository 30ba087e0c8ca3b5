"""Warnings about a file, each given once however often the file is read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

Notice = tuple[str, str]  # message and key
_given: set[str] = set()
_kept: list[list[Notice]] = []  # of the blocks that keep them


def warn_once(logger: logging.Logger, message: str, key: str = "") -> None:
    """Log a warning that this process has not logged before. key: what it is about, if that is less than its text."""
    for notices in _kept:
        notices.append((message, key))
    if (key or message) not in _given:
        _given.add(key or message)
        logger.warning("%s", message)


@contextmanager
def kept_notices() -> Iterator[list[Notice]]:
    """The warnings of a block, logged by it or before, each once, for `warn_once` to give them again."""
    own: list[Notice] = []
    _kept.append(own)
    try:
        yield own
    finally:
        _kept.remove(own)
        own[:] = dict.fromkeys(own)
