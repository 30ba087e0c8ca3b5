"""The figures of a report, for light and for dark pages, as SVG with the reader's own font.

A new figure is a function of the data that returns a `Drawing`, or None without data, and its name
in TEST_FIGURES or TRAINING_FIGURES; the page shows it in that section.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib import rcParams
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tools.report.read import Test

WIDTH, HEIGHT = 4.2, 3.3  # inches; narrow, as a phone shrinks a figure and its text with it
LABEL, LEGEND = 26, 40  # characters of a name beside its bars, and in a line of a legend
SOLID, DASHES, DASH_DOT, DOTS = "-", (0, (5, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2))
GUIDE = (0, (2, 2))
LONG = 15  # classes; above, the bars have their axis on top, too
RASTER = 160  # dots per inch of the points of a scatter, whose size would grow with them as vectors


def _style(text: str, guide: str, series: str) -> dict[str, Any]:
    """Settings of matplotlib, with the colours of text, of the grid, and of the series."""
    coloured = "text.color axes.edgecolor axes.labelcolor xtick.color ytick.color legend.labelcolor"
    return dict.fromkeys(coloured.split(), text) | {
        "font.size": 9.5, "font.family": "sans-serif", "text.parse_math": False,
        "font.sans-serif": ["DejaVu Sans", "Verdana"],
        # text stays text; without hashsalt the same run would give another file each time
        "svg.fonttype": "none", "svg.hashsalt": "sofs",
        "figure.figsize": (WIDTH, HEIGHT), "figure.constrained_layout.use": True,
        "figure.facecolor": "none", "axes.facecolor": "none",
        "axes.prop_cycle": cycler(color=series.split()),
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": guide, "grid.linewidth": 0.7,
        "xtick.major.size": 3, "ytick.major.size": 3, "lines.linewidth": 1.6, "lines.markersize": 3,
        "legend.frameon": False, "legend.borderpad": 0.2, "legend.handlelength": 1.8,
    }  # fmt: skip


# the accent, the baseline's grey, then Okabe and Ito's colours for colour-blind readers
LIGHT = _style("#3a4149", "#d5d9de", "#0b62a8 #848c95 #c25400 #00825f #a3568a #a07700")
DARK = _style("#c3c9d0", "#3a424b", "#5fb0ee #8c959f #f08a3c #2fbf95 #d58fbe #dcb13c")


class Drawing(NamedTuple):
    """A figure, what it shows in words, and its caption."""

    figure: Figure
    alt: str
    caption: str


Draw = Callable[[Any], Drawing | None]


def pictures(draws: Iterable[Draw], data: Any) -> list[dict[str, Any]]:
    """The figures that there are data for: light and dark as data URIs, width and height in CSS
    pixels, alt and caption."""
    shown = []
    for draw in draws:
        picture: dict[str, Any] = {}
        for theme, style in (("light", LIGHT), ("dark", DARK)):
            with matplotlib.rc_context(style), warnings.catch_warnings():
                # the reader's font has what ours lacks
                warnings.filterwarnings("ignore", message="Glyph")
                if (drawing := draw(data)) is None:
                    break
                svg = io.BytesIO()
                drawing.figure.savefig(svg, format="svg", dpi=RASTER, metadata={"Date": None})
            coded = base64.b64encode(svg.getvalue()).decode()
            width, height = (round(96 * inches) for inches in drawing.figure.get_size_inches())
            picture |= {theme: f"data:image/svg+xml;base64,{coded}", "width": width}
            picture |= {"height": height, "alt": drawing.alt, "caption": drawing.caption}
        if picture:
            shown.append(picture)
    return shown


def class_bars(test: Test) -> Drawing | None:
    """IoU per class with the deviation over repeats, sorted by the first method, best on top."""
    rows = [row for row in test.rows if any(v.mean is not None for v in row.values)]
    if test.kind == "anomaly" or len(rows) < 2:
        return None
    rows.sort(key=lambda row: -1 if row.values[0].mean is None else row.values[0].mean)
    axes = _axes(1.0 + len(rows) * (0.09 + 0.09 * len(test.columns)))
    thickness, handles = 0.8 / len(test.columns), []
    for i in range(len(test.columns)):
        cells = [(y, row.values[i]) for y, row in enumerate(rows)]
        cells = [(y, value) for y, value in cells if value.mean is not None]
        spread = [100 * (value.std or 0.0) for _, value in cells]
        handles.append(axes.barh(
            [y + 0.4 - thickness * (i + 0.5) for y, _ in cells],
            [100 * value.mean for _, value in cells], thickness * 0.9, color=f"C{i}",
            xerr=spread if any(value.repeats > 1 for _, value in cells) else None,
            error_kw={"ecolor": rcParams["text.color"], "elinewidth": 0.9},
        ))  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(row.name) for row in rows])
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlim=(0, None), xlabel="IoU, %")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labeltop=len(rows) > LONG)
    axes.grid(axis="y", visible=False)
    note = "; lines are standard deviations over repeats." if test.repeats > 1 else "."
    alt = f"Bars: IoU of {len(rows)} classes, as in the table"
    return _drawing(axes, handles, test.columns, alt, f"Sorted by {test.columns[0]}{note}")


def size_scatter(test: Test) -> Drawing | None:
    """IoU of queries against the share of the image that is defect, of two methods at most; bars
    mark the pooled IoU of each range of size."""
    points = {method: test.points[method] for method in test.columns[:2] if test.points.get(method)}
    if not points:
        return None
    axes, handles, bounds = _axes(), [], []
    shares = [share for values in points.values() for share, _ in values]
    left, right = min(shares) / 1.3, max(shares) * 1.3
    for i, (method, values) in enumerate(points.items()):
        style = {"markerfacecolor": "none", "markeredgewidth": 0.8} if i else {"markeredgewidth": 0}
        style |= {"color": f"C{i}", "markersize": 4, "alpha": 0.65, "zorder": 3 - i / 10}
        x, y = np.array(values).T
        handles += axes.plot(x, 100 * y, "os"[i], rasterized=True, **style)
        ranges = test.sizes.get(method, ())
        for part in ranges:
            ends = max(part["low"], left), min(part["high"], right)
            if part["iou"] is not None and ends[0] < ends[1]:
                level = [100 * part["iou"]] * 2
                axes.plot(ends, level, color=rcParams["text.color"], linewidth=4.2, zorder=4)
                axes.plot(ends, level, color=f"C{i}", linewidth=2.6, zorder=5)
        bounds = bounds or [part["low"] for part in ranges if part["low"] > 0]
    axes.set(xscale="log", xlabel="defect, share of the image", ylabel="IoU of a query, %")
    for bound in bounds:
        axes.axvline(bound, color=rcParams["text.color"], linewidth=0.8, linestyle=GUIDE, zorder=1)
    if bounds:
        axes.set_xticks(bounds)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlim=(left, right), ylim=(-3, 103))
    caption = "A point is a query, its pixels pooled over the repeats."
    if test.sizes:
        caption += " Bars: all pixels of the queries in a range of size together."
    if test.without_defect:
        caption += f" Queries without a defect, not shown: {test.without_defect}."
    alt = "Scatter: IoU of each query against the share of the image that is defect"
    return _drawing(axes, handles, points, alt, caption)


def precision_recall(test: Test) -> Drawing | None:
    """Precision against recall, with the average precision of each curve in percent."""
    if not test.curves:
        return None
    axes, lines, names = _axes(HEIGHT + 0.09 * len(test.curves)), [], []
    for i, curve in enumerate(test.curves):
        lines.append(_line(axes, i, _percent(curve["recall"]), _percent(curve["precision"])))
        ap = curve["average_precision"]
        names.append(_name(curve["name"]) + ("" if ap is None else f", AP {100 * ap:.1f} %"))
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel="recall, %", ylabel="precision, %")
    text = "Precision and recall of all pixels together, at every threshold. AP: average precision."
    return _drawing(axes, lines, names, "Curves: precision against recall", text)


def iou_by_threshold(test: Test) -> Drawing | None:
    """IoU against the threshold, and the threshold that each method used as an upright line."""
    curves = [curve for curve in test.curves if "iou" in curve]
    if not curves:
        return None
    axes, lines = _axes(HEIGHT + 0.09 * len(curves)), []
    for i, curve in enumerate(curves):
        lines.append(_line(axes, i, curve["threshold"], _percent(curve["iou"])))
        used = test.thresholds.get(curve["name"])
        if used is not None:
            axes.axvline(used, color=f"C{i}", linewidth=1.1, linestyle=GUIDE)
    axes.set(xlabel="threshold", ylabel="IoU, %", ylim=(0, None))
    names = [_name(curve["name"]) for curve in curves]
    alt = "Curves: IoU against the threshold, and the threshold used"
    text = "IoU of all pixels together. Dashed lines: the threshold used, mean over queries."
    return _drawing(axes, lines, names, alt, text)


def loss_and_rate(history: list[dict[str, Any]]) -> Drawing | None:
    """Training loss and, below it, small, the learning rate."""
    if not history:
        return None
    figure = Figure()
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for axes, key, label in ((upper, "loss", "loss"), (lower, "learning_rate", "learning\nrate")):
        epochs, values = zip(*((entry["epoch"], entry[key]) for entry in history), strict=True)
        _line(axes, 0, epochs, np.array(values, float))
        axes.set(ylabel=label, ylim=(0, None))
    lower.yaxis.set_major_locator(MaxNLocator(3))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    figure.align_ylabels()
    _epochs(lower, history)
    alt = "Curves: training loss and learning rate per epoch"
    return Drawing(figure, alt, "Mean loss of each epoch, and the learning rate.")


def miou_by_epoch(history: list[dict[str, Any]]) -> Drawing | None:
    """mIoU of training and validation, where they were measured."""
    tests = [(entry["epoch"], entry.get("validation") or {}) for entry in history]
    methods = dict.fromkeys(method for _, measured in tests for method in measured)
    series = [
        (f"validation, {method}", i, SOLID, [(epoch, miou.get(method)) for epoch, miou in tests])
        for i, method in enumerate(methods)
    ]
    series.append(("training", 0, DOTS, [(e["epoch"], e.get("train_miou")) for e in history]))
    axes, lines = _axes(), {}
    for name, i, style, pairs in series:
        pairs = [(epoch, 100 * miou) for epoch, miou in pairs if miou is not None]
        if pairs:
            lines[name] = _line(axes, i, *zip(*pairs, strict=True), style)
    if not lines:
        return None
    axes.set(ylabel="mIoU, %", ylim=(0, None))
    _epochs(axes, history)
    text = "mIoU on the training and validation objects."
    return _drawing(axes, lines.values(), lines, "Curves: mIoU per epoch", text)


# by the section of the page
TEST_FIGURES: dict[str, Sequence[Draw]] = {
    "results": (class_bars,), "sizes": (size_scatter,),
    "curves": (precision_recall, iou_by_threshold),
}  # fmt: skip
TRAINING_FIGURES: Sequence[Draw] = (loss_and_rate, miou_by_epoch)


def _axes(height: float = HEIGHT) -> Axes:
    return Figure(figsize=(WIDTH, height)).add_subplot()


def _line(axes: Axes, i: int, x: Sequence[float], y: Sequence[float], style: Any = None) -> Artist:
    """Series i as a curve; `style` None: that of its place, so that many differ without colour."""
    in_turn = DASHES if i == 1 else (SOLID, DASH_DOT, DOTS)[i // 6 % 3]
    marker = "o" if len(x) <= 30 else None
    return axes.plot(x, y, color=f"C{i}", linestyle=style or in_turn, marker=marker)[0]


def _drawing(axes: Axes, lines: Iterable, names: Iterable[str], alt: str, text: str) -> Drawing:
    """The figure of the axes with a legend above it."""
    labels = [_name(name, LEGEND) for name in names]
    columns = 1 if max(map(len, labels)) > LABEL else 2
    axes.figure.legend(list(lines), labels, loc="outside upper left", ncols=columns)
    return Drawing(axes.figure, alt, text)


def _epochs(axes: Axes, history: list[dict[str, Any]]) -> None:
    epochs = [entry["epoch"] for entry in history]
    axes.set(xlim=(min(epochs) - 0.5, max(epochs) + 0.5), xlabel="epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _percent(values: Sequence[float | None]) -> np.ndarray:
    return 100 * np.array(values, float)


def _name(name: str, most: int = LABEL) -> str:
    """A name without what XML cannot hold, cut in the middle: its ends tell classes apart."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    half = most // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[1 - half :]}"
