"""The figures of a report, for light and for dark pages, as SVG that the reader's own font fills in."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tools.report.embed import data_uri
from tools.report.files import Curve, History
from tools.report.results import Row, SizeRange

WIDTH = 4.2  # inches; narrow, so that text stays readable where a phone shrinks the figure
LABEL, LEGEND = 26, 40  # characters of a name beside its bars, and in a line of its own in a legend
SOLID, DASHES, DASH_DOT, DOTS = "-", (0, (5, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (1, 1.2))
LONG = 15  # classes; above, the bars have their axis on top, too
# hashsalt and no date: the same run gives the same file. fonttype none: text stays text.
STYLE = {
    "font.size": 9.5, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "svg.fonttype": "none", "svg.hashsalt": "sofs",
}  # fmt: skip
RASTER = 160  # dots per inch of the points of a scatter, whose size would grow with them as vectors


@dataclass(frozen=True)
class Theme:
    """Colours: of text, of lines that guide, and of the series; the first is the accent, the second the baseline's.

    The others tell apart further curves, by Okabe and Ito's colours, which colour-blind readers can tell apart.
    """

    text: str
    guide: str
    series: tuple[str, ...]


LIGHT = Theme(
    "#3a4149", "#d5d9de", ("#0b62a8", "#848c95", "#c25400", "#00825f", "#a3568a", "#a07700")
)
DARK = Theme(
    "#c3c9d0", "#3a424b", ("#5fb0ee", "#8c959f", "#f08a3c", "#2fbf95", "#d58fbe", "#dcb13c")
)


@dataclass(frozen=True)
class Picture:
    """A figure as data URIs, with its size in CSS pixels and what it shows in words."""

    light: str
    dark: str
    width: int
    height: int
    alt: str


def picture(draw: Callable[[Theme], Figure], alt: str) -> Picture:
    """Both versions of a figure; the dark one is drawn anew only where it holds pixels, whose colours are fixed."""
    with matplotlib.rc_context(STYLE):
        figure = draw(LIGHT)
        light = _svg(figure)
        dark = _svg(draw(DARK)) if "<image" in light else _darkened(light)
        width, height = (round(96 * inches) for inches in figure.get_size_inches())
        return Picture(
            *(data_uri(svg.encode(), "image/svg+xml") for svg in (light, dark)), width, height, alt
        )


def _darkened(svg: str) -> str:
    """The drawing with the dark theme's colours in its tags, wherever those of the light one are; text stays."""
    dark = dict(
        zip(
            (LIGHT.text, LIGHT.guide, *LIGHT.series),
            (DARK.text, DARK.guide, *DARK.series),
            strict=True,
        )
    )
    return re.sub(r"(#[0-9a-f]{6})(?=[^<>]*>)", lambda colour: dark.get(colour[1], colour[1]), svg)


def class_bars(rows: Sequence[Row], methods: Sequence[str], theme: Theme) -> Figure:
    """IoU per class with the standard deviation over repeats, sorted by the first method, best on top."""
    rows = sorted(
        rows, key=lambda row: -1 if (mean := row.values[methods[0]].mean) is None else mean
    )
    axes = _axes(theme, height=1.0 + len(rows) * (0.09 + 0.09 * len(methods)))
    thickness = 0.8 / len(methods)
    handles = []
    for i, method in enumerate(methods):
        known = [
            (y, row.values[method])
            for y, row in enumerate(rows)
            if row.values[method].mean is not None
        ]
        places = [y + 0.4 - thickness * (i + 0.5) for y, _ in known]
        spread = (
            [100 * (v.std or 0.0) for _, v in known]
            if any(v.repeats > 1 for _, v in known)
            else None
        )
        handles.append(axes.barh(
            places, [100 * v.mean for _, v in known], thickness * 0.9, color=_colour(theme, i),
            xerr=spread, error_kw={"ecolor": theme.text, "elinewidth": 0.9},
        ))  # fmt: skip
    axes.set_yticks(range(len(rows)), [_name(row.name) for row in rows], parse_math=False)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labeltop=len(rows) > LONG)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("IoU, %")
    return _with_legend(axes, theme, handles, methods)


def size_scatter(
    points: Mapping[str, Sequence[tuple[float, float]]],
    sizes: Mapping[str, Sequence[SizeRange]],
    theme: Theme,
) -> Figure:
    """IoU of queries against the share of the image that is defect; bars mark the pooled IoU of each range of size.

    Args:
        points: per method (share, IoU), fractions, shares above 0.
        sizes: per method its ranges; empty: none are drawn.
    """
    axes = _axes(theme, height=3.3)
    axes.set_xscale("log")
    shares = [share for values in points.values() for share, _ in values]
    left, right = min(shares) / 1.3, max(shares) * 1.3
    handles = []
    for i, (method, values) in enumerate(points.items()):
        colour = _colour(theme, i)
        style = {"markerfacecolor": "none", "markeredgewidth": 0.8} if i else {"markeredgewidth": 0}
        handles += axes.plot(
            [s for s, _ in values], [100 * v for _, v in values], "os"[i % 2], color=colour, markersize=4,
            alpha=0.65, rasterized=True, zorder=3 - i / 10, **style,
        )  # fmt: skip
        for part in sizes.get(method, ()):
            ends = max(part.low, left), min(part.high, right)
            if part.measures["iou"] is not None and ends[0] < ends[1]:
                axes.plot(
                    ends,
                    [100 * part.measures["iou"]] * 2,
                    color=theme.text,
                    linewidth=4.2,
                    zorder=4,
                )
                axes.plot(
                    ends, [100 * part.measures["iou"]] * 2, color=colour, linewidth=2.6, zorder=5
                )
    bounds = [part.low for part in next(iter(sizes.values()), ()) if part.low > 0]
    for bound in bounds:
        axes.axvline(bound, color=theme.text, linewidth=0.8, linestyle=(0, (2, 2)), zorder=1)
    if bounds:
        axes.set_xticks(bounds)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(left, right)
    axes.set_ylim(-3, 103)
    axes.set_xlabel("defect, share of the image")
    axes.set_ylabel("IoU of a query, %")
    return _with_legend(axes, theme, handles, points)


