"""Is the difference real? `python -m tools.compare log/a log/b` sets a paired bootstrap on it.

The bootstrap covers which query images were taken: an interval that excludes 0 means that the
difference would likely have its sign on other images of the same classes. Which supports were drawn
is another source of noise, covered only so far as the repeats of a run average over it
(`DATASET.few_shot_repeated_multiple`); the spread over repeats in metrics.json shows it. Which
weights a training happened to find is not covered.
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
    """Counts of one method of a run.

    Attributes:
        name: folder:method.
        queries: (intersection, union), (2,) float64 pixels, by (class, image): means over repeats.
    """

    name: str
    queries: dict[tuple[str, str], np.ndarray]


def read_run(argument: str, suffix: str = "") -> Run:
    """Read `FOLDER` or `FOLDER:METHOD`, without a method the first of its metrics file.

    Args:
        argument: of the command line.
        suffix: of the files of a further test set, such as `_validation`.

    Raises:
        DataError: no such folder, file or method, or a broken file.
    """
    whole = Path(argument).is_dir() or ":" not in argument
    folder, method = (argument, "") if whole else argument.rsplit(":", 1)
    file, metrics = (
        Path(folder, name) for name in (f"queries{suffix}.csv", f"metrics{suffix}.json")
    )
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; compare needs a run with queries.csv, which tests of a split "
            "and open domain runs with true labels leave; anomaly detection runs have none"
        )
    if not method:
        try:
            content = json.loads(metrics.read_text(encoding="utf-8"))
            of_objects = [name for o in content.get("objects", {}).values() for name in o["iou"]]
            method, *_ = of_objects or content["methods"]
        except BROKEN as error:
            raise DataError(
                f"{metrics}: no methods of a run ({type(error).__name__}: {error}); name one, "
                f"{folder}:METHOD"
            ) from error
    return Run(f"{Path(folder)}:{method}", read_counts(file, method))


def read_counts(file: Path, method: str) -> dict[tuple[str, str], np.ndarray]:
    """The `queries` of a `Run`, from the rows of a method in queries.csv.

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
                if None in row or None in row.values():
                    raise ValueError("more or fewer cells than columns")
                part, whole = row["intersection"], row["union"]
                if not (part + whole).isdecimal() or int(part) > int(whole):
                    raise ValueError(
                        f"intersection {part!r} and union {whole!r}: expected numbers of pixels, "
                        "the first not over the second"
                    )
                methods.add(row["method"])
                if row["method"] == method:
                    rows.setdefault((row["class"], row["image"]), []).append(
                        (int(part), int(whole))
                    )
        except (ValueError, csv.Error) as error:
            line = reader.reader.line_num
            raise DataError(f"{file}, line {line}: {error}; run the test again") from error
    if not rows:
        methods = ", ".join(sorted(methods)) or "no rows"
        raise DataError(f"{file}: no rows of method {method}; it has {methods}")
    return {key: np.mean(counts, axis=0) for key, counts in rows.items()}


def compare(runs: Sequence[Run], samples: int = 10000, seed: int = 0) -> dict[str, Any]:
    """mIoU and class IoU of the runs over the queries that all have, as plain JSON.

    A query is a pair of class and image; its pixel counts are means over repeats, so IoU pools the
    pixels of all repeats, where metrics.json has the mean of each repeat's IoU.

    Returns:
        fractions, None where undefined.

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
            name: {"queries": len(strata[name])} | asdict(comparison)
            for name, comparison in classes.items()
        },
    }


def table(report: dict[str, Any]) -> str:
    """The report of `compare` as aligned text in percent, and what to make of it."""
    names = [run["name"] for run in report["runs"]]
    rows = [("class", "queries", "run", "IoU [95 % interval]", "difference [95 % interval]", "p")]
    lines = {"mIoU": {"queries": report["queries"]} | report["miou"], **report["classes"]}
    for label, line in lines.items():
        first = (label, str(line["queries"]))
        for name, iou, difference in zip(
            names, line["runs"], [None, *line["differences"]], strict=True
        ):
            cells = ("", "")
            if difference:
                p = difference["p"]
                cells = (_interval(difference, "+"), "-" if p is None else f"{p:.2g}")
            rows.append((*first, name, _interval(iou), *cells))
            first = ("", "")
    a, b, c, d, e, f = (max(map(len, column)) for column in zip(*rows, strict=True))
    left_out = ", ".join(f"{run['left_out']} of {run['name']}" for run in report["runs"])
    text = [f"{report['queries']} queries in common; left out: {left_out}", ""]
    for label, queries, name, iou, difference, p in rows:
        line = f"{label:<{a}}  {queries:>{b}}  {name:<{c}}  {iou:>{d}}  {difference:>{e}}  {p:>{f}}"
        text.append(line.rstrip())
    text.append("")
    for name, difference in zip(names[1:], report["miou"]["differences"], strict=True):
        text.append(f"{name} against {names[0]}: {_verdict(difference)}")
    text.append("p values are not corrected for multiplicity, neither over classes nor over runs.")
    if few := sum(line["queries"] < FEW for line in report["classes"].values()):
        text.append(
            f"{few} of {len(report['classes'])} classes have under {FEW} queries: their own "
            "intervals are too narrow, p values too small."
        )
    text.append(
        "Covered is which query images were taken; which supports, only so far as repeats average "
        "over them."
    )
    return "\n".join(text)


def _interval(estimate: dict[str, float | None], sign: str = "") -> str:
    value, low, high = (
        "-" if estimate[key] is None else f"{100 * estimate[key]:{sign}.2f}"
        for key in ("value", "low", "high")
    )
    return value if estimate["low"] is None else f"{value} [{low}, {high}]"


def _verdict(difference: dict[str, float | None]) -> str:
    value, low, high = difference["value"], difference["low"], difference["high"]
    if value is None:
        return "no difference, since no class has a union in every run"
    text = f"the difference is {100 * value:+.2f} points of mIoU"
    if low is None:
        return f"{text} (too few queries for an interval)"
    verb = "includes" if low <= 0 <= high else "excludes"
    interval = f"{100 * low:+.2f} to {100 * high:+.2f}"
    return f"{text} (95 % interval {interval}, which {verb} 0; p = {difference['p']:.2g})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 2 for faults that the user can mend."""
    summary, _, covers = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=summary, epilog=covers
    )
    add, default = parser.add_argument, "(default: %(default)s)"
    help_runs = "log/<run>, or log/<run>:METHOD; without one the first method of its metrics.json; "
    add("runs", nargs="+", metavar="RUN", help=f"{help_runs}the first run is the reference")
    add("--set", default="", metavar="NAME", help="a further test set, such as validation")
    add("--samples", type=int, default=10000, help=f"bootstrap samples {default}")
    add("--seed", type=int, default=0, help=f"of the bootstrap {default}")
    add("--json", type=Path, metavar="FILE", help="write the results there too, as fractions")

    def run() -> None:
        args = parser.parse_args(argv)
        if len(args.runs) < 2:
            raise ConfigError("compare needs two runs or more, such as log/a:SOFS log/a:prior")
        if args.samples < 1 or args.seed < 0:
            got = f"--samples {args.samples}, --seed {args.seed}"
            raise ConfigError(f"{got}: expected at least 1 sample and no seed below 0")
        suffix = f"_{args.set}" if args.set else ""
        report = compare([read_run(run, suffix) for run in args.runs], args.samples, args.seed)
        say(table(report))
        if args.json is not None:
            write_json(args.json, report)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
