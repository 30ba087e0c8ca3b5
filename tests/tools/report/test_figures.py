from __future__ import annotations

import base64
import re
import warnings
from functools import partial
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from tools.report import figures
from tools.report.figures import DARK, LIGHT
from tools.report.files import Curve, History
from tools.report.results import Row, SizeRange, Value

NAN = float("nan")
CURVES = [
    Curve("SOFS", [0.0, 0.5, 1.0], [0.1, 0.5, None], [1.0, 0.6, 0.2], [0.1, 0.4, 0.0], 0.345),
    Curve("_$odd$", [0.0, 1.0], [0.2, 0.3], [1.0, 0.0], None, None),
]
HISTORY = History(
    [1, 2, 3], [0.5, None, 0.3], [1e-3, 5e-4, 0.0], [None, 0.3, None], {"SOFS": [0.2, None, 0.4]}
)


def rows(names, repeats=3):
    return [
        Row(n, 5, {"SOFS": Value(0.1 * i, 0.01 * i, repeats), "prior": Value(0.5, 0.02, repeats)})
        for i, n in enumerate(names, 1)
    ]


def ranges(*iou):
    bounds = [0.0, 3e-4, 3e-3, 3e-2, 1.0]
    return [
        SizeRange("", a, b, 1, 1, {"iou": v})
        for a, b, v in zip(bounds, bounds[1:], iou, strict=False)
    ]


def lines(axes):
    return [np.column_stack(line.get_data()).tolist() for line in axes.lines]


def legend(figure):
    return [entry.get_text() for entry in figure.legends[0].get_texts()]


def test_bars_are_the_means_sorted_by_the_first_method_with_their_deviations():
    figure = figures.class_bars([*rows(["a", "b"]), Row("c", 0, {"SOFS": Value(None), "prior": Value(0.2)})],
                                ["SOFS", "prior"], LIGHT)  # fmt: skip
    (axes,) = figure.axes
    first, second = axes.containers[1], axes.containers[3]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["c", "a", "b"]  # from below
    for bars, known in (
        (first, {"a": (10, 1), "b": (20, 2)}),
        (second, {"c": (20, 0), "a": (50, 2), "b": (50, 2)}),
    ):
        at = [names[round(bar.get_y() + bar.get_height() / 2)] for bar in bars]
        assert dict(zip(at, bars.datavalues, strict=True)) == pytest.approx(
            {n: v for n, (v, _) in known.items()}
        )
        ends = [segment[:, 0] for segment in bars.errorbar.lines[2][0].get_segments()]
        assert [(b - a) / 2 for a, b in ends] == pytest.approx([known[n][1] for n in at])
    assert legend(figure) == ["SOFS", "prior"]


def test_bars_of_one_repeat_have_no_deviations():
    (axes,) = figures.class_bars(rows(["a", "b"], repeats=1), ["SOFS", "prior"], LIGHT).axes
    assert [bars.errorbar for bars in axes.containers] == [None, None]


def test_the_names_of_sixty_classes_have_room_and_differ():
    figure = figures.class_bars(
        rows([f"Object_{i:02d}/a_long_name_{i}" for i in range(60)]), ["SOFS"], LIGHT
    )
    labels = figure.axes[0].get_yticklabels()
    assert 20 > figure.get_figheight() > 60 * 1.2 * figures.STYLE["font.size"] / 72
    assert len({label.get_text() for label in labels}) == 60
    assert all(len(label.get_text()) <= figures.LABEL for label in labels)


def test_points_are_the_queries_and_bars_the_pooled_ranges():
    points = {"SOFS": [(2e-4, 0.1), (5e-2, 0.9)], "prior": [(1e-3, 0.3)]}
    figure = figures.size_scatter(points, {"SOFS": ranges(0.2, None, 0.4, 0.6)}, LIGHT)
    (axes,) = figure.axes
    drawn = lines(axes)
    assert axes.get_xscale() == "log"
    assert drawn[0] == [[2e-4, 10.0], [5e-2, 90.0]]
    assert [[1e-3, 30.0]] in drawn
    heights = {line[0][1] for line in drawn if len(line) == 2 and line[0][1] == line[1][1]}
    assert heights == {20.0, 40.0, 60.0}
    assert [[3e-3, 40.0], [3e-2, 40.0]] in drawn
    upright = [line[0][0] for line in drawn if line[0][0] == line[-1][0] and len(line) == 2]
    assert upright == [3e-4, 3e-3, 3e-2]
    assert all(low <= 2e-4 and high >= 5e-2 for low, high in [axes.get_xlim()])


def test_points_without_ranges_are_drawn_alone():
    (axes,) = figures.size_scatter({"SOFS": [(2e-4, 0.1)]}, {}, LIGHT).axes
    assert lines(axes) == [[[2e-4, 10.0]]]


