"""Train and test a published experiment and sum it up: `python -m tools.sweep vision_v1`.

Its runs and summary.md, summary.json, summary.csv lie in OUTPUT_DIR/NAME. The same command again goes on where it was
interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from tools.cli import exit_code
from tools.sweep.plan import Sweep
from tools.sweep.protocols import protocol_names, read_protocol
from tools.sweep.runs import METRICS, carry_out, check_folders
from tools.sweep.summary import write_summary
from utils.console import say
from utils.distributed import started_by_torchrun
from utils.errors import ConfigError

LOG = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="python -m tools.sweep", description=__doc__)
    parser.add_argument("protocol", help=f"what to run: {', '.join(protocol_names())}")
    parser.add_argument(
        "--splits",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="some of the protocol's splits",
    )
    parser.add_argument(
        "--shots",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="supports per query, a test each",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[], metavar="N", help="RNG_SEED, a training each"
    )
    parser.add_argument(
        "--heads",
        default="",
        metavar="FILE",
        help="test this head, train none; {split}, {seed}: filled",
    )
    parser.add_argument(
        "--name", default="", help="folder below OUTPUT_DIR, the protocol's name unless given"
    )
    parser.add_argument(
        "--list", action="store_true", help="print a command per run, and run nothing"
    )
    parser.add_argument(
        "--opts",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings that win, in all runs",
    )
    return parser


def build_sweep(args: argparse.Namespace) -> Sweep:
    """The sweep that the arguments describe. Raises ConfigError for an unknown or broken protocol."""
    chosen = {
        key: getattr(args, key) for key in ("splits", "shots", "seeds", "heads", "name", "opts")
    }
    return Sweep(read_protocol(args.protocol), **chosen)


def sweep(args: argparse.Namespace) -> None:
    """Plan all runs, then do those that are not finished, then sum up.

    Raises:
        ConfigError: torchrun has started this process.
    """
    if started_by_torchrun():
        raise ConfigError(
            "a sweep starts the processes of its runs itself: call it without torchrun, with --opts NUM_GPUS N"
        )
    planned = build_sweep(args)
    runs = planned.runs()
    if args.list:
        say("\n".join(run.command() for run in runs))
        return
    check_folders(runs)
    carry_out(runs)
    say(write_summary(planned.folder(), [run.folder / METRICS for run in runs if not run.trains]))
    LOG.info("summary in %s", planned.folder())


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for faults the user can mend."""
    return exit_code(lambda: sweep(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
