"""Summaries of a sweep, made from the metrics.json files of its tests alone: Markdown, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import DataError
from utils.metrics.segmentation import mean_std
from utils.output_files import write_json, write_text

ANOMALY_METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupro": "AUPRO",
}
MEAN = "mean"
Draw = tuple[int, int]  # RNG_SEED of a run, number of the repeat in it
Values = dict[Draw, float | None]


@dataclass
class Figure:
    """One measured quantity.

    Attributes:
        keys: what it is: shot, method, split, class and metric; or shot, object and metric of anomaly detection.
        values: as fractions, by seed and repeat; None where undefined.
    """

    keys: dict[str, Any]
    values: Values = field(default_factory=dict)

    def mean_std(self) -> tuple[float | None, float | None]:
        """Mean and population standard deviation over seeds and repeats, without the undefined values."""
        return mean_std(list(self.values.values()))

    def cell(self) -> str:
        """In percent: mean, and +- standard deviation where several values are defined; a dash if none is."""
        mean, std = self.mean_std()
        if mean is None:
            return "-"
        return f"{100 * mean:.2f}" + (f" +- {100 * std:.2f}" if self.defined() > 1 else "")

    def defined(self) -> int:
        """How many values are defined."""
        return sum(value is not None for value in self.values.values())


def figures_of(contents: Iterable[dict[str, Any]]) -> list[Figure]:
    """Every figure of some tests, repeats of all seeds together, and the means over splits or objects.

    Repeat k of a test draws supports by RNG_SEED + k, so seeds next to each other share draws. What a method without a
    head, or with the same one, found with a draw counts once.

    Args:
        contents: of metrics.json files, all of split tests or all of anomaly detection.

    Raises:
        KeyError, TypeError, AttributeError: a content is neither.
    """
    found: dict[tuple, Figure] = {}
    known = set[tuple]()
    for content in contents:
        for rows in _anomaly(content) if "anomaly" in content else _segmentation(content):
            what = tuple(
                rows[0][0][key]
                for key in ("shot", "method", "split", "object")
                if key in rows[0][0]
            )
            for number, values in enumerate(zip(*(repeats for _, repeats in rows), strict=True)):
                drawn = (what, content["seed"] + number, values)
                for keys, value in zip((keys for keys, _ in rows), values, strict=True):
                    figure = found.setdefault(tuple(keys.values()), Figure(keys))
                    if drawn not in known:
                        figure.values[content["seed"], number] = value
                known.add(drawn)
    figures = list(found.values())
    over = "object" if figures and "object" in figures[0].keys else "split"
    return figures + _means(figures, over)


Rows = list[tuple[dict[str, Any], list[float | None]]]


def _segmentation(content: dict[str, Any]) -> Iterator[Rows]:
    """By method, the repeats of each figure."""
    for name, method in content["methods"].items():
        keys = {"shot": content["shot"], "method": name, "split": content["split"], "class": ""}
        rows: Rows = [
            (keys | {"metric": metric}, method[metric]["repeats"]) for metric in ("miou", "fb_iou")
        ]
        for label, known in method["classes"].items():
            rows.append((keys | {"class": label, "metric": "iou"}, known["repeats"]))
        yield rows


def _anomaly(content: dict[str, Any]) -> Iterator[Rows]:
    """By object, the repeats of each figure."""
    for name, known in content["anomaly"]["objects"].items():
        keys = {"shot": content["shot"], "object": name}
        yield [(keys | {"metric": metric}, known[metric]["repeats"]) for metric in ANOMALY_METRICS]


def _means(figures: Sequence[Figure], over: str) -> list[Figure]:
    """Per seed and repeat the mean over splits or objects of whatever is no class, undefined values left out."""
    groups: dict[tuple, list[Figure]] = {}
    for figure in figures:
        if not figure.keys.get("class"):
            groups.setdefault(tuple((figure.keys | {over: MEAN}).values()), []).append(figure)
    means = []
    for members in groups.values():
        draws = dict.fromkeys(draw for member in members for draw in member.values)
        values = {
            draw: mean_std([member.values.get(draw) for member in members])[0] for draw in draws
        }
        means.append(Figure(members[0].keys | {over: MEAN}, values))
    return means


def overview(figures: Sequence[Figure]) -> str:
    """The tables that papers print: mIoU and FB-IoU, a row per shot and method, a column per split; or the figures of
    anomaly detection, a row per shot, means over objects."""
    if "object" in figures[0].keys:
        means = [f for f in figures if f.keys["object"] == MEAN]
        return "## Means over objects\n\n" + _table(means, ["shot"], _metric)
    tables = []
    for metric, label in (("miou", "mIoU"), ("fb_iou", "FB-IoU")):
        chosen = [f for f in figures if f.keys["metric"] == metric]
        tables.append(f"## {label}\n\n" + _table(chosen, ["shot", "method"], _split))
    return "\n".join(tables)


def details(figures: Sequence[Figure]) -> str:
    """A table of classes per split, or a table of objects per shot."""
    if "object" in figures[0].keys:
        titles = {shot: f"{shot}-shot, objects" for shot in _values(figures, "shot")}
        return _sections(figures, "shot", titles, ["object"], _metric)
    classes = [f for f in figures if f.keys["class"]]
    titles = {split: f"Split {split}, class IoU" for split in _values(classes, "split")}
    return _sections(
        classes, "split", titles, ["class"], lambda f: f"{f.keys['shot']}-shot {f.keys['method']}"
    )


def markdown(title: str, figures: Sequence[Figure]) -> str:
    """The whole summary: what the figures are, the overview, the details."""
    counts = sorted({len(figure.values) for figure in figures})
    seeds = sorted({seed for figure in figures for seed, _ in figure.values})
    repeats = " or ".join(map(str, counts))
    note = (
        f"Percent, mean +- standard deviation over {repeats} repeats"
        if counts[-1] > 1
        else "Percent"
    )
    note += f"; RNG_SEED {', '.join(map(str, seeds))}. A mean over splits or objects is taken within each repeat. "
    if len(counts) > 1:
        note += "Repeat k draws supports by RNG_SEED + k: what seeds share without a head of their own counts once. "
    note += "A dash: undefined, and no part of a mean."
    return f"# {title}\n\n{note}\n\n{overview(figures)}\n{details(figures)}"


def as_json(title: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """All figures, as fractions, with the value of every seed and repeat; None where undefined."""
    rows = []
    for figure in figures:
        mean, std = figure.mean_std()
        repeats = [
            {"seed": seed, "repeat": number, "value": v}
            for (seed, number), v in figure.values.items()
        ]
        rows.append(figure.keys | {"mean": mean, "std": std, "repeats": repeats})
    return {"sweep": title, "figures": rows}


def as_csv(figures: Sequence[Figure]) -> str:
    """A row per figure: its keys, mean and standard deviation as fractions, number of defined values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*figures[0].keys, "mean", "std", "repeats"])
    for figure in figures:
        writer.writerow([*figure.keys.values(), *figure.mean_std(), figure.defined()])
    return text.getvalue()


