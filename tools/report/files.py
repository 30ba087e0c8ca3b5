"""Read the files that a run leaves. A broken one is a DataError that names it; a missing optional one is None."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from utils.errors import BROKEN, DataError

RANKS = ("worst", "median", "best")


@dataclass(frozen=True)
class Queries:
    """What queries.csv tells, by method.

    points: (defect as share of the image, IoU), fractions, of each query that has a defect, its pixels pooled over the
        repeats.
    without_defect: how many queries have none.
    threshold: mean over all rows; a method without thresholds is left out.
    """

    points: dict[str, list[tuple[float, float]]]
    without_defect: int
    threshold: dict[str, float]


@dataclass(frozen=True)
class Curve:
    """Precision, recall and, unless None, IoU at each threshold; fractions, None where undefined."""

    name: str
    threshold: list[float]
    precision: list[float | None]
    recall: list[float | None]
    iou: list[float | None] | None
    average_precision: float | None


@dataclass(frozen=True)
class History:
    """Per epoch: loss, learning rate, and mIoU in fractions, None where it was not measured."""

    epoch: list[int]
    loss: list[float | None]
    learning_rate: list[float | None]
    train_miou: list[float | None]
    validation: dict[str, list[float | None]]


@dataclass(frozen=True)
class Item:
    """A query of the gallery: rank may be empty, panels are (caption, file), scores by their name."""

    class_name: str
    rank: str
    caption: str
    scores: dict[str, float | None]
    panels: list[tuple[str, Path]]


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turns whatever a broken `file` leads to into a DataError that names it."""
    try:
        yield
    except BROKEN as error:
        raise DataError(
            f"{file}: not as a run writes it ({type(error).__name__}: {error}); run it again"
        ) from error


def read_json(file: Path, parse: Callable[[Any], Any]) -> Any:
    """`parse` applied to the content of a JSON file, whose faults it may meet with any of BROKEN."""
    with reading(file):
        return parse(json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number))


def optional(file: Path, read: Callable[[Path], Any]) -> Any:
    """`read(file)`, or None where there is no such file."""
    return read(file) if file.exists() else None


def read_run(file: Path) -> dict[str, str]:
    """When, how long and on what a run ran, from run.json: as texts ready to print."""
    return read_json(file, _run)


def _run(content: dict[str, Any]) -> dict[str, str]:
    minutes, seconds = divmod(round(number(content["seconds"]) or 0), 60)
    processes = int(content["processes"])
    return {
        "finished": f"{datetime.fromisoformat(content['finished']):%Y-%m-%d %H:%M %Z}".strip(),
        "duration": f"{minutes} min {seconds} s" if minutes else f"{seconds} s",
        "device": text(content["device"]) + (f", {processes} processes" if processes > 1 else ""),
    }


def number(value: Any) -> float | None:
    """A finite number or None, as JSON has it; TypeError for anything else."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def text(value: Any) -> str:
    """A string; TypeError for anything else."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def read_queries(file: Path) -> Queries:
    """queries.csv, see Queries."""
    counts: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(
        lambda: defaultdict(lambda: [0.0, 0, 0])
    )
    thresholds: dict[str, list[float]] = defaultdict(list)
    with reading(file), file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, strict=True):
            query = counts[text(row["method"])][text(row["class"]), text(row["query"])]
            query[0] = _finite(row["share"])
            query[1] += int(row["intersection"])
            query[2] += int(row["union"])
            if row["threshold"]:
                thresholds[row["method"]].append(_finite(row["threshold"]))
        points = {
            m: [(s, i / u) for s, i, u in queries.values() if s > 0]
            for m, queries in counts.items()
        }
    without = {
        key for queries in counts.values() for key, (share, *_) in queries.items() if not share
    }
    mean = {method: math.fsum(values) / len(values) for method, values in thresholds.items()}
    return Queries(points, len(without), mean)


def read_curves(file: Path) -> list[Curve]:
    """curves.json."""
    return read_json(file, lambda content: [_curve(entry) for entry in content["curves"]])


def read_history(file: Path) -> History:
    """history.json."""
    return read_json(file, _history)


def read_gallery(file: Path) -> list[Item]:
    """A gallery's index.json: items by class in the order of the file; of each class the worst, the median and the
    best, then those of another rank, or none, as they come.

    Raises:
        DataError: the index is broken, or names a file that is missing or lies outside its folder.
    """
    items = read_json(file, lambda content: [_item(entry, file.parent) for entry in content])
    classes = list(dict.fromkeys(item.class_name for item in items))
    for _, panel in (panel for item in items for panel in item.panels):
        with reading(file):  # a name that the system refuses
            inside, there = panel.resolve().is_relative_to(file.parent.resolve()), panel.is_file()
        if not inside:
            raise DataError(
                f"{file}: {panel} lies outside the gallery's folder; run the test again"
            )
        if not there:
            raise DataError(f"{panel}: missing, though {file} names it; run the test again")
    order = {rank: place for place, rank in enumerate(RANKS)}
    return sorted(
        items, key=lambda item: (classes.index(item.class_name), order.get(item.rank, len(RANKS)))
    )


def read_config(file: Path) -> tuple[str, dict[str, Any]]:
    """config.yaml as it stands, and its tree."""
    with reading(file):
        content = file.read_text(encoding="utf-8")
        try:
            tree = yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error
        return content, dict(tree)


def _curve(entry: dict[str, Any]) -> Curve:
    columns = {key: [number(v) for v in entry[key]] for key in ("threshold", "precision", "recall")}
    iou = [number(v) for v in entry["iou"]] if "iou" in entry else None
    if (
        len({len(column) for column in (*columns.values(), *([iou] if iou is not None else []))})
        != 1
    ):
        raise ValueError(f"the columns of curve {entry['name']!r} differ in length")
    if None in columns["threshold"]:
        raise ValueError(f"curve {entry['name']!r} has a threshold of null")
    return Curve(
        text(entry["name"]),
        **columns,
        iou=iou,
        average_precision=number(entry["average_precision"]),
    )


def _history(content: list[dict[str, Any]]) -> History:
    validated = [entry.get("validation") or {} for entry in content]
    methods = dict.fromkeys(name for values in validated for name in values)
    return History(
        epoch=[int(entry["epoch"]) for entry in content],
        loss=[number(entry["loss"]) for entry in content],
        learning_rate=[number(entry["learning_rate"]) for entry in content],
        train_miou=[number(entry.get("train_miou")) for entry in content],
        validation={m: [number(values.get(m)) for values in validated] for m in methods},
    )


def _item(entry: dict[str, Any], folder: Path) -> Item:
    return Item(
        class_name=text(entry["class"]),
        rank=text(entry["rank"]),
        caption=text(entry["caption"]),
        scores={name: number(value) for name, value in entry["scores"].items()},
        panels=[
            (text(panel["caption"]), folder / text(panel["file"])) for panel in entry["panels"]
        ],
    )


def _finite(value: str) -> float:
    if not math.isfinite(float(value)):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
