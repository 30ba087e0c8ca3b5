"""What a command prints."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from utils.errors import OutputError


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print a text, and what waits to be printed, on standard output or another stream; characters
    that it cannot show become escapes. After the reader of a pipe has left, as that of `| head`
    does, this text and all later ones go nowhere. OutputError: the disk is full."""
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, end="\n" if text else "", file=stream, flush=True)
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # or the interpreter fails again when it ends
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            reason = f"{stream.name} cannot be written ({error.strerror})"
            raise OutputError(f"{reason}; free space there") from error
