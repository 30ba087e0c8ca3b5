"""What the entry points share: arguments, config, and errors that exit with code 2 without a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from yacs.config import CfgNode

from method_config import add_config_arguments, load_config
from utils.errors import UserError

INTERRUPTED = 130


def run_main(description: str, job: Callable[[CfgNode, str], Path]) -> int:
    """Parse the command line, load the config and run a job; returns the exit code."""
    parser = argparse.ArgumentParser(description=description)
    add_config_arguments(parser)
    args = parser.parse_args()
    return exit_code(lambda: job(load_config(args.cfg, args.opts), args.cfg[-1]))


def exit_code(call: Callable[[], object]) -> int:
    """Call it: 0, or 2 with the message on standard error for what the user can mend, or 130 when interrupted."""
    try:
        call()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0
