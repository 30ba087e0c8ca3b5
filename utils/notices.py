"""Warnings about a file, each given once however often the file is read."""

from __future__ import annotations

import logging

_given: set[str] = set()


def warn_once(logger: logging.Logger, message: str, key: str = "") -> None:
    """Log a warning that this process has not logged before. key: what it is about, if that is less than its text."""
    if (key or message) not in _given:
        _given.add(key or message)
        logger.warning("%s", message)
