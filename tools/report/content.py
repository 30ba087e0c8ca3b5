"""What the page shows, made of the files of a run: texts ready to print, figures, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from tools.report import figures
from tools.report.embed import GALLERY_BYTES, Embedded, embed_image
from tools.report.figures import Picture, picture
from tools.report.files import (
    Curve,
    History,
    Item,
    Queries,
    optional,
    read_config,
    read_curves,
    read_gallery,
    read_history,
    read_queries,
    read_run,
)
from tools.report.results import ANOMALY, CLASSES, Results, Row, SizeRange, Value, read_results
from utils.errors import DataError

UNDEFINED = "\N{EN DASH}"
# (label, key of the metrics file or of run.json, where config.yaml has it if the metrics do not)
FACTS = (
    ("data set", "data_set", "DATASET.name"),
    ("split", "split", ""),
    ("shot", "shot", ""),
    ("seed", "seed", "RNG_SEED"),
    ("backbone", "backbone", "TRAIN.backbone"),
    ("epochs", "epochs", ""),
    ("finished", "finished", ""),
    ("duration", "duration", ""),
    ("device", "device", ""),
)
# (label, key, factor to what is shown, is more better?)
SIZE_ROWS = (
    ("IoU, %", "iou", 100, True),
    ("recall, %", "recall", 100, True),
    ("false-positive area, % of the image", "false_positive_area", 100, False),
    ("found, % of the defects", "found", 100, True),
    ("false alarms per image", "false_alarms", 1, False),
)


@dataclass(frozen=True)
class Cell:
    """Text of a figure and of its spread, and whether it is the best of those it is held against."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """head: of all columns. totals and rows: name, cells of the columns, queries as text."""

    head: list[str]
    totals: list[tuple[str, list[Cell], str]]
    rows: list[tuple[str, list[Cell], str]]


@dataclass(frozen=True)
class SizeTable:
    """head: names of the ranges.  counts: (label, texts).  measures: (label, [(method, cells)])."""

    head: list[str]
    counts: list[tuple[str, list[str]]]
    measures: list[tuple[str, list[tuple[str, list[Cell]]]]]


@dataclass(frozen=True)
class Shown:
    """An item of the gallery: scores as (name, text), panels as (caption, picture, alternative text)."""

    rank: str
    caption: str
    scores: list[tuple[str, str]]
    panels: list[tuple[str, Embedded, str]]


@dataclass(frozen=True)
class TestSet:
    """All that is known of one test set; name is "" for the ordinary one, and what is missing is None or empty."""

    name: str
    results: Results
    table: Table
    bars: Picture | None
    scatter: Picture | None
    without_defect: int
    sizes: SizeTable | None
    curves: list[Picture]
    gallery: list[tuple[str, list[Shown]]]


@dataclass(frozen=True)
class Report:
    """The page."""

    name: str
    facts: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    warnings: list[str]
    tests: list[TestSet]
    training: list[Picture]
    config: str | None


def read_report(folder: Path) -> Report:
    """All that the files of a run tell.

    Raises:
        DataError: the folder is none of a run, or a file in it is broken.
    """
    files = sorted(folder.glob("metrics*.json"), key=lambda file: file.stem)
    history: History | None = optional(folder / "history.json", read_history)
    if not files and history is None:
        raise DataError(
            f"{folder}: no metrics.json; give the folder of a finished run of train.py or test.py"
        )
    config, tree = optional(folder / "config.yaml", read_config) or (None, {})
    suffixes = [file.stem.removeprefix("metrics") for file in files]
    galleries = [
        optional(folder / f"gallery{s}" / "index.json", read_gallery) or [] for s in suffixes
    ]
    share = GALLERY_BYTES // max(1, sum(len(item.panels) for items in galleries for item in items))
    tests = [
        _test_set(folder, s, items, share) for s, items in zip(suffixes, galleries, strict=True)
    ]
    record = (tests[0].results.record if tests else {}) | (
        optional(folder / "run.json", read_run) or {}
    )
    facts = {key for _, key, _ in FACTS}
    return Report(
        name=folder.resolve().name,
        facts=_facts(record, tree, tests),
        versions=[(key, value) for key, value in record.items() if key not in facts],
        warnings=[f"{t.name}: {w}" if t.name else w for t in tests for w in t.results.warnings],
        tests=tests,
        training=[] if history is None else _training(history),
        config=config,
    )


def _test_set(folder: Path, suffix: str, gallery: list[Item], share: int) -> TestSet:
    results = read_results(folder / f"metrics{suffix}.json")
    queries: Queries = optional(folder / f"queries{suffix}.csv", read_queries) or Queries({}, 0, {})
    curves: list[Curve] = optional(folder / f"curves{suffix}.json", read_curves) or []
    points = {m: queries.points[m] for m in results.columns[:2] if queries.points.get(m)}
    pictures = _gallery(gallery, share, 1 if results.kind == ANOMALY else 100)
    return TestSet(
        name=suffix.removeprefix("_"),
        results=results,
        table=result_table(results),
        bars=_bars(results),
        scatter=_scatter(points, results.sizes) if points else None,
        without_defect=queries.without_defect,
        sizes=size_table(results.sizes) if results.sizes else None,
        curves=_curves(curves, queries.threshold),
        gallery=pictures,
    )


def result_table(results: Results) -> Table:
    """Figures in percent; of the methods on a class the best is marked."""
    count, first = {CLASSES: ("queries", "class"), ANOMALY: ("images", "object")}.get(
        results.kind, ("queries", "object")
    )

    def line(row: Row) -> tuple[str, list[Cell], str]:
        values = [row.values[column] for column in results.columns]
        best = (
            [False] * len(values) if results.kind == ANOMALY else best_of([v.mean for v in values])
        )
        return (
            row.name,
            list(map(_cell, values, best)),
            "" if row.queries is None else str(row.queries),
        )

    return Table(
        [first, *results.columns, count],
        [line(r) for r in results.totals],
        [line(r) for r in results.rows],
    )


def size_table(sizes: Mapping[str, list[SizeRange]]) -> SizeTable:
    """The measures by size of the defects; of the methods on a range the best is marked."""
    first = next(iter(sizes.values()))
    measures = []
    for label, key, factor, more in SIZE_ROWS:
        columns = [
            [ranges[i].measures[key] for ranges in sizes.values()] for i in range(len(first))
        ]
        marks = [
            best_of([None if v is None else v if more else -v for v in column])
            for column in columns
        ]
        cells = [[Cell(_figure(v, factor), "", m) for v, m in zip(*pair, strict=True)] for pair in
                 zip(columns, marks, strict=True)]  # fmt: skip
        measures.append(
            (label, [(method, [column[j] for column in cells]) for j, method in enumerate(sizes)])
        )
    counts = [
        ("queries", [str(r.queries) for r in first]),
        ("defects", [str(r.defects) for r in first]),
    ]
    return SizeTable([r.name for r in first], counts, measures)


def best_of(values: list[float | None]) -> list[bool]:
    """Which are the largest, where they differ."""
    known = {v for v in values if v is not None}
    return [len(known) > 1 and v == max(known) for v in values]


def _cell(value: Value, best: bool) -> Cell:
    spread = (
        _figure(value.std)
        if value.repeats > 1 and value.mean is not None and value.std is not None
        else ""
    )
    return Cell(_figure(value.mean), spread, best)


def _figure(value: float | None, factor: float = 100) -> str:
    return UNDEFINED if value is None else f"{factor * value:.2f}"


def _facts(
    record: dict[str, str], tree: dict[str, Any], tests: list[TestSet]
) -> list[tuple[str, str]]:
    known = {label: record.get(key) or _setting(tree, setting) for label, key, setting in FACTS}
    if tests:
        results = tests[0].results
        repeats = f" in {results.repeats} repeats" if results.repeats > 1 else ""
        known["images" if results.kind == ANOMALY else "queries"] = f"{results.queries}{repeats}"
    return [(label, value) for label, value in known.items() if value]


def _setting(tree: Any, key: str) -> str:
    for part in filter(None, key.split(".")):
        tree = tree.get(part, {}) if isinstance(tree, dict) else {}
    return str(tree) if key and tree != {} else ""


def _bars(results: Results) -> Picture | None:
    shown = [row for row in results.rows if any(v.mean is not None for v in row.values.values())]
    if results.kind == ANOMALY or len(shown) < 2:
        return None
    draw = partial(figures.class_bars, shown, results.columns)
    return picture(draw, f"Bars: IoU of {len(shown)} classes, as in the table")


def _scatter(
    points: dict[str, list[tuple[float, float]]], sizes: dict[str, list[SizeRange]]
) -> Picture:
    shown = {method: ranges for method, ranges in sizes.items() if method in points}
    draw = partial(figures.size_scatter, points, shown)
    return picture(draw, "Scatter: IoU of each query against the share of the image that is defect")


def _curves(curves: list[Curve], used: dict[str, float]) -> list[Picture]:
    if not curves:
        return []
    shown = [picture(partial(figures.precision_recall, curves), "Curves: precision against recall")]
    with_iou = [curve for curve in curves if curve.iou is not None]
    if with_iou:
        draw = partial(figures.iou_by_threshold, with_iou, used)
        shown.append(picture(draw, "Curves: IoU against the threshold, and the threshold used"))
    return shown


def _training(history: History) -> list[Picture]:
    if not history.epoch:
        return []
    shown = [
        picture(
            partial(figures.loss_and_rate, history),
            "Curves: training loss and learning rate per epoch",
        )
    ]
    if any(
        v is not None
        for values in (history.train_miou, *history.validation.values())
        for v in values
    ):
        shown.append(picture(partial(figures.miou_by_epoch, history), "Curves: mIoU per epoch"))
    return shown


def _gallery(items: Iterable[Item], share: int, factor: float) -> list[tuple[str, list[Shown]]]:
    return [
        (name, [_shown(item, share, factor) for item in group])
        for name, group in groupby(items, key=lambda item: item.class_name)
    ]


def _shown(item: Item, share: int, factor: float) -> Shown:
    unit = " %" if factor == 100 else ""
    scores = [
        (k, UNDEFINED if v is None else f"{_figure(v, factor)}{unit}")
        for k, v in item.scores.items()
    ]
    about = ", ".join(filter(None, (item.class_name, item.rank)))
    panels = [
        (caption, embed_image(file, share), f"{caption}, {about}: {item.caption}")
        for caption, file in item.panels
    ]
    return Shown(item.rank, item.caption, scores, panels)
