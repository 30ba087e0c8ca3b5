from __future__ import annotations

import base64
import re
import warnings
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from tests.tools.report.example import CURVE, RANGES
from tools.report import figures
from tools.report.read import Row, Test, Value

Test.__test__ = False  # no class of tests
CURVES = [
    CURVE | {"name": "SOFS"},
    {"name": "_$odd$", "threshold": [0.0, 1.0], "precision": [0.2, 0.3], "recall": [1.0, 0.0],
     "average_precision": None},
]  # fmt: skip
HISTORY = [
    {"epoch": 1, "loss": 0.5, "learning_rate": 1e-3, "validation": {"SOFS": 0.2}},
    {"epoch": 2, "loss": None, "learning_rate": 5e-4, "train_miou": 0.3},
    {"epoch": 3, "loss": 0.3, "learning_rate": 0.0, "validation": {"SOFS": 0.4}},
]


def data(names=(), columns=("SOFS", "prior"), **more):
    """IoU 0.1, 0.2, ... of the first method and 0.5 of the second."""
    values = ([Value(0.1 * i, 0.01 * i, 3), Value(0.5, 0.02, 3)] for i in range(1, 99))
    rows = [Row(name, v[: len(columns)], 5) for name, v in zip(names, values, strict=False)]
    return Test("", "methods", list(columns), [], rows, **more)


def lines(axes):
    return [np.column_stack(line.get_data()).tolist() for line in axes.lines]


def legend(drawing):
    return [entry.get_text() for entry in drawing.figure.legends[0].get_texts()]


def svg(picture, theme="light"):
    kind, _, data = picture[theme].partition(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(data).decode()


def test_bars_are_the_means_sorted_by_the_first_method_with_their_deviations():
    test = data("ab")
    test.rows.append(Row("c", [Value(None), Value(0.2)], 0))
    drawing = figures.class_bars(test)
    (axes,) = drawing.figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["c", "a", "b"]  # from below
    for bars, known in (
        (axes.containers[1], {"a": (10, 1), "b": (20, 2)}),
        (axes.containers[3], {"c": (20, 0), "a": (50, 2), "b": (50, 2)}),
    ):
        at = [names[round(bar.get_y() + bar.get_height() / 2)] for bar in bars]
        ends = [segment[:, 0] for segment in bars.errorbar.lines[2][0].get_segments()]
        assert sorted(at) == sorted(known)
        assert list(bars.datavalues) == pytest.approx([known[name][0] for name in at])
        assert [(b - a) / 2 for a, b in ends] == pytest.approx([known[name][1] for name in at])
    assert legend(drawing) == ["SOFS", "prior"]
    long = figures.class_bars(data([f"{i} has a long name, {i}" for i in range(60)])).figure
    labels = {label.get_text() for label in long.axes[0].get_yticklabels()}
    assert len(labels) == 60 and 25 > long.get_figheight() > 60 * 1.2 * 9.5 / 72


def test_points_are_the_queries_and_bars_the_pooled_ranges():
    points = {"SOFS": [(2e-4, 0.1), (5e-2, 0.9)], "prior": [(1e-3, 0.3)]}
    ious = zip(RANGES, (0.2, None, 0.6), strict=True)
    sizes = {"SOFS": [{"low": low, "high": high, "iou": iou} for (_, low, high), iou in ious]}
    (axes,) = figures.size_scatter(data(points=points, sizes=sizes)).figure.axes
    drawn = lines(axes)
    assert axes.get_xscale() == "log"
    assert drawn[0] == [[2e-4, 10.0], [5e-2, 90.0]] and [[1e-3, 30.0]] in drawn
    flat = [line for line in drawn if len(line) == 2 and line[0][1] == line[1][1]]
    low, high = axes.get_xlim()
    assert [[low, 20.0], [3e-4, 20.0]] in flat and [[3e-3, 60.0], [high, 60.0]] in flat
    assert {line[0][1] for line in flat} == {20.0, 60.0}
    upright = [line[0][0] for line in drawn if len(line) == 2 and line[0][0] == line[-1][0]]
    assert upright == [3e-4, 3e-3] and low <= 2e-4 and high >= 5e-2
    drawing = figures.size_scatter(data(points={"SOFS": [(2e-4, 0.1)]}, without_defect=3))
    assert lines(drawing.figure.axes[0]) == [[[2e-4, 10.0]]], "without ranges"
    assert "Bars" not in drawing.caption and "not shown: 3." in drawing.caption


def test_curves_are_the_data_and_the_used_threshold_is_marked():
    test = data(curves=CURVES, thresholds={"SOFS": 0.45, "other": 0.1})
    drawing = figures.precision_recall(test)
    first, second = lines(drawing.figure.axes[0])
    np.testing.assert_array_equal(first, [[100, 10], [60, 50], [20, np.nan]])
    np.testing.assert_array_equal(second, [[100, 20], [0, 30]])
    assert legend(drawing) == ["SOFS, AP 34.5 %", "_$odd$"]
    drawn = lines(figures.iou_by_threshold(test).figure.axes[0])
    assert drawn == [[[0, 10], [0.5, 40], [1, 0]], [[0.45, 0], [0.45, 1]]]


def test_training_curves_are_the_history():
    loss, rate = figures.loss_and_rate(HISTORY).figure.axes
    np.testing.assert_array_equal(lines(loss), [[[1, 0.5], [2, np.nan], [3, 0.3]]])
    assert lines(rate) == [[[1, 1e-3], [2, 5e-4], [3, 0.0]]]
    drawing = figures.miou_by_epoch(HISTORY)
    assert lines(drawing.figure.axes[0]) == [[[1, 20], [3, 40]], [[2, 30]]]
    assert legend(drawing) == ["validation, SOFS", "training"]
    for draw in figures.TRAINING_FIGURES:  # one epoch is enough
        axes = draw([HISTORY[1] | {"epoch": 7}]).figure.axes[-1]
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low < tick < high] == [7]


def test_a_picture_is_sound_svg_in_both_themes_whatever_the_names():
    test = data(["$x_1$", "a\x08\udcffb", "<&>\n", "表面", "_hidden"], curves=CURVES)
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bars, curves = figures.pictures((figures.class_bars, figures.precision_recall), test)
    assert dict(matplotlib.rcParams) == before
    for theme, style in (("light", figures.LIGHT), ("dark", figures.DARK)):
        root = ElementTree.fromstring(svg(bars, theme))
        texts = {node.text for node in root.iter("{http://www.w3.org/2000/svg}text")}
        assert {"$x_1$", "a��b", "<&>�", "表面", "_hidden", "SOFS", "prior"} <= texts
        for colour in (style["text.color"], *style["axes.prop_cycle"].by_key()["color"][:2]):
            assert colour in svg(bars, theme)
    assert ">_$odd$<" in svg(curves), "a name in a legend is no formula"


def test_many_points_take_little_room_and_many_curves_look_different():
    shares = (10 ** -np.random.default_rng(0).uniform(1, 4, 5000)).tolist()
    curves = [CURVES[1] | {"name": str(i)} for i in range(15)]
    test = data(points={"SOFS": list(zip(shares, shares, strict=True))}, curves=curves)
    points, lines = figures.pictures((figures.size_scatter, figures.precision_recall), test)
    assert len(points["light"]) + len(points["dark"]) < 750_000
    styles = re.findall(r'style="(fill: none; stroke[^"]* stroke-width: 1.6[^"]*)"', svg(lines))
    assert len(set(styles)) == 15
    assert "dasharray" in styles[1] and "dasharray" not in styles[0], "also without colour"
