"""Warnings about a file, each logged once however often the file is read."""

from __future__ import annotations

import logging

_given: set[str] = set()  # keys of the warnings so far


def warn_once(logger: logging.Logger, message: str, key: str = "") -> None:
    """Log a warning unless this process has logged it before.

    Args:
        logger: that logs it.
        message: of the warning.
        key: by which a warning is known, where that is less than its message.
    """
    if (key or message) not in _given:
        _given.add(key or message)
        logger.warning("%s", message)
