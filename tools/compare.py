"""Is the difference real? `python -m tools.compare log/a log/b` puts runs side by side, with a paired bootstrap.

The bootstrap covers which query images were taken: an interval that excludes 0 says that the difference would likely
show its sign on other images of the same classes. Which supports were drawn is another source of noise, and it is
covered only so far as the repeats of a run average over it (`DATASET.few_shot_repeated_multiple`); the spread over
repeats in metrics.json shows it. Nor does it cover which weights a training happened to find.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tools.cli import exit_code
from utils.console import say
from utils.errors import BROKEN, ConfigError, DataError
from utils.metrics.bootstrap import paired_bootstrap
from utils.output_files import write_json

COLUMNS = ("class", "image", "method", "intersection", "union")
FEW = 20  # queries of a class; intervals over fewer are notably too narrow


@dataclass(frozen=True)
class Run:
    """What one method of a run found.

    Attributes:
        name: folder:method.
        queries: (intersection, union), pixels, by (class, image): means over the repeats.
    """

    name: str
    queries: dict[tuple[str, str], np.ndarray]


def read_run(argument: str, suffix: str = "") -> Run:
    """The run of `FOLDER` or `FOLDER:METHOD`; suffix: of the files of a further test set, such as `_validation`.

    Raises:
        DataError: no such folder, file or method, or a broken file.
    """
    whole = Path(argument).is_dir() or ":" not in argument
    folder, method = (argument, "") if whole else argument.rsplit(":", 1)
    file = Path(folder) / f"queries{suffix}.csv"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; compare needs a run with queries.csv, which tests of a split and open domain runs "
            "with true labels leave; anomaly detection runs have none"
        )
    method = method or _first_method(file.with_name(f"metrics{suffix}.json"))
    return Run(f"{Path(folder)}:{method}", read_counts(file, method))


def _first_method(file: Path) -> str:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        objects = content.get("objects", {}).values()
        return next(iter([name for item in objects for name in item["iou"]] or content["methods"]))
    except (*BROKEN, StopIteration) as error:
        raise DataError(
            f"{file}: no methods of a run ({type(error).__name__}: {error}); name one, {file.parent}:METHOD"
        ) from error


def read_counts(file: Path, method: str) -> dict[tuple[str, str], np.ndarray]:
    """Intersection and union, pixels, (2,) float64 of each (class, image): means over the rows of a method.

    Raises:
        DataError: a broken file, or none of its rows is of the method.
    """
    rows: dict[tuple[str, str], list[tuple[int, int]]] = {}
    methods = set()
    with file.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            if missing := set(COLUMNS).difference(reader.fieldnames or ()):
                raise ValueError(f"no column {', '.join(sorted(missing))}")
            for row in reader:
                counts = _counts(row)
                methods.add(row["method"])
                if row["method"] == method:
                    rows.setdefault((row["class"], row["image"]), []).append(counts)
        except (ValueError, csv.Error) as error:
            raise DataError(
                f"{file}, line {reader.reader.line_num}: {error}; run the test again"
            ) from error
    if not rows:
        raise DataError(
            f"{file}: no rows of method {method}; it has {', '.join(sorted(methods)) or 'no rows'}"
        )
    return {key: np.mean(counts, axis=0) for key, counts in rows.items()}


def _counts(row: dict[str, str]) -> tuple[int, int]:
    """Raises ValueError where cells are missing or impossible."""
    if None in row or None in row.values():
        raise ValueError("more or fewer cells than columns")
    for name in ("intersection", "union"):
        if not row[name].isdecimal():
            raise ValueError(f"column {name} has {row[name]!r}, expected a number of pixels")
    if int(row["intersection"]) > int(row["union"]):
        raise ValueError(f"intersection {row['intersection']} is over union {row['union']}")
    return int(row["intersection"]), int(row["union"])


def compare(runs: Sequence[Run], samples: int = 10000, seed: int = 0) -> dict[str, Any]:
    """mIoU and class IoU of the runs over the queries that all have, as plain JSON: fractions, None where undefined.

    A query is a pair of class and image; its pixel counts are means over repeats, so figures pool the pixels of all
    repeats, where metrics.json has the mean of each repeat's figure.

    Raises:
        DataError: no query is in all runs.
    """
    common = sorted(set.intersection(*(set(run.queries) for run in runs)))
    if not common:
        examples = "; ".join(f"{run.name} has {' '.join(min(run.queries))}" for run in runs)
        raise DataError(
            f"no query (class and image) is in all runs: {examples}; compare tests of the same data"
        )
    strata = {
        name: np.array([[run.queries[key] for run in runs] for key in keys])
        for name, keys in groupby(common, key=lambda key: key[0])
    }
    miou, classes = paired_bootstrap(strata, samples, seed)
    return {
        "runs": [{"name": run.name, "left_out": len(run.queries) - len(common)} for run in runs],
        "queries": len(common),
        "samples": samples,
        "seed": seed,
        "miou": asdict(miou),
        "classes": {
            name: {"queries": len(strata[name])} | asdict(found) for name, found in classes.items()
        },
    }


def table(report: dict[str, Any]) -> str:
    """What `compare` found, as aligned text in percent, and what to make of it."""
    names = [run["name"] for run in report["runs"]]
    rows = [("class", "queries", "run", "IoU [95 % interval]", "difference [95 % interval]", "p")]
    for label, found in {
        "mIoU": {"queries": report["queries"]} | report["miou"],
        **report["classes"],
    }.items():
        first = (label, str(found["queries"]))
        for name, iou, difference in zip(
            names, found["runs"], [None, *found["differences"]], strict=True
        ):
            rows.append((*first, name, _interval(iou, ""), *_difference(difference)))
            first = ("", "")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = "<><>>>"
    lines = [
        "  ".join(f"{c:{a}{w}}" for c, a, w in zip(row, aligns, widths, strict=True)).rstrip()
        for row in rows
    ]
    left_out = ", ".join(f"{run['left_out']} of {run['name']}" for run in report["runs"])
    heading = f"{report['queries']} queries in common; left out: {left_out}"
    return "\n".join([heading, "", *lines, "", *_findings(report), *_notes(report)])


def _findings(report: dict[str, Any]) -> list[str]:
    reference, *others = (run["name"] for run in report["runs"])
    return [
        f"{name} against {reference}: {_finding(found)}"
        for name, found in zip(others, report["miou"]["differences"], strict=True)
    ]


def _finding(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "no difference, since no class has a union in every run"
    text = f"the difference is {100 * found['value']:+.2f} points of mIoU"
    if found["low"] is None:
        return f"{text} (too few queries for an interval)"
    verb = "includes" if found["low"] <= 0 <= found["high"] else "excludes"
    interval = f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
    return f"{text} (95 % interval {interval}, which {verb} 0; p = {found['p']:.2g})"


def _notes(report: dict[str, Any]) -> list[str]:
    notes = ["p values are not corrected for multiplicity, neither over classes nor over runs."]
    if few := sum(found["queries"] < FEW for found in report["classes"].values()):
        notes.append(f"{few} of {len(report['classes'])} classes have under {FEW} queries: their own intervals are too "
                     "narrow, p values too small.")  # fmt: skip
    notes.append(
        "Covered is which query images were taken; which supports, only so far as repeats average over them."
    )
    return notes


def _difference(found: dict[str, float | None] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return _interval(found, "+"), "-" if found["p"] is None else f"{found['p']:.2g}"


def _interval(found: dict[str, float | None], sign: str) -> str:
    value, low, high = (
        "-" if found[key] is None else f"{100 * found[key]:{sign}.2f}"
        for key in ("value", "low", "high")
    )
    return value if found["low"] is None else f"{value} [{low}, {high}]"


def _run(args: argparse.Namespace) -> None:
    if len(args.runs) < 2:
        raise ConfigError(
            "compare needs two runs or more, such as log/a log/b or log/a:SOFS log/a:prior"
        )
    if args.samples < 1 or args.seed < 0:
        raise ConfigError(
            f"--samples {args.samples}, --seed {args.seed}: expected at least 1 sample and no seed below 0"
        )
    suffix = f"_{args.set}" if args.set else ""
    report = compare(
        [read_run(argument, suffix) for argument in args.runs], args.samples, args.seed
    )
    say(table(report))
    if args.json is not None:
        try:
            write_json(args.json, report)
        except OSError as error:
            raise ConfigError(f"--json {args.json} cannot be written ({error.strerror})") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code, 2 for faults the user can mend."""
    summary, _, covers = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=summary, epilog=covers
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="log/<run>, or log/<run>:METHOD; without one the first method of its "
        "metrics.json; the first run is the reference of all differences")  # fmt: skip
    parser.add_argument(
        "--set", default="", metavar="NAME", help="a further test set, such as validation"
    )
    parser.add_argument(
        "--samples", type=int, default=10000, help="bootstrap samples (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there too, as fractions"
    )
    return exit_code(lambda: _run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
