"""Write the reports of finished runs anew: `python -m tools.report RUN ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.cli import exit_code
from tools.report import write_report
from utils.console import say


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for faults that the user can mend."""
    parser = argparse.ArgumentParser("python -m tools.report", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run, log/<run>")
    return exit_code(lambda: [say(str(write_report(run))) for run in parser.parse_args(argv).runs])


if __name__ == "__main__":
    sys.exit(main())
