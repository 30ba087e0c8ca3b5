"""The metrics of one test set, of whichever kind, as one table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.report.files import number, read_json, text
from utils.tables import measured_queries

CLASSES, OBJECTS, ANOMALY = "classes", "objects", "anomaly"
FAULTS = ("unreadable", "failed_queries")
ANOMALY_MEASURES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1 max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1 max",
    "aupro": "AUPRO",
}
SIZE_MEASURES = ("iou", "recall", "false_positive_area", "found", "false_alarms")


@dataclass(frozen=True)
class Value:
    """Mean and standard deviation over repeats, fractions; None where undefined."""

    mean: float | None
    std: float | None = None
    repeats: int = 1


@dataclass(frozen=True)
class Row:
    """A class or object, or a summary of all (then queries is None); values by column."""

    name: str
    queries: int | None
    values: dict[str, Value]


@dataclass(frozen=True)
class SizeRange:
    """Defects of a share of the image from `low` to `high`, and what a method makes of them, see SIZE_MEASURES."""

    name: str
    low: float
    high: float
    queries: int
    defects: int
    measures: dict[str, float | None]


@dataclass(frozen=True)
class Results:
    """A metrics file.

    kind: CLASSES (columns are methods), OBJECTS (the same, of an open domain run) or ANOMALY (columns are measures).
    sizes: per method the ranges of defect size.
    record: everything else of the file, as text.
    """

    kind: str
    columns: list[str]
    rows: list[Row]
    totals: list[Row]
    sizes: dict[str, list[SizeRange]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    record: dict[str, str] = field(default_factory=dict)

    @property
    def queries(self) -> int:
        """Of all rows, over all repeats."""
        return sum(row.queries or 0 for row in self.rows)

    @property
    def repeats(self) -> int:
        """The most repeats of any value."""
        return max(
            (v.repeats for row in (*self.totals, *self.rows) for v in row.values.values()),
            default=1,
        )


def read_results(file: Path) -> Results:
    """metrics.json of any of the three kinds.

    Raises:
        DataError: it is none of them, or broken.
    """
    return read_json(file, _results)


def _results(content: dict[str, Any]) -> Results:
    parse = {"methods": _of_classes, "objects": _of_objects, "anomaly": _of_anomalies}
    kinds = [key for key in parse if key in content]
    if len(kinds) != 1:
        raise ValueError(f"expected one of {', '.join(parse)} in it, found {len(kinds)}")
    known = {kinds[0], *FAULTS}
    record = {
        key: shown
        for key, value in content.items()
        if key not in known and (shown := _plain(value))
    }
    return Results(**parse[kinds[0]](content[kinds[0]]), warnings=_warnings(content), record=record)


def _of_classes(methods: dict[str, Any]) -> dict[str, Any]:
    first, *_ = methods.values()
    rows = [
        Row(
            name,
            int(known["queries"]),
            {m: _value(v["classes"][name], "iou") for m, v in methods.items()},
        )
        for name, known in first["classes"].items()
    ]
    totals = [
        Row(label, None, {m: _value(v[key]) for m, v in methods.items()})
        for label, key in (("mIoU", "miou"), ("FB-IoU", "fb_iou"))
    ]
    sizes = {
        m: [_size_range(entry) for entry in v["sizes"]]
        for m, v in methods.items()
        if v.get("sizes")
    }
    return {
        "kind": CLASSES,
        "columns": list(methods),
        "rows": rows,
        "totals": totals,
        "sizes": _alike(sizes),
    }


def _of_objects(objects: dict[str, Any]) -> dict[str, Any]:
    columns = list(dict.fromkeys(method for entry in objects.values() for method in entry["iou"]))
    rows = [
        Row(name, measured_queries(entry), {m: Value(number(entry["iou"].get(m))) for m in columns})
        for name, entry in objects.items()
    ]
    return {"kind": OBJECTS, "columns": columns, "rows": rows, "totals": []}


def _of_anomalies(content: dict[str, Any]) -> dict[str, Any]:
    rows = [
        Row(
            name,
            int(entry["images"]),
            {label: _value(entry[key]) for key, label in ANOMALY_MEASURES.items()},
        )
        for name, entry in content["objects"].items()
    ]
    mean = {label: _value(content["mean"][key]) for key, label in ANOMALY_MEASURES.items()}
    columns = list(ANOMALY_MEASURES.values())
    return {"kind": ANOMALY, "columns": columns, "rows": rows, "totals": [Row("mean", None, mean)]}


def _value(summary: dict[str, Any], key: str = "mean") -> Value:
    return Value(number(summary[key]), number(summary["std"]), len(summary["repeats"]))


def _size_range(entry: dict[str, Any]) -> SizeRange:
    high = number(entry["high"])
    return SizeRange(
        name=text(entry["name"]),
        low=number(entry["low"]) or 0.0,
        high=1.0 if high is None else high,
        queries=int(entry["queries"]),
        defects=int(entry["defects"]),
        measures={key: number(entry[key]) for key in SIZE_MEASURES},
    )


def _alike(sizes: dict[str, list[SizeRange]]) -> dict[str, list[SizeRange]]:
    if len({tuple((r.name, r.low, r.high) for r in ranges) for ranges in sizes.values()}) > 1:
        raise ValueError("the methods' ranges of defect size differ")
    return sizes


def _warnings(content: dict[str, Any]) -> list[str]:
    faults = [f"left out: {fault}" for fault in content.get("unreadable", [])]
    for name, entry in content.get("objects", {}).items():
        faults += [f"{name}, left out: {fault}" for fault in entry.get("unreadable", [])]
    failed = content.get("failed_queries", 0)
    lost = "1 query failed and is" if failed == 1 else f"{failed} queries failed and are"
    return [f"{lost} not in the figures", *faults] if failed else faults


def _plain(value: Any) -> str:
    """Text of a value that fits a line, of a list its parts; "" for None and anything nested."""
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return "" if value is None or isinstance(value, dict) else str(value)
