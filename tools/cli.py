"""What the entry points share: arguments, config, and errors that end with an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pkgutil import resolve_name

from method_config import add_config_arguments, load_config
from utils.console import say
from utils.errors import OutputError, ProcessError, UserError
from utils.signals import Interrupted, interruptible


def run_main(description: str, job: str) -> int:
    """Parse the command line, load the config and run a job; returns the exit code.

    `job` is a function of the config and the name of its last file, as `module:function`: it is
    imported, with PyTorch, which takes seconds, only after the config has proved right.
    """

    def call() -> None:
        parser = argparse.ArgumentParser(description=description)
        add_config_arguments(parser)
        args = parser.parse_args()
        cfg = load_config(args.cfg, args.opts)
        resolve_name(job)(cfg, args.cfg[-1])

    return exit_code(call)


def exit_code(call: Callable[[], object]) -> int:
    """Call a function without arguments; returns 0, or after a message on standard error 2 for
    what the user can mend, 1 for the fault of another process, 130 after Ctrl-C, 143 after
    SIGTERM. Other exceptions pass through."""
    try:
        try:
            with interruptible():
                call()
        finally:
            say()  # prints what still waits, such as --help
        return 0
    except (UserError, ProcessError) as error:
        code, message = 2 if isinstance(error, UserError) else 1, f"error: {error}"
    except Interrupted as error:
        is_first = os.environ.get("RANK", "0") == "0"  # one of torchrun's processes prints it
        code, message = error.exit_code, str(error) if is_first else ""
    with suppress(OutputError):  # there is no other place to print it
        say(message, sys.stderr)
    return code
