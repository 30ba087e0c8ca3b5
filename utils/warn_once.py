"""Warnings about a file, each logged once however often the file is read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

Notice = tuple[str, str]  # message and key
_given: set[str] = set()  # keys of the warnings so far
_collected: list[list[Notice]] = []  # one list for each `kept_notices` block


def warn_once(logger: logging.Logger, message: str, key: str = "") -> None:
    """Log a warning unless this process has logged it before.

    Args:
        logger: that logs it.
        message: of the warning.
        key: by which a warning is known, where that is less than its message.
    """
    for notices in _collected:
        notices.append((message, key))
    if (key or message) not in _given:
        _given.add(key or message)
        logger.warning("%s", message)


@contextmanager
def kept_notices() -> Iterator[list[Notice]]:
    """Collect the warnings of a block, also those logged before, so that a cache of what was read
    can give them again; each is in the list once when the block ends."""
    notices: list[Notice] = []
    _collected.append(notices)
    try:
        yield notices
    finally:
        _collected.remove(notices)
        notices[:] = dict.fromkeys(notices)
