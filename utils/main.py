"""What train.py and test.py share: arguments, config, and errors that exit with code 2 without a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from yacs.config import CfgNode

from method_config import add_config_arguments, load_config
from utils.errors import UserError


def run_main(description: str, job: Callable[[CfgNode, str], Path]) -> int:
    """Parse the command line, load the config and run a job; returns the exit code."""
    parser = argparse.ArgumentParser(description=description)
    add_config_arguments(parser)
    args = parser.parse_args()
    try:
        job(load_config(args.cfg, args.opts), args.cfg[-1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