def test_precision_recall_curves_are_the_data_in_percent():
    figure = figures.precision_recall(CURVES, LIGHT)
    np.testing.assert_array_equal(lines(figure.axes[0])[0], [[100, 10], [60, 50], [20, NAN]])
    np.testing.assert_array_equal(lines(figure.axes[0])[1], [[100, 20], [0, 30]])
    assert legend(figure) == ["SOFS, AP 34.5 %", "_$odd$"]


def test_the_used_threshold_is_marked():
    figure = figures.iou_by_threshold(CURVES[:1], {"SOFS": 0.45, "other": 0.1}, LIGHT)
    assert lines(figure.axes[0]) == [[[0, 10], [0.5, 40], [1, 0]], [[0.45, 0], [0.45, 1]]]


def test_training_curves_are_the_history():
    loss, rate = figures.loss_and_rate(HISTORY, LIGHT).axes
    np.testing.assert_array_equal(lines(loss), [[[1, 0.5], [2, NAN], [3, 0.3]]])
    assert lines(rate) == [[[1, 1e-3], [2, 5e-4], [3, 0.0]]]
    assert rate.get_position().height < loss.get_position().height
    figure = figures.miou_by_epoch(HISTORY, LIGHT)
    assert lines(figure.axes[0]) == [[[1, 20], [3, 40]], [[2, 30]]]
    assert legend(figure) == ["validation, SOFS", "training"]


def test_one_epoch_is_enough():
    history = History([7], [0.5], [1e-3], [0.3], {})
    for figure in (figures.loss_and_rate(history, LIGHT), figures.miou_by_epoch(history, LIGHT)):
        low, high = figure.axes[-1].get_xlim()
        assert [tick for tick in figure.axes[-1].get_xticks() if low < tick < high] == [7]


def test_a_picture_is_sound_svg_in_both_themes_whatever_the_names():
    names = ["$x_1$", "a\x08\udcffb", "<&>\n", "表面", "_hidden"]
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = figures.picture(
            partial(figures.class_bars, rows(names), ["SOFS", "prior"]), "bars"
        )
    assert dict(matplotlib.rcParams) == before
    for uri, theme in ((picture.light, LIGHT), (picture.dark, DARK)):
        kind, _, data = uri.partition(",")
        assert kind == "data:image/svg+xml;base64"
        root = ElementTree.fromstring(base64.b64decode(data))
        texts = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"$x_1$", "a��b", "<&>�", "表面", "_hidden", "SOFS", "prior"} <= texts
        assert (
            theme.series[0] in base64.b64decode(data).decode()
            and theme.text in base64.b64decode(data).decode()
        )


@pytest.mark.parametrize(
    "draw",
    [
        partial(
            figures.class_bars,
            rows([LIGHT.text, f'style="fill: {LIGHT.series[0]}">']),
            ["SOFS", "prior"],
        ),
        partial(
            figures.size_scatter,
            {"SOFS": [(0.01, 0.5)], "prior": [(0.1, 0.2)]},
            {"SOFS": ranges(0.2, 0.4)},
        ),
        partial(figures.iou_by_threshold, CURVES[:1] * 6, {"SOFS": 0.5}),
        partial(figures.loss_and_rate, HISTORY),
    ],
)
def test_the_dark_version_is_what_the_dark_theme_draws(draw):
    """But for the numbers of marks, which are drawn from their colours."""
    only_dark = figures.picture(lambda _: draw(DARK), "")
    drawn, found = (
        re.sub(r"\b[mp][0-9a-f]{10}\b", "", base64.b64decode(uri.partition(",")[2]).decode())
        for uri in (only_dark.light, figures.picture(draw, "").dark)
    )
    assert found == drawn


def test_names_in_a_legend_are_no_formulas():
    picture = figures.picture(partial(figures.precision_recall, CURVES), "curves")
    assert ">_$odd$<" in base64.b64decode(picture.light.partition(",")[2]).decode()


def test_many_points_take_little_room():
    rng = np.random.default_rng(0)
    points = {
        m: list(zip(10 ** -rng.uniform(1, 4, 5000), rng.random(5000), strict=True))
        for m in ("SOFS", "prior")
    }
    picture = figures.picture(partial(figures.size_scatter, points, {}), "points")
    assert len(picture.light) + len(picture.dark) < 1_500_000


def test_curves_are_told_apart_without_colour():
    curves = [Curve(str(i), [0.0, 1.0], [0.1, 0.2], [0.5, 0.4], None, None) for i in range(15)]
    drawn = figures.precision_recall(curves, LIGHT).axes[0].lines
    assert drawn[0].get_linestyle() != drawn[1].get_linestyle()
    assert (
        len(
            {
                (line.get_color(), line.get_linestyle(), str(line._unscaled_dash_pattern))
                for line in drawn
            }
        )
        == 15
    )