def precision_recall(curves: Sequence[Curve], theme: Theme) -> Figure:
    """Precision against recall, with the average precision of each curve in percent."""
    axes = _axes(theme, height=3.3 + 0.09 * len(curves))
    handles = [
        _line(axes, theme, i, _percent(c.recall), _percent(c.precision))
        for i, c in enumerate(curves)
    ]
    measured = [
        "" if c.average_precision is None else f", AP {100 * c.average_precision:.1f} %"
        for c in curves
    ]
    axes.set(xlim=(-2, 102), ylim=(-2, 102), xlabel="recall, %", ylabel="precision, %")
    return _with_legend(
        axes, theme, handles, [_name(c.name) + ap for c, ap in zip(curves, measured, strict=True)]
    )


def iou_by_threshold(curves: Sequence[Curve], used: Mapping[str, float], theme: Theme) -> Figure:
    """IoU against the threshold, and the threshold that each method used as a line down."""
    axes = _axes(theme, height=3.3 + 0.09 * len(curves))
    handles = [_line(axes, theme, i, c.threshold, _percent(c.iou)) for i, c in enumerate(curves)]
    for i, curve in enumerate(curves):
        if curve.name in used:
            axes.axvline(
                used[curve.name], color=_colour(theme, i), linewidth=1.1, linestyle=(0, (2, 2))
            )
    axes.set(xlabel="threshold", ylabel="IoU, %", ylim=(0, None))
    return _with_legend(axes, theme, handles, [_name(c.name) for c in curves])


def loss_and_rate(history: History, theme: Theme) -> Figure:
    """Training loss and, below it, small, the learning rate."""
    figure = _figure(3.3)
    axes, small = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    for each, values, label in (
        (axes, history.loss, "loss"),
        (small, history.learning_rate, "learning\nrate"),
    ):
        _style(each, theme)
        _line(each, theme, 0, history.epoch, [float("nan") if v is None else v for v in values])
        each.set_ylabel(label)
        each.set_ylim(bottom=0)
    small.yaxis.set_major_locator(MaxNLocator(3))
    small.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
    figure.align_ylabels()
    _epochs(small, history)
    return figure


def miou_by_epoch(history: History, theme: Theme) -> Figure:
    """mIoU of training and validation, where they were measured."""
    axes = _axes(theme, height=3.3)
    lines = {
        f"validation, {method}": _line(axes, theme, i, *_known(history.epoch, values), SOLID)
        for i, (method, values) in enumerate(history.validation.items())
    }
    if any(v is not None for v in history.train_miou):
        lines["training"] = _line(axes, theme, 0, *_known(history.epoch, history.train_miou), DOTS)
    axes.set(ylabel="mIoU, %", ylim=(0, None))
    _epochs(axes, history)
    return _with_legend(axes, theme, lines.values(), lines)


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="none")


def _axes(theme: Theme, height: float) -> Axes:
    axes = _figure(height).add_subplot()
    _style(axes, theme)
    return axes


def _style(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(theme.text)
    axes.spines[:].set_linewidth(0.8)
    axes.tick_params(colors=theme.text, width=0.8, length=3)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)
    axes.grid(color=theme.guide, linewidth=0.7)
    axes.set_axisbelow(True)


def _line(
    axes: Axes,
    theme: Theme,
    i: int,
    x: Sequence[float],
    y: Sequence[float],
    style: str | tuple | None = None,
) -> Line2D:
    in_turn = DASHES if i == 1 else (SOLID, DASH_DOT, DOTS)[i // len(theme.series) % 3]
    (line,) = axes.plot(
        x, y, color=_colour(theme, i), linestyle=style or in_turn, linewidth=1.6,
        marker="o" if len(x) <= 30 else None, markersize=3,
    )  # fmt: skip
    return line


def _colour(theme: Theme, i: int) -> str:
    return theme.series[i % len(theme.series)]


def _with_legend(
    axes: Axes, theme: Theme, handles: Iterable[Artist], names: Iterable[str]
) -> Figure:
    labels = [_name(name, LEGEND) for name in names]
    legend = axes.figure.legend(
        list(handles), labels, loc="outside upper left", labelcolor=theme.text,
        ncols=1 if max(map(len, labels)) > LABEL else 2, frameon=False, borderpad=0.2, handlelength=1.8,
    )  # fmt: skip
    for entry in legend.get_texts():
        entry.set_parse_math(False)
    return axes.figure


def _epochs(axes: Axes, history: History) -> None:
    axes.set_xlim(min(history.epoch) - 0.5, max(history.epoch) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _percent(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if v is None else 100 * v for v in values]


def _known(x: Sequence[float], values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    pairs = [(a, 100 * v) for a, v in zip(x, values, strict=True) if v is not None]
    return [a for a, _ in pairs], [v for _, v in pairs]


def _name(name: str, most: int = LABEL) -> str:
    """On one line, without what XML cannot hold, cut in the middle where it is long: its ends tell classes apart."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
    half = most // 2
    return shown if len(shown) <= most else f"{shown[:half]}…{shown[1 - half :]}"


def _svg(figure: Figure) -> str:
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's font has what ours lacks
        figure.savefig(target, format="svg", dpi=RASTER, metadata={"Date": None})
    return target.getvalue().decode()
