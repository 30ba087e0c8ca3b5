"""Read the files of a run into plain data; a broken file is a DataError that names it."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from utils.errors import BROKEN, DataError
from utils.metrics import ANOMALY, BY_SIZE, SEGMENTATION
from utils.tables import measured_queries

RANKS = ("worst", "median", "best")


class Value(NamedTuple):
    """Mean and standard deviation over repeats, fractions; None where undefined."""

    mean: float | None
    std: float | None = None
    repeats: int = 1


class Row(NamedTuple):
    """A class or object, or a summary of all (queries is None), with a value per column."""

    name: str
    values: list[Value]
    queries: int | None


@dataclass
class Test:
    """One test set of a run; what its files lack is empty.

    Attributes:
        name: "" for the ordinary one.
        kind: "methods", "objects" (open domain) or "anomaly", the key of the results.
        columns: methods, or labels of the measures of anomaly detection.
        sizes: per method the ranges of defect size as in metrics.json.
        record: everything else of metrics.json that fits a line, as text.
        points: per method (defect as share of the image, IoU), fractions, of each query with a
            defect, its pixels pooled over the repeats.
        without_defect: how many queries have none.
        thresholds: per method with thresholds their mean over all queries.
        curves: as in curves.json.
        gallery: per class the entries of the gallery's index; `file` of a panel is a path.
    """

    name: str
    kind: str
    columns: list[str]
    totals: list[Row]
    rows: list[Row]
    sizes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    record: dict[str, str] = field(default_factory=dict)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    without_defect: int = 0
    thresholds: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    gallery: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def queries(self) -> int:
        """Number of queries over all rows and repeats."""
        return sum(row.queries or 0 for row in self.rows)

    @property
    def repeats(self) -> int:
        """The most repeats of any value."""
        rows = (*self.totals, *self.rows)
        return max((value.repeats for row in rows for value in row.values), default=1)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever a broken `file` leads to into a DataError that names it."""
    try:
        yield
    except (*BROKEN, yaml.YAMLError) as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"{file}: not as a run writes it ({cause}); run it again") from error


def optional(file: Path, parse: Callable[[Path], Any]) -> Any:
    """`parse(file)`, whose faults name the file; None where there is no such file."""
    if not file.exists():
        return None
    with reading(file):
        return parse(file)


def read_test(folder: Path, suffix: str = "") -> Test:
    """Everything about one test set: its metrics file and those of its other files that exist.

    Args:
        folder: of the run.
        suffix: of the names of the files, such as "_validation".

    Raises:
        DataError: a file is broken.
    """
    file = folder / f"metrics{suffix}.json"
    with reading(file):
        test = read_metrics(file, suffix.removeprefix("_"))
    if queries := optional(folder / f"queries{suffix}.csv", read_queries):
        test.points, test.without_defect, test.thresholds = queries
    test.curves = optional(folder / f"curves{suffix}.json", read_curves) or []
    test.gallery = optional(folder / f"gallery{suffix}" / "index.json", read_gallery) or {}
    return test


def read_queries(file: Path) -> tuple[dict[str, list[tuple[float, float]]], int, dict[str, float]]:
    """queries.csv as points, without_defect and thresholds of a `Test`."""
    pixels: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(dict)
    thresholds: dict[str, list[float]] = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, strict=True):
            query = pixels[row["method"]].setdefault((row["class"], row["query"]), [0, 0, 0])
            query[0] = number(float(row["share"]))
            query[1] += int(row["intersection"])
            query[2] += int(row["union"])
            if row["threshold"]:
                thresholds[row["method"]].append(number(float(row["threshold"])))
    points = {
        method: [(share, part / whole) for share, part, whole in queries.values() if share > 0]
        for method, queries in pixels.items()
    }
    without = {
        key for queries in pixels.values() for key, (share, *_) in queries.items() if not share
    }
    means = {method: math.fsum(values) / len(values) for method, values in thresholds.items()}
    return points, len(without), means


def read_curves(file: Path) -> list[dict[str, Any]]:
    """curves.json: name, threshold, precision, recall, average_precision and, of methods, iou."""
    curves = json.loads(file.read_text(encoding="utf-8"))["curves"]
    for curve in curves:
        columns = [curve[key] for key in ("threshold", "precision", "recall")]
        columns += [curve["iou"]] if "iou" in curve else []
        if len({len([number(value) for value in column]) for column in columns}) != 1:
            raise ValueError(f"the columns of curve {curve['name']!r} differ in length")
        if None in curve["threshold"]:
            raise ValueError(f"curve {curve['name']!r} has a threshold of null")
        number(curve["average_precision"])
    return curves


