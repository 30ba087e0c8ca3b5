"""What a command prints."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print a text, on standard output unless told otherwise, and whatever waits to be printed there.

    Where the reader of a pipe has gone, as that of `| head` does, this and all that follows leads nowhere, without a
    word, and the program goes on.
    """
    stream = sys.stdout if stream is None else stream
    try:
        print(text, end="\n" if text else "", file=stream, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
