"""Warnings about a file, each logged once however often the file is read."""

from __future__ import annotations

import logging

_given: set[str] = set()


def warn_once(logger: logging.Logger, message: str, key: str = "") -> None:
    """Log a warning unless this process has logged one with this key, by default its message."""
    if (key or message) not in _given:
        _given.add(key or message)
        logger.warning("%s", message)
