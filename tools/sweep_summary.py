"""Summary of a sweep from the metrics.json files of its tests: Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import DataError
from utils.metrics import ANOMALY, CLASS_IOU, MEASURES, NORMAL, SECONDS, SEGMENTATION, TOLERANT
from utils.metrics.segmentation import mean_std
from utils.metrics.sizes import SizeMeter
from utils.output_files import write_json, write_text
from utils.tables import reading, totals

MEAN = "mean"
SIZE_TABLES = ("iou", "found", "false_alarms")  # of BY_SIZE
Keys = dict[str, Any]


@dataclass
class Figure:
    """One measured quantity.

    `keys` are shot, method, split, class, metric; of anomaly detection shot, object, metric.
    `values` are fractions (of SECONDS seconds, one per run), by RNG_SEED of a run and number of the
    repeat; None where undefined.
    """

    keys: Keys
    values: dict[tuple[int, int], float | None] = field(default_factory=dict)

    def summed(self) -> tuple[float | None, float | None, int]:
        """Mean, population standard deviation and number of the defined values."""
        defined = [value for value in self.values.values() if value is not None]
        return *mean_std(defined), len(defined)

    def cell(self) -> str:
        """Mean, and +- standard deviation of several defined values, fractions in percent; else a
        dash."""
        mean, std, defined = self.summed()
        spread = f" +- {_shown(std, self.keys['metric'])}" if defined > 1 else ""
        return _shown(mean, self.keys["metric"]) + spread


def figures_of(contents: Iterable[dict[str, Any]]) -> list[Figure]:
    """Every figure of some metrics files, all seeds together, and means over splits or objects.

    Repeat k of a test draws supports by RNG_SEED + k, so seeds next to each other share draws. The
    same figures of the same draw, of a method without a head or with the same one, count once.
    """
    figures: dict[tuple, Figure] = {}
    counted = set[tuple]()
    for content in contents:
        for keys, rows in _rows(content):
            members = [Figure(keys | own) for own, _ in rows]
            members = [figures.setdefault(tuple(f.keys.values()), f) for f in members]
            for repeat, values in enumerate(zip(*(repeats for _, repeats in rows), strict=True)):
                draw = (*keys.values(), content["seed"] + repeat, values)
                if draw not in counted:
                    for figure, value in zip(members, values, strict=True):
                        figure.values[content["seed"], repeat] = value
                counted.add(draw)
    groups: dict[tuple, list[Figure]] = {}
    for figure in figures.values():
        if not figure.keys.get("class"):
            part = "object" if "object" in figure.keys else "split"
            groups.setdefault(tuple((figure.keys | {part: MEAN}).items()), []).append(figure)
    means = []
    for keys, members in groups.items():
        draws = dict.fromkeys(draw for member in members for draw in member.values)
        values = {d: mean_std([member.values.get(d) for member in members])[0] for d in draws}
        means.append(Figure(dict(keys), values))
    return [*figures.values(), *means]


def _rows(content: dict[str, Any]) -> Iterator[tuple[Keys, list[tuple[Keys, list[float | None]]]]]:
    """By method or object: keys that its figures share; then further keys and repeats of each."""
    keys = {"shot": content["shot"]}
    if "anomaly" in content:
        for name, measured in content["anomaly"]["objects"].items():
            rows = [({"metric": m.name}, measured[m.name]["repeats"]) for m in ANOMALY]
            yield keys | {"object": name}, rows
        return
    for name, measured in content["methods"].items():
        of = [("", measure.name, found) for measure, found in totals(measured)]
        of += [(label, CLASS_IOU.name, found) for label, found in measured["classes"].items()]
        for part, measures in ((measured, TOLERANT.values()), (measured.get("normal"), NORMAL)):
            for label, found in part["classes"].items() if part else ():
                of += [(label, m.name, found[m.name]) for m in measures if m.name in found]
        rows = [({"class": c, "metric": metric}, found["repeats"]) for c, metric, found in of]
        yield keys | {"method": name, "split": content["split"]}, rows
    if SECONDS.name in content:
        rows = [({"class": "", "metric": SECONDS.name}, [content[SECONDS.name]])]
        yield keys | {"method": "all", "split": content["split"]}, rows


def sizes_of(contents: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures by the size of a defect: shot, method, split and the `sizes` of a metrics file, all
    repeats of all seeds pooled; then the same with all splits pooled, whose split is "mean"."""
    meters: dict[tuple, SizeMeter] = {}
    for content in contents:
        for method, measured in content.get("methods", {}).items():
            for split in (content["split"], MEAN):
                key = (content["shot"], method, split)
                meters.setdefault(key, SizeMeter()).add(measured["sizes"])
    keys = sorted(meters, key=lambda key: key[2] == MEAN)
    names = ("shot", "method", "split", "sizes")
    return [dict(zip(names, (*k, meters[k].report()), strict=True)) for k in keys]


