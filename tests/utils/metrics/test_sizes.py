from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from utils.metrics.segmentation import IGNORE, intersection_union
from utils.metrics.sizes import COLUMNS, FOUND_SHARE, SIZES, SizeMeter

EIGHT = np.ones((3, 3))
SHAPE = (100, 200)  # 3 pixels lie just below the first limit of 0.03 %, 6 on it


def blobs(rng, shape, number, largest):
    mask = np.zeros(shape, np.uint8)
    for _ in range(number):
        height, width = rng.integers(1, largest, 2)
        top, left = (rng.integers(0, max(1, n - 1)) for n in shape)
        mask[top : top + height, left : left + width] = rng.random() < 0.9
    return mask


def make_queries(fractions=False):
    rng, made = np.random.default_rng(0), []
    for i in range(60):
        shape = (int(rng.integers(60, 160)), int(rng.integers(60, 160)))
        largest = (3, 8, 40)[i % 3]
        target, prediction = (
            blobs(rng, shape, int(rng.integers(0, 12)), largest) for _ in range(2)
        )
        prediction[rng.random(shape) < 0.002] ^= 1
        prediction |= target & (rng.random(shape) < (0.05, 0.2, 0.8)[i % 3]).astype(np.uint8)
        target[rng.random(shape) < 0.02] = IGNORE
        if i % 7 == 0:
            target[target == 1] = 0
        made.append(
            (
                rng.choice([0.0, 0.3, 0.5, 0.8, 1.0], shape) * prediction
                if fractions
                else prediction,
                target,
            )
        )
    return made


def rank(share):
    return next(
        i for i, (_, low, high) in enumerate(SIZES) if low <= share < high or share == high == 1
    )


def by_hand(queries):
    """COLUMNS of each range, component by component."""
    rows = [dict.fromkeys(COLUMNS, 0) for _ in SIZES]
    for prediction, target in queries:
        counted = target != IGNORE
        pixels = int(counted.sum())
        foreground, defect = (prediction >= 0.5) & counted, target == 1
        for row in rows:
            row["images"] += 1
        if defect.any():
            row = rows[rank(defect.sum() / pixels)]
            row["queries"] += 1
            row["intersection"] += int((defect & (prediction == 1)).sum())
            row["union"] += int(
                defect.sum() + foreground.sum() - (defect & (prediction == 1)).sum()
            )
            row["defect_pixels"] += int(defect.sum())
            row["false_positive_pixels"] += int((foreground & ~defect).sum())
            row["pixels"] += pixels
        labels, number = ndimage.label(defect, EIGHT)
        for i in range(1, number + 1):
            area = (labels == i).sum()
            rows[rank(area / pixels)]["defects"] += 1
            rows[rank(area / pixels)]["found"] += int(
                (foreground & (labels == i)).sum() * 10 >= area
            )
        labels, number = ndimage.label(foreground, EIGHT)
        for i in range(1, number + 1):
            if not (defect & (labels == i)).any():
                rows[rank((labels == i).sum() / pixels)]["false_alarms"] += 1
    return rows


def metered(queries):
    meter = SizeMeter()
    for query in queries:
        meter.update(*query)
    return meter


def rows_of(meter):
    return [dict(zip(COLUMNS, row, strict=True)) for row in meter.counts.tolist()]


def drawn(pixels, shape=SHAPE):
    """The first `pixels` of an image, row by row."""
    return (np.arange(shape[0] * shape[1]) < pixels).astype(np.uint8).reshape(shape)


@pytest.mark.parametrize("fractions", [False, True])
def test_counts_are_those_of_loops_over_components(fractions):
    queries = make_queries(fractions)
    expected = by_hand(queries)
    assert rows_of(metered(queries)) == expected
    for name in ("queries", "defects", "found", "false_alarms"):
        assert sum(row[name] > 0 for row in expected) >= 2, (
            f"the example has {name} in one range only"
        )


def test_figures_are_shares_of_the_counts():
    queries = make_queries()
    for figures, n, size in zip(metered(queries).report(), by_hand(queries), SIZES, strict=True):
        assert (figures.pop("name"), figures.pop("low"), figures.pop("high")) == size
        assert (figures.pop("queries"), figures.pop("defects")) == (n["queries"], n["defects"])
        parts = {
            "iou": ("intersection", "union"),
            "recall": ("intersection", "defect_pixels"),
            "false_positive_area": ("false_positive_pixels", "pixels"),
            "found": ("found", "defects"),
            "false_alarms": ("false_alarms", "images"),
        }
        expected = {
            key: n[part] / n[whole] if n[whole] else None for key, (part, whole) in parts.items()
        }
        assert figures == pytest.approx(expected)


def test_ranges_add_up_to_the_pixels_of_all_queries_with_a_defect():
    for fractions in (False, True):
        queries = [q for q in make_queries(fractions) if (q[1] == 1).any()]
        counts = np.array([intersection_union(*query) for query in queries]).sum(axis=0)
        rows = rows_of(metered(queries))
        assert sum(row["queries"] for row in rows) == len(queries)
        assert [sum(row[name] for row in rows) for name in ("intersection", "union")] == counts[
            :, 1
        ].tolist()


def test_counts_of_meters_add_up():
    queries = make_queries()
    first, second = metered(queries[:20]), metered(queries[20:])
    assert first.counts.dtype == np.int64
    first.counts += second.counts
    assert first.report() == metered(queries).report()