def read_history(file: Path) -> list[dict[str, Any]]:
    """history.json: epoch, loss and learning_rate per epoch, train_miou and validation (mIoU by
    method) of some."""
    history = json.loads(file.read_text(encoding="utf-8"))
    for entry in history:
        entry.setdefault("train_miou", None)
        entry["validation"] = entry.get("validation") or {}
        numbers = (entry[key] for key in ("epoch", "loss", "learning_rate", "train_miou"))
        for value in (*numbers, *entry["validation"].values()):
            number(value)
    return history


def read_gallery(file: Path) -> dict[str, list[dict[str, Any]]]:
    """A gallery's index.json: its entries per class, classes in the order of the file.

    Raises:
        ValueError: it names a file that is missing or lies outside its folder.
    """
    classes: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads(file.read_text(encoding="utf-8")):
        classes.setdefault(entry["class"], []).append(entry)
        for value in entry["scores"].values():
            number(value)
        for panel in entry["panels"]:
            panel["file"] = file.parent / panel["file"]
            if not panel["file"].resolve().is_relative_to(file.parent.resolve()):
                raise ValueError(f"{panel['file']} lies outside the gallery's folder")
            if not panel["file"].is_file():
                raise ValueError(f"{panel['file']} is missing")
    for entries in classes.values():
        entries.sort(key=lambda entry: (*RANKS, entry["rank"]).index(entry["rank"]))
    return classes


def read_config(file: Path) -> tuple[str, dict[str, Any]]:
    """config.yaml as it stands, and its tree."""
    content = file.read_text(encoding="utf-8")
    return content, dict(yaml.safe_load(content))


def read_run(file: Path) -> dict[str, str]:
    """run.json: when, how long and on what a run ran, as text."""
    content = json.loads(file.read_text(encoding="utf-8"))
    minutes, seconds = divmod(round(content["seconds"]), 60)
    processes = f", {content['processes']} processes" if content["processes"] > 1 else ""
    return {
        "finished": f"{datetime.fromisoformat(content['finished']):%Y-%m-%d %H:%M %Z}".strip(),
        "duration": f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        "device": f"{content['device']}{processes}",
    }


def number(value: Any) -> float | None:
    """A finite number or None, unchanged; TypeError for anything else."""
    if isinstance(value, bool) or (value is not None and not math.isfinite(value)):
        raise TypeError(f"{value!r} is no number")
    return value


def read_metrics(file: Path, name: str = "") -> Test:
    """metrics.json of any kind of test as the `Test` called `name`."""

    def value(summary: dict[str, Any], key: str = "mean") -> Value:
        return Value(number(summary[key]), number(summary["std"]), len(summary["repeats"]))

    content = json.loads(file.read_text(encoding="utf-8"))
    kinds = [kind for kind in ("methods", "objects", "anomaly") if kind in content]
    if len(kinds) != 1:
        raise ValueError(f"expected one of methods, objects, anomaly in it, found {len(kinds)}")
    kind, table, totals, sizes = kinds[0], content.pop(kinds[0]), [], {}
    warnings = [f"left out: {fault}" for fault in content.pop("unreadable", [])]
    if kind == "methods":
        first, *_ = columns = list(table)
        rows = [
            Row(c, [value(m["classes"][c], "iou") for m in table.values()], entry["queries"])
            for c, entry in table[first]["classes"].items()
        ]
        totals = [
            Row(measure.label, [value(m[measure.name]) for m in table.values()], None)
            for measure in SEGMENTATION
        ]
        sizes = {method: entry["sizes"] for method, entry in table.items() if entry.get("sizes")}
        for part in (part for parts in sizes.values() for part in parts):
            for key in ("low", "high", "queries", "defects", *(m.name for m in BY_SIZE)):
                number(part[key])
    elif kind == "objects":
        columns = list(dict.fromkeys(method for entry in table.values() for method in entry["iou"]))
        rows = [
            Row(o, [Value(number(e["iou"].get(m))) for m in columns], measured_queries(e))
            for o, e in table.items()
        ]
        for o, entry in table.items():
            warnings += [f"{o}, left out: {fault}" for fault in entry.get("unreadable", [])]
    else:
        columns = [measure.label for measure in ANOMALY]
        rows = [
            Row(o, [value(entry[m.name]) for m in ANOMALY], entry["images"])
            for o, entry in table["objects"].items()
        ]
        totals = [Row("mean", [value(table["mean"][m.name]) for m in ANOMALY], None)]
    if failed := content.pop("failed_queries", 0):
        lost = "1 query failed and is" if failed == 1 else f"{failed} queries failed and are"
        warnings.insert(0, f"{lost} not in the figures")
    record = {key: _plain(value) for key, value in content.items()}
    record = {key: value for key, value in record.items() if value}
    return Test(name, kind, columns, totals, rows, sizes, warnings, record)


def _plain(value: Any) -> str:
    """Text of a value that fits a line, of a list its parts; "" for None and anything nested."""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return "" if value is None or isinstance(value, dict) else str(value)
