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
from utils.metrics import ANOMALY, CLASS_IOU, MEASURES, SEGMENTATION
from utils.metrics.segmentation import mean_std
from utils.output_files import write_json, write_text

MEAN = "mean"
Keys = dict[str, Any]


@dataclass
class Figure:
    """One measured quantity.

    `keys` are shot, method, split, class, metric; of anomaly detection shot, object, metric.
    `values` are fractions, by RNG_SEED of a run and number of the repeat; None where undefined.
    """

    keys: Keys
    values: dict[tuple[int, int], float | None] = field(default_factory=dict)

    def summed(self) -> tuple[float | None, float | None, int]:
        """Mean, population standard deviation and number of the defined values."""
        defined = [value for value in self.values.values() if value is not None]
        return *mean_std(defined), len(defined)

    def cell(self) -> str:
        """In percent: mean, and +- standard deviation of several defined values; else a dash."""
        mean, std, defined = self.summed()
        if mean is None:
            return "-"
        return f"{100 * mean:.2f}" + (f" +- {100 * std:.2f}" if defined > 1 else "")


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
        of = [("", m.name, measured[m.name]) for m in SEGMENTATION]
        of += [(label, CLASS_IOU.name, found) for label, found in measured["classes"].items()]
        rows = [({"class": c, "metric": metric}, found["repeats"]) for c, metric, found in of]
        yield keys | {"method": name, "split": content["split"]}, rows


def tables(figures: Sequence[Figure]) -> list[str]:
    """Markdown tables, first those that papers print, then the details.

    Of split tests mIoU and FB-IoU, a row per shot and method, a column per split, then class IoU, a
    table per split; of anomaly detection means over objects, then objects, a table per shot.
    """
    if "object" in figures[0].keys:
        means = [f for f in figures if f.keys["object"] == MEAN]
        first = [_table("Means over objects", means, ["shot"], "{label}")]
        key, title, row, column = "shot", "{}-shot, objects", "object", "{label}"
    else:
        of = {m.label: [f for f in figures if f.keys["metric"] == m.name] for m in SEGMENTATION}
        first = [_table(label, some, ["shot", "method"], "{part}") for label, some in of.items()]
        figures = [f for f in figures if f.keys["class"]]
        key, title, row, column = "split", "Split {}, class IoU", "class", "{shot}-shot {method}"
    parts: dict[Any, list[Figure]] = {}
    for figure in figures:
        parts.setdefault(figure.keys[key], []).append(figure)
    return first + [_table(title.format(v), part, [row], column) for v, part in parts.items()]


def _table(title: str, figures: Sequence[Figure], row: list[str], column: str) -> str:
    """A heading and a table: rows by the keys `row`, columns by the format `column`."""
    columns, cells = dict[str, None](), dict[tuple, dict[str, str]]()
    for figure in figures:
        keys = figure.keys | {"label": MEASURES[figure.keys["metric"]].label}
        keys["part"] = MEAN if keys.get("split") == MEAN else f"split {keys.get('split')}"
        name = column.format(**keys)
        columns[name] = None
        cells.setdefault(tuple(figure.keys[k] for k in row), {})[name] = figure.cell()
    lines = [[*row, *columns], ["---"] * (len(row) + len(columns))]
    lines += [[*map(str, k), *(found.get(c, "-") for c in columns)] for k, found in cells.items()]
    return f"## {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _note(figures: Sequence[Figure]) -> str:
    """What the figures of a summary are."""
    counts = sorted({len(figure.values) for figure in figures})
    seeds = sorted({seed for figure in figures for seed, _ in figure.values})
    spread = f", mean +- standard deviation over {' or '.join(map(str, counts))} repeats"
    shared = "Repeat k draws supports by RNG_SEED + k: what seeds share without a head of their own"
    return (
        f"Percent{spread if counts[-1] > 1 else ''}; RNG_SEED {', '.join(map(str, seeds))}. "
        "A mean over splits or objects is taken within each repeat. "
        f"{shared + ' counts once. ' if len(counts) > 1 else ''}"
        "A dash: undefined, and no part of a mean."
    )


def write_summary(folder: Path, files: Sequence[Path]) -> str:
    """Write summary.md, summary.json and summary.csv of some metrics files into the sweep's folder.

    JSON and CSV hold fractions; JSON the value of every seed and repeat, None where undefined; CSV
    the number of defined ones. Returns the tables that papers print. A file of another test, such
    as of open-domain objects, raises a DataError.
    """
    contents = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, content in zip(files, contents, strict=True):
        if not content.keys() & {"methods", "anomaly"}:
            raise DataError(f"{file}: a sweep sums up splits and anomaly detection, no other tests")
    figures, entries, text = figures_of(contents), [], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*figures[0].keys, "mean", "std", "repeats"])
    for figure in figures:
        mean, std, defined = figure.summed()
        writer.writerow([*figure.keys.values(), mean, std, defined])
        repeats = [{"seed": s, "repeat": k, "value": v} for (s, k), v in figure.values.items()]
        entries.append(figure.keys | {"mean": mean, "std": std, "repeats": repeats})
    parts = tables(figures)
    write_text(folder / "summary.md", f"# {folder.name}\n\n{_note(figures)}\n\n" + "\n".join(parts))
    write_json(folder / "summary.json", {"sweep": folder.name, "figures": entries})
    write_text(folder / "summary.csv", text.getvalue())
    return "\n".join(parts[: 1 if "object" in figures[0].keys else len(SEGMENTATION)])
