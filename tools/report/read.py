"""Read the files of a run into plain data; a broken file is a DataError that names it."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Any, NamedTuple

from utils.metrics import ANOMALY, SECONDS
from utils.tables import TABLES, measured_queries, reading, totals

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
    higher_is_better: bool = True


@dataclass
class Test:
    """One test set of a run; what its files lack is empty.

    `name` is "" for the ordinary one; `columns` are methods, or labels of the measures of anomaly
    detection; `record` is everything else of metrics.json that fits a line. Per method: `sizes` as
    in metrics.json; `points` (defect as share of the image, IoU), fractions, of each query with a
    defect, its pixels pooled over the repeats; the mean of `thresholds` over all queries. Per class
    `gallery` has the entries of the index; `file` of a panel is a path.
    """

    name: str
    kind: str  # "methods", "objects" (open domain) or "anomaly", the key of the results
    columns: list[str]
    totals: list[Row]
    rows: list[Row]
    sizes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    record: dict[str, str] = field(default_factory=dict)
    points: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    without_defect: int = 0  # queries
    thresholds: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    gallery: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def repeats(self) -> int:
        """The most repeats of any value."""
        rows = (*self.totals, *self.rows)
        return max((value.repeats for row in rows for value in row.values), default=1)


def parsed(file: Path, parse: Callable[[str], Any], missing: Any = None) -> Any:
    """What `parse` makes of the text of a file, or `missing` where there is no such file."""
    if not file.exists():
        return missing
    with reading(file):
        return parse(file.read_bytes().decode())


def read_test(folder: Path, suffix: str = "") -> Test:
    """One test set of a run, its files ending in `suffix`, such as "_validation"; only its metrics
    file has to exist."""
    test = parsed(folder / f"metrics{suffix}.json", read_metrics)
    test.name = suffix.removeprefix("_")
    test.record |= parsed(folder / f"timing{suffix}.json", read_timing, {})
    queries = parsed(folder / f"queries{suffix}.csv", read_queries, ({}, 0, {}))
    test.points, test.without_defect, test.thresholds = queries
    curves = folder / f"curves{suffix}.json"
    test.curves = parsed(curves, lambda text: json.loads(text)["curves"], [])
    test.gallery = parsed(folder / f"gallery{suffix}" / "index.json", read_gallery, {})
    for panel in panels_of(test):
        # a name alone: no index leads out of the folder
        panel["file"] = folder / f"gallery{suffix}" / Path(panel["file"]).name
    return test


def panels_of(test: Test) -> list[dict[str, Any]]:
    """All panels of the gallery."""
    entries = (entry for items in test.gallery.values() for entry in items)
    return [panel for entry in entries for panel in entry["panels"]]


def read_queries(text: str) -> tuple[dict[str, list[tuple[float, float]]], int, dict[str, float]]:
    """queries.csv as points, without_defect and thresholds of a `Test`."""
    pixels: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(dict)
    thresholds: dict[str, list[float]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO(text), strict=True):
        query = pixels[row["method"]].setdefault((row["class"], row["query"]), [0, 0, 0])
        query[0] = float(row["share"])
        query[1] += int(row["intersection"])
        query[2] += int(row["union"])
        if row["threshold"]:
            thresholds[row["method"]].append(float(row["threshold"]))
    points, without = {}, set()
    for method, queries in pixels.items():
        points[method] = [(share, part / n) for share, part, n in queries.values() if share > 0]
        without |= {key for key, (share, *_) in queries.items() if not share}
    means = {method: fsum(values) / len(values) for method, values in thresholds.items()}
    return points, len(without), means


def read_timing(text: str) -> dict[str, str]:
    """timing.json as an entry of the record of a `Test`."""
    return {SECONDS.name: f"{json.loads(text)[SECONDS.name]:.3g}"}


def read_gallery(text: str) -> dict[str, list[dict[str, Any]]]:
    """A gallery's index.json: its entries per class, classes in the order of the file."""
    classes: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads(text):
        classes.setdefault(entry["class"], []).append(entry)
    for entries in classes.values():
        entries.sort(key=lambda entry: (*RANKS, entry["rank"]).index(entry["rank"]))
    return classes


def read_metrics(text: str) -> Test:
    """metrics.json of any kind of test."""

    def value(summary: dict[str, Any], key: str = "mean") -> Value:
        return Value(summary[key], summary["std"], len(summary["repeats"]))

    content = json.loads(text)
    (kind,) = TABLES.keys() & content.keys()
    table, sums, rows, sizes = content.pop(kind), [], [], {}
    warnings = [f"left out: {fault}" for fault in content.pop("unreadable", [])]
    if kind == "methods":
        first, *_ = columns = list(table)
        for name, entry in table[first]["classes"].items():
            values = [value(m["classes"][name], "iou") for m in table.values()]
            rows.append(Row(name, values, entry["queries"]))
        for found in zip(*map(totals, table.values()), strict=True):
            measure, values = found[0][0], [value(summary) for _, summary in found]
            sums.append(Row(measure.label, values, None, measure.higher_is_better))
        sizes = {method: entry["sizes"] for method, entry in table.items() if entry.get("sizes")}
    elif kind == "objects":
        columns = list(dict.fromkeys(method for entry in table.values() for method in entry["iou"]))
        for name, entry in table.items():
            values = [Value(entry["iou"].get(method)) for method in columns]
            rows.append(Row(name, values, measured_queries(entry)))
            warnings += [f"{name}, left out: {fault}" for fault in entry.get("unreadable", [])]
    else:
        columns = [measure.label for measure in ANOMALY]
        for name, entry in table["objects"].items():
            rows.append(Row(name, [value(entry[m.name]) for m in ANOMALY], entry["images"]))
        sums = [Row("mean", [value(table["mean"][m.name]) for m in ANOMALY], None)]
    if failed := content.pop("failed_queries", 0):
        warnings.insert(0, f"failed queries, which are not in the figures: {failed}")
    record = {
        key: ", ".join(map(str, part)) if isinstance(part, list) else str(part)
        for key, part in content.items()
        if part not in (None, "", []) and not isinstance(part, dict)
    }
    return Test("", kind, columns, sums, rows, sizes, warnings, record)