def write_summary(folder: Path, files: Sequence[Path]) -> str:
    """Write summary.md, summary.json and summary.csv of some metrics files into the sweep's folder.

    Returns:
        The overview.

    Raises:
        DataError: a file is no metrics file.
    """
    contents = []
    for file in files:
        try:
            contents.append(json.loads(file.read_text(encoding="utf-8")))
            if not figures_of(contents[-1:]):
                raise ValueError("it holds no figure")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: no metrics of a test ({type(error).__name__}: {error}); remove {file.parent} "
                            "to test again") from error  # fmt: skip
    figures = figures_of(contents)
    write_text(folder / "summary.md", markdown(folder.name, figures))
    write_json(folder / "summary.json", as_json(folder.name, figures))
    write_text(folder / "summary.csv", as_csv(figures))
    return overview(figures)


def _metric(figure: Figure) -> str:
    return ANOMALY_METRICS[figure.keys["metric"]]


def _split(figure: Figure) -> str:
    split = figure.keys["split"]
    return split if split == MEAN else f"split {split}"


def _values(figures: Sequence[Figure], key: str) -> list[Any]:
    return list(dict.fromkeys(figure.keys[key] for figure in figures))


def _sections(
    figures: Sequence[Figure],
    key: str,
    titles: dict[Any, str],
    row: list[str],
    column: Callable[[Figure], str],
) -> str:
    parts = [
        ([f for f in figures if f.keys[key] == value], title) for value, title in titles.items()
    ]
    return "\n".join(f"## {title}\n\n{_table(members, row, column)}" for members, title in parts)


def _table(figures: Sequence[Figure], row: list[str], column: Callable[[Figure], str]) -> str:
    """A Markdown table: rows by the keys `row`, columns by `column`, both in the order of first appearance."""
    columns = list(dict.fromkeys(map(column, figures)))
    cells: dict[tuple, dict[str, str]] = {}
    for figure in figures:
        cells.setdefault(tuple(figure.keys[k] for k in row), {})[column(figure)] = figure.cell()
    lines = [[*row, *columns], ["---"] * (len(row) + len(columns))]
    lines += [
        [*map(str, names), *(known.get(c, "-") for c in columns)] for names, known in cells.items()
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