def test_order_of_queries_does_not_matter():
    queries = make_queries()
    np.testing.assert_array_equal(metered(queries).counts, metered(queries[::-1]).counts)


def test_the_ranges_cover_all_shares_without_a_gap():
    assert SIZES[0][1] == 0 and SIZES[-1][2] == 1
    assert all(a[2] == b[1] for a, b in pairwise(SIZES))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [(1, 0), (5, 0), (6, 1), (59, 1), (60, 2), (599, 2), (600, 3), (20000, 3)],
)
def test_a_limit_belongs_to_the_range_above(pixels, expected):
    """Of an image of 20000 pixels; a defect, its query and a false alarm of that size."""
    mask, nothing = drawn(pixels), np.zeros(SHAPE, np.uint8)
    rows = rows_of(metered([(mask, mask), (mask, nothing)]))
    for name in ("queries", "defects", "found", "false_alarms"):
        assert [row[name] for row in rows] == [int(i == expected) for i in range(4)], name


@pytest.mark.parametrize("area", [10, 30, 70, 110, 190, 1230])
def test_a_defect_counts_as_found_from_the_share_on(area):
    assert FOUND_SHARE == 0.1
    for predicted, found in ((area // 10, 1), (area // 10 - 1, 0)):
        rows = rows_of(metered([(drawn(predicted), drawn(area))]))
        assert sum(row["found"] for row in rows) == found


def test_one_defect_may_be_found_and_another_missed():
    """The query lies in the range of their sum, each component in its own."""
    target, prediction = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    target[0, :4], target[10, :58], prediction[0, :2] = 1, 1, 1
    rows = rows_of(metered([(prediction, target)]))
    assert [row["defects"] for row in rows] == [1, 1, 0, 0]
    assert [row["found"] for row in rows] == [1, 0, 0, 0]
    assert [row["queries"] for row in rows] == [0, 0, 1, 0]


def test_corners_connect():
    """Five defects of a pixel each would be five."""
    diagonal = np.zeros(SHAPE, np.uint8)
    np.fill_diagonal(diagonal[:5, :5], 1)
    rows = rows_of(metered([(diagonal, diagonal), (diagonal, np.zeros_like(diagonal))]))
    assert rows[0]["defects"] == 1
    assert rows[0]["false_alarms"] == 1


def test_a_prediction_beside_a_defect_is_a_false_alarm_and_one_over_its_edge_is_none():
    target = np.zeros(SHAPE, np.uint8)
    target[20:24, 20:24] = 1
    beside, over = np.zeros_like(target), np.zeros_like(target)
    beside[20:24, 24:30], over[20:24, 23:30] = 1, 1
    for prediction, alarms in ((beside, 1), (over, 0)):
        assert (
            sum(row["false_alarms"] for row in rows_of(metered([(prediction, target)]))) == alarms
        )


def test_normal_images_count_for_false_alarms_alone():
    nothing, mask = np.zeros(SHAPE, np.uint8), drawn(3)
    report = metered(
        [(mask, nothing), (nothing, nothing), (nothing, nothing), (nothing, nothing)]
    ).report()
    assert [r["false_alarms"] for r in report] == [0.25, 0, 0, 0]
    assert {
        (r["queries"], r["defects"], r["iou"], r["recall"], r["false_positive_area"])
        for r in report
    } == {(0, 0, None, None, None)}


def test_an_empty_prediction_misses_everything():
    report = metered([(np.zeros(SHAPE, np.uint8), drawn(30))]).report()[1]
    assert (report["iou"], report["recall"], report["found"], report["false_alarms"]) == (
        0,
        0,
        0,
        0,
    )


def test_nothing_seen_has_no_figures():
    for figures in SizeMeter().report():
        assert [
            figures[k] for k in ("iou", "recall", "false_positive_area", "found", "false_alarms")
        ] == [None] * 5


def test_ignored_pixels_count_nowhere():
    for prediction, target in make_queries():
        flipped = np.where(target == IGNORE, 1 - prediction, prediction)
        np.testing.assert_array_equal(
            metered([(prediction, target)]).counts, metered([(flipped, target)]).counts
        )


def test_shares_are_of_the_pixels_that_count():
    """6 of 20000 pixels lie in the second range, 6 of the 20001 - 1 that count as well, 6 of 20001 do not."""
    target = np.zeros((1, 20001), np.uint8)
    target[0, :6] = 1
    assert [r["queries"] for r in metered([(target, target)]).report()] == [1, 0, 0, 0]
    ignoring = target.copy()
    ignoring[0, -1] = IGNORE
    assert [r["queries"] for r in metered([(target, ignoring)]).report()] == [0, 1, 0, 0]


def test_an_image_of_ignored_pixels_only_adds_no_figure():
    meter = metered([(drawn(50), np.full(SHAPE, IGNORE, np.uint8))])
    assert meter.counts[:, 1:].sum() == 0


@pytest.mark.parametrize("kind", [bool, np.float32, np.float64])
def test_kinds_of_predictions_count_the_same(kind):
    for prediction, target in make_queries()[:6]:
        expected = metered([(prediction, target)]).counts
        np.testing.assert_array_equal(metered([(prediction.astype(kind), target)]).counts, expected)
        transposed = metered([(prediction.astype(kind).T, target.T)]).counts
        np.testing.assert_array_equal(transposed, expected)
