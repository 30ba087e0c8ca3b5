"""Warnings about a file, each given once however often the file is read."""

from __future__ import annotations

import logging

_given: set[str] = set()


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning that this process has not logged before."""
    if message not in _given:
        _given.add(message)
        logger.warning("%s", message)
