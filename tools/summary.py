"""Print what runs have found: `python -m tools.summary FOLDER ...`, folders of train.py or test.py."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.cli import exit_code
from utils.console import say
from utils.errors import BROKEN, DataError
from utils.tables import anomaly_table, method_table, object_table

TABLES = {"methods": method_table, "objects": object_table, "anomaly": anomaly_table}


def summarise(folder: Path) -> str:
    """Tables of every metrics file in a run's folder, and where its report and its pictures are.

    Raises:
        DataError: no metrics file there, or one that is none.
    """
    files = sorted(folder.glob("metrics*.json"))
    if not files:
        hint = f", {folder.parent} for instance" if folder.is_file() else ""
        raise DataError(
            f"{folder}: no metrics.json; give the folder of a finished run of train.py or test.py{hint}"
        )
    lines = [line for file in files for line in _read(file)]
    pictures = sorted(
        {p.parent for part in ("figures*", "*/overlays") for p in folder.glob(f"{part}/*.png")}
    )
    report = [f"report: {folder / 'report.html'}"] if (folder / "report.html").is_file() else []
    return "\n".join([*lines, *report, *(f"pictures: {p}" for p in pictures)])


def _read(file: Path) -> list[str]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind = next(kind for kind in TABLES if kind in content)
        return [str(file), TABLES[kind](content[kind])]
    except (*BROKEN, StopIteration) as error:
        raise DataError(
            f"{file}: no metrics of a run ({type(error).__name__}: {error}); run the test again"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for faults the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.summary", description="Print what runs have found."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="folder of a run, log/<run>"
    )
    return exit_code(lambda: say("\n\n".join(map(summarise, parser.parse_args(argv).folders))))


if __name__ == "__main__":
    sys.exit(main())
