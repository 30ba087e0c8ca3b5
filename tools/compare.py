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
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tools.cli import exit_code
from utils.console import say
from utils.errors import ConfigError, DataError
from utils.metrics.bootstrap import paired_bootstrap
from utils.output_files import write_json
from utils.tables import reading

FEW = 20  # queries of a class; intervals over fewer are notably too narrow


class Run(NamedTuple):
    """Counts of one method of a run, `name` is folder:method; `queries` are (intersection, union),
    (2,) float64 pixels, by (class, image): means over repeats."""

    name: str
    queries: dict[tuple[str, str], np.ndarray]


def read_run(argument: str, suffix: str = "") -> Run:
    """Read `FOLDER` or `FOLDER:METHOD`, without a method the first of its metrics file; `suffix` is
    that of the files of a further test set, such as `_validation`.

    Raises:
        DataError: no such folder, file or method, or a broken file.
    """
    whole = Path(argument).is_dir() or ":" not in argument
    folder, method = (argument, "") if whole else argument.rsplit(":", 1)
    file, metrics = Path(folder, f"queries{suffix}.csv"), Path(folder, f"metrics{suffix}.json")
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; compare needs a run with queries.csv, which tests of a split "
            "and open domain runs with true labels leave; anomaly detection runs have none"
        )
    if not method:
        with reading(metrics):
            content = json.loads(metrics.read_text(encoding="utf-8"))
            of_objects = [name for o in content.get("objects", {}).values() for name in o["iou"]]
            method, *_ = of_objects or content["methods"]
    counts: dict[str, dict[tuple[str, str], list]] = defaultdict(lambda: defaultdict(list))
    with reading(file), file.open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream, strict=True):
            pixels = int(row["intersection"]), int(row["union"])
            counts[row["method"]][row["class"], row["image"]].append(pixels)
    if method not in counts:
        methods = ", ".join(sorted(counts)) or "no rows"
        raise DataError(f"{file}: no rows of method {method}; it has {methods}")
    queries = {key: np.mean(repeats, axis=0) for key, repeats in counts[method].items()}
    return Run(f"{Path(folder)}:{method}", queries)


def compare(runs: Sequence[Run], samples: int = 10000, seed: int = 0) -> dict[str, Any]:
    """mIoU and class IoU of the runs over the queries that all have, as plain JSON: fractions, None
    where undefined.

    A query is a pair of class and image; its pixel counts are means over repeats, so IoU pools the
    pixels of all repeats, where metrics.json has the mean of each repeat's IoU.

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
        "queries": len(common), "samples": samples, "seed": seed, "miou": asdict(miou),
        "classes": {c: {"queries": len(strata[c])} | asdict(iou) for c, iou in classes.items()},
    }  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """The report of `compare` as aligned text in percent, and what to make of it."""
    names = [run["name"] for run in report["runs"]]
    rows = [("class", "queries", "run", "IoU [95 % interval]", "difference [95 % interval]", "p")]
    lines = {"mIoU": {"queries": report["queries"]} | report["miou"], **report["classes"]}
    for label, line in lines.items():
        first = (label, str(line["queries"]))
        differences = [("", "")]
        for difference in line["differences"]:
            p = "-" if difference["p"] is None else f"{difference['p']:.2g}"
            differences.append((_interval(difference, "+"), p))
        for name, iou, cells in zip(names, line["runs"], differences, strict=True):
            rows.append((*first, name, _interval(iou), *cells))
            first = ("", "")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left_out = ", ".join(f"{run['left_out']} of {run['name']}" for run in report["runs"])
    text = [f"{report['queries']} queries in common; left out: {left_out}", ""]
    for row in rows:
        cells = [f"{c:{side}{n}}" for c, side, n in zip(row, "<><>>>", widths, strict=True)]
        text.append("  ".join(cells).rstrip())
    text.append("")
    for name, difference in zip(names[1:], report["miou"]["differences"], strict=True):
        text.append(f"{name} against {names[0]}: {_verdict(difference)}")
    text.append("p values are not corrected for multiplicity, neither over classes nor over runs.")
    if few := sum(line["queries"] < FEW for line in report["classes"].values()):
        classes = f"{few} of {len(report['classes'])} classes have under {FEW} queries"
        text.append(f"{classes}: their own intervals are too narrow, p values too small.")
    covered = "Covered is which query images were taken; which supports, only so far as repeats"
    return "\n".join([*text, f"{covered} average over them."])


def _interval(estimate: dict[str, float | None], sign: str = "") -> str:
    value, *ends = (
        "-" if estimate[key] is None else f"{100 * estimate[key]:{sign}.2f}"
        for key in ("value", "low", "high")
    )
    return value if estimate["low"] is None else f"{value} [{', '.join(ends)}]"


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
    parser = argparse.ArgumentParser("python -m tools.compare", None, summary, covers)
    add, default = parser.add_argument, "(default: %(default)s)"
    kind = "log/<run>, or log/<run>:METHOD; without one the first method of its metrics.json"
    add("reference", metavar="REFERENCE", help=kind)
    add("runs", nargs="+", metavar="RUN", help="compared with the reference; as it")
    add("--set", default="", metavar="NAME", help="a further test set, such as validation")
    add("--samples", type=int, default=10000, help=f"bootstrap samples {default}")
    add("--seed", type=int, default=0, help=f"of the bootstrap {default}")
    add("--json", type=Path, metavar="FILE", help="write the results there too, as fractions")

    def run() -> None:
        args = parser.parse_args(argv)
        if args.samples < 1 or args.seed < 0:
            got = f"--samples {args.samples}, --seed {args.seed}"
            raise ConfigError(f"{got}: expected at least 1 sample and no seed below 0")
        suffix = f"_{args.set}" if args.set else ""
        runs = [read_run(name, suffix) for name in (args.reference, *args.runs)]
        report = compare(runs, args.samples, args.seed)
        say(table(report))
        if args.json is not None:
            write_json(args.json, report)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
