"""Results of runs: their files, and as text, a column per method or measure, values in percent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from utils.errors import BROKEN, DataError
from utils.metrics import ANOMALY, CLASS_IOU, NORMAL, SEGMENTATION, Measure


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever a broken `file` leads to into a DataError that names it."""
    try:
        yield
    except (*BROKEN, yaml.YAMLError) as error:
        cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"{file}: not as a run writes it ({cause}); run it again") from error


def totals(method: dict[str, Any]) -> list[tuple[Measure, dict[str, Any]]]:
    """What a metrics file holds of a method over all classes, in the order of tables; measures of
    normal images only where some were segmented."""
    found = method | method.get("normal", {})
    return [(m, found[m.name]) for m in (*SEGMENTATION, *NORMAL) if m.name in found]


def method_table(methods: dict[str, Any]) -> str:
    """Class IoU with the number of queries, then `totals`, of the `methods` of a metrics file."""
    first, *_ = methods.values()
    lines = [_line("class", "queries", *methods)]
    for name, entry in first["classes"].items():
        cells = [_percent(m["classes"][name], CLASS_IOU.name) for m in methods.values()]
        lines.append(_line(name, str(entry["queries"]), *cells))
    for rows in zip(*map(totals, methods.values()), strict=True):
        cells = [_percent(found) for _, found in rows]
        lines.append(_line(rows[0][0].label, "", *cells))
    return "\n".join(lines)


def object_table(objects: dict[str, Any]) -> str:
    """IoU pooled over the labelled queries of each of the `objects` of an open domain run."""
    lines = []
    for name, entry in objects.items():
        cells = [_percent({"mean": iou}) for iou in entry["iou"].values()]
        lines.append(_line(name, "queries", *entry["iou"]))
        lines.append(_line(CLASS_IOU.label, str(measured_queries(entry)), *cells))
    return "\n".join(lines)


def measured_queries(entry: dict[str, Any]) -> int:
    """How many queries the IoU of an open domain object stands on; without labels, all of them."""
    return int(entry.get("labelled") or entry["queries"])


def anomaly_table(anomaly: dict[str, Any]) -> str:
    """The `anomaly` part of a metrics file: a line per object, and the mean over objects."""
    lines = [_line("object", *(measure.label for measure in ANOMALY))]
    for name, entry in (anomaly["objects"] | {"mean": anomaly["mean"]}).items():
        lines.append(_line(name, *(_percent(entry[measure.name]) for measure in ANOMALY)))
    return "\n".join(lines)


# by the key of the results in metrics.json
TABLES = {"methods": method_table, "objects": object_table, "anomaly": anomaly_table}


def _percent(summary: dict[str, Any], key: str = "mean") -> str:
    if summary[key] is None:
        return "-"
    spread = f" +-{100 * summary['std']:5.2f}" if len(summary.get("repeats", ())) > 1 else ""
    return f"{100 * summary[key]:.2f}{spread}"


def _line(name: str, *cells: str) -> str:
    return f"{name:<32}" + "".join(f"{cell:>16}" for cell in cells)
