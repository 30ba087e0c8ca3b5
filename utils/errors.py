"""Faults that the user can mend; the entry points print them without a traceback, exit code 2."""

from __future__ import annotations

import csv

# what parsing the content of a broken JSON or CSV file raises; RecursionError: nested too deeply
BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
          csv.Error, RecursionError)  # fmt: skip


class UserError(Exception):
    """The message names the file, key or value, what was expected, and the remedy."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, or impossible."""


class DataError(UserError):
    """An image, mask, annotation file or data set folder is missing or broken."""


class WeightsError(UserError):
    """A weights file is missing, broken, or does not fit the model."""


class NoConnectionError(WeightsError):
    """Weights cannot be fetched, as their publisher cannot be reached."""


class OutputError(UserError):
    """A file of a run cannot be written."""


class ProcessError(RuntimeError):
    """One of several processes was killed, or failed by a fault of the program, whose traceback
    the message holds. The exit code is 1."""
