"""Print what runs found: `python -m tools.summary FOLDER ...`, folders of train.py or test.py."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.cli import exit_code
from utils.console import say
from utils.errors import DataError
from utils.tables import TABLES, reading


def summarise(folder: Path) -> str:
    """Tables of every metrics file in a run's folder, and where its report and its pictures are.

    Raises:
        DataError: there is no metrics file, or one that no run wrote.
    """
    lines = []
    for file in sorted(folder.glob("metrics*.json")):
        with reading(file):
            content = json.loads(file.read_text(encoding="utf-8"))
            (kind,) = TABLES.keys() & content.keys()
            lines += [str(file), TABLES[kind](content[kind])]
    if not lines:
        remedy = "give the folder of a finished run of train.py or test.py"
        raise DataError(f"{folder}: no metrics.json; {remedy}")
    lines += [f"report: {file}" for file in folder.glob("report.html")]
    pictures = (*folder.glob("figures*/*.png"), *folder.glob("*/overlays/*.png"))
    lines += [f"pictures: {path}" for path in sorted({picture.parent for picture in pictures})]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for faults that the user can mend."""
    parser = argparse.ArgumentParser("python -m tools.summary", description=__doc__)
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a run, log/<run>")
    return exit_code(lambda: say("\n\n".join(map(summarise, parser.parse_args(argv).folders))))


if __name__ == "__main__":
    sys.exit(main())