def tables(
    figures: Sequence[Figure], sizes: Sequence[dict[str, Any]]
) -> tuple[list[str], list[str]]:
    """Markdown tables: those over all classes, then the details.

    Of split tests a table per measure, a row per shot and method, a column per split, and by size a
    column per range; then class IoU, a table per split. Of anomaly detection means over objects,
    then objects, a table per shot.
    """
    if "object" in figures[0].keys:
        means = [f for f in figures if f.keys["object"] == MEAN]
        first = [_table("Means over objects", means, ["shot"], "{label}")]
        key, title, row, column = "shot", "{}-shot, objects", "object", "{label}"
    else:
        first = []
        for measure in (*SEGMENTATION, *NORMAL, SECONDS):
            of = [f for f in figures if (f.keys["metric"], f.keys["class"]) == (measure.name, "")]
            first += [_table(measure.label, of, ["shot", "method"], "{part}")] if of else []
        first += [_size_table(name, sizes) for name in SIZE_TABLES]
        figures = [f for f in figures if f.keys["class"] and f.keys["metric"] == CLASS_IOU.name]
        key, title, row, column = "split", "Split {}, class IoU", "class", "{shot}-shot {method}"
    parts: dict[Any, list[Figure]] = {}
    for figure in figures:
        parts.setdefault(figure.keys[key], []).append(figure)
    details = [_table(title.format(v), part, [row], column) for v, part in parts.items()]
    return first, details


def _table(title: str, figures: Sequence[Figure], row: list[str], column: str) -> str:
    """A heading and a table: rows by the keys `row`, columns by the format `column`."""
    columns, cells = dict[str, None](), dict[tuple, dict[str, str]]()
    for figure in figures:
        keys = figure.keys | {"label": MEASURES[figure.keys["metric"]].label}
        keys["part"] = MEAN if keys.get("split") == MEAN else f"split {keys.get('split')}"
        name = column.format(**keys)
        columns[name] = None
        cells.setdefault(tuple(figure.keys[k] for k in row), {})[name] = figure.cell()
    lines = [[*map(str, k), *(found.get(c, "-") for c in columns)] for k, found in cells.items()]
    return _markdown(title, [*row, *columns], lines)


def _size_table(name: str, sizes: Sequence[dict[str, Any]]) -> str:
    """One measure by size, of all splits together: a row per shot and method."""
    measure, lines = MEASURES[name], []
    pooled = [entry for entry in sizes if entry["split"] == MEAN]
    for entry in pooled:
        cells = [_shown(part[name], name) for part in entry["sizes"]]
        lines.append([str(entry["shot"]), entry["method"], *cells])
    ranges = [part["name"] for part in pooled[0]["sizes"]]
    return _markdown(f"{measure.label} by size", ["shot", "method", *ranges], lines)


def _markdown(title: str, head: list[str], lines: Sequence[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _shown(value: float | None, metric: str) -> str:
    """A value by the unit of its measure, fractions in percent; a dash for None."""
    return "-" if value is None else f"{(100 if MEASURES[metric].unit == '%' else 1) * value:.2f}"


def _note(figures: Sequence[Figure]) -> str:
    """What the figures of a summary are."""
    figures = [figure for figure in figures if figure.keys["metric"] != SECONDS.name]
    counts = sorted({len(figure.values) for figure in figures})
    seeds = sorted({seed for figure in figures for seed, _ in figure.values})
    spread = f", mean +- standard deviation over {' or '.join(map(str, counts))} repeats"
    shared = "Repeat k draws supports by RNG_SEED + k: what seeds share without a head of their own"
    by_size = "Figures by size pool the counts of all splits and repeats. Seconds and false alarms "
    by_size += "are no percentages. "
    return (
        f"Percent{spread if counts[-1] > 1 else ''}; RNG_SEED {', '.join(map(str, seeds))}. "
        "A mean over splits or objects is taken within each repeat. "
        f"{by_size if 'split' in figures[0].keys else ''}"
        f"{shared + ' counts once. ' if len(counts) > 1 else ''}"
        "A dash: undefined, and no part of a mean."
    )


def write_summary(folder: Path, files: Sequence[Path]) -> str:
    """Write summary.md, summary.json and summary.csv of some metrics files into the sweep's folder.

    JSON and CSV hold fractions; JSON the value of every seed and repeat, None where undefined; CSV
    the number of defined ones, and no figures by size. Returns the tables over all classes. A file
    of another test, such as of open-domain objects, raises a DataError.
    """
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, content in zip(files, contents, strict=True):
        if not content.keys() & {"methods", "anomaly"}:
            raise DataError(f"{file}: a sweep sums up splits and anomaly detection, no other tests")
        parts = [part for m in content.get("methods", {}).values() for part in m["sizes"]]
        if not all("counts" in part for part in parts):
            fault = "an earlier version left no counts by size"
            raise DataError(f"{file}: {fault}; remove its folder and give the command again")
        timing = file.with_name("timing.json")
        if timing.is_file():
            with reading(timing):
                seconds = json.loads(timing.read_text(encoding="utf-8"))[SECONDS.name]
            content[SECONDS.name] = seconds
    figures, sizes = figures_of(contents), sizes_of(contents)
    entries, text = [], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*figures[0].keys, "mean", "std", "repeats"])
    for figure in figures:
        mean, std, defined = figure.summed()
        writer.writerow([*figure.keys.values(), mean, std, defined])
        repeats = [{"seed": s, "repeat": k, "value": v} for (s, k), v in figure.values.items()]
        entries.append(figure.keys | {"mean": mean, "std": std, "repeats": repeats})
    first, details = tables(figures, sizes)
    page = f"# {folder.name}\n\n{_note(figures)}\n\n" + "\n".join([*first, *details])
    write_text(folder / "summary.md", page)
    content = {"sweep": folder.name, "figures": entries, "sizes": sizes}
    write_json(folder / "summary.json", content)
    write_text(folder / "summary.csv", text.getvalue())
    return "\n".join(first)
