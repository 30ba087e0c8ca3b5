"""Results as text: IoU in percent, a column per method."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

FIRST, NEXT = 32, 16


def method_table(methods: dict[str, Any]) -> str:
    """Class IoU with the number of queries, mIoU and FB-IoU of the `methods` of a metrics file."""
    first, *_ = methods.values()
    lines = [_line("class", ["queries", *methods])]
    for name, known in first["classes"].items():
        cells = [_percent(m["classes"][name], "iou") for m in methods.values()]
        lines.append(_line(name, [str(known["queries"]), *cells]))
    for label, key in (("mIoU", "miou"), ("FB-IoU", "fb_iou")):
        lines.append(_line(label, ["", *(_percent(m[key], "mean") for m in methods.values())]))
    return "\n".join(lines)


def object_table(objects: dict[str, Any]) -> str:
    """IoU pooled over the labelled queries of each of the `objects` of an open domain run."""
    lines = []
    for name, report in objects.items():
        cells = [_percent({"iou": value}, "iou") for value in report["iou"].values()]
        lines.append(_line(name, ["queries", *report["iou"]]))
        lines.append(_line("IoU", [str(measured_queries(report)), *cells]))
    return "\n".join(lines)


def measured_queries(report: dict[str, Any]) -> int:
    """How many queries the IoU of an open domain object stands on; without any label, how many were segmented."""
    return int(report.get("labelled") or report["queries"])


MEASURES = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1",
    "aupro": "AUPRO",
}


def anomaly_table(report: dict[str, Any]) -> str:
    """The measures of the `anomaly` part of a metrics file: a line per object, and the mean over objects."""
    lines = [_line("object", MEASURES.values())]
    for name, measures in (report["objects"] | {"mean": report["mean"]}).items():
        lines.append(_line(name, [_percent(measures[key], "mean") for key in MEASURES]))
    return "\n".join(lines)


def _percent(summary: dict[str, Any], key: str) -> str:
    if summary[key] is None:
        return "-"
    spread = f" +-{100 * summary['std']:5.2f}" if len(summary.get("repeats", ())) > 1 else ""
    return f"{100 * summary[key]:.2f}{spread}"


def _line(name: str, cells: Iterable[str]) -> str:
    return f"{name:<{FIRST}}" + "".join(f"{cell:>{NEXT}}" for cell in cells)
