"""What a command prints."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from utils.errors import OutputError


def complete_streams() -> None:
    """Let standard input, output and error lead nowhere where a daemon has closed them: what opens a file or a pipe
    next would take their numbers."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(
                os.open(os.devnull, os.O_RDWR), number
            )  # the lowest free number, at times this one itself
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print a text, on standard output unless told otherwise, and whatever waits to be printed there.

    Where the reader of a pipe has gone, as that of `| head` does, this and all that follows leads nowhere, without a
    word, and the program goes on.

    Raises:
        OutputError: it cannot be printed, such as on a full disk; what follows leads nowhere.
    """
    stream = sys.stdout if stream is None else stream
    try:
        print(text, end="\n" if text else "", file=stream, flush=True)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            name = "standard error" if stream is sys.stderr else "standard output"
            raise OutputError(
                f"{name} cannot be written ({error.strerror}); free space there"
            ) from error
