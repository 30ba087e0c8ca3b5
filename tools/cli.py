"""What the entry points share: arguments, config, and errors that exit with code 2 without a traceback."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import current_process
from pkgutil import resolve_name

from method_config import add_config_arguments, load_config
from utils.console import complete_streams, say
from utils.errors import OutputError, ProcessError, UserError
from utils.signals import Interrupted, hold_signals, interruptible, postponed

MAIN = "MainProcess"  # as multiprocessing names who has not been started by it

if current_process().name != MAIN:  # one of NUM_GPUS, which imports PyTorch before its part begins
    hold_signals()


def run_main(description: str, job: str) -> int:
    """Parse the command line, load the config and run a job; returns the exit code.

    Args:
        description: for --help.
        job: of the config and the name of its last file, as `module:function`; imported, with PyTorch, only when the
            config has proved right, as that takes seconds.
    """

    def call() -> None:
        parser = argparse.ArgumentParser(description=description)
        add_config_arguments(parser)
        args = parser.parse_args()
        cfg = load_config(args.cfg, args.opts)
        with postponed(
            alone=True
        ):  # what a signal cuts off half imported may go on, and fail otherwise
            function = resolve_name(job)
        function(cfg, args.cfg[-1])

    return exit_code(call)


def exit_code(call: Callable[[], object]) -> int:
    """Call it: 0, or with a message on standard error 2 for what the user can mend, 1 for the fault of another process,
    130 after Ctrl-C and 143 after SIGTERM."""
    complete_streams()
    if hasattr(
        sys.stdout, "reconfigure"
    ):  # a file name, and so the name of a class, may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            with interruptible():
                call()
        finally:
            say()  # what is still to be printed, such as --help
    except UserError as error:
        code, told = 2, f"error: {error}"
    except ProcessError as error:
        code, told = 1, f"error: {error}"
    except Interrupted as error:
        is_first = os.environ.get("RANK", "0") == "0"  # of several processes one tells it
        code, told = error.exit_code, str(error) if is_first else ""
    else:
        return 0
    with suppress(OutputError):  # there is no other place for it
        say(told, sys.stderr)
    return code
