from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from utils.metrics.segmentation import IGNORE
from utils.metrics.sizes import COLUMNS, SIZES, SizeMeter

SHAPE = (100, 200)  # 5 pixels lie just below the first limit of 0.03 %, 6 on it


def blobs(rng, shape, largest):
    mask = np.zeros(shape, np.uint8)
    for _ in range(rng.integers(0, 12)):
        height, width = rng.integers(1, largest, 2)
        top, left = (rng.integers(0, n - 1) for n in shape)
        mask[top : top + height, left : left + width] = rng.random() < 0.9
    return mask


def make_queries(fractions):
    """(prediction, target) with defects of all sizes, some without, some pixels ignored."""
    rng, queries = np.random.default_rng(0), []
    for i in range(60):
        shape = tuple(rng.integers(60, 160, 2))
        target, prediction = (blobs(rng, shape, (3, 8, 40)[i % 3]) for _ in range(2))
        prediction[rng.random(shape) < 0.002] ^= 1
        prediction |= target & (rng.random(shape) < (0.05, 0.2, 0.8)[i % 3]).astype(np.uint8)
        target[rng.random(shape) < 0.02] = IGNORE
        if i % 7 == 0:
            target[target == 1] = 0
        if fractions:
            prediction = prediction * rng.choice([0.0, 0.3, 0.5, 0.8, 1.0], shape)
        queries.append((prediction, target))
    return queries


def rank(share):
    return next(i for i, (_, low, high) in enumerate(SIZES) if low <= share < high or share == 1)


def components(mask):
    labels, number = ndimage.label(mask, np.ones((3, 3)))
    return [((labels == i).sum(), labels == i) for i in range(1, number + 1)]


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
            row, hit = rows[rank(defect.sum() / pixels)], (defect & (prediction == 1)).sum()
            row["queries"] += 1
            row["intersection"] += hit
            row["union"] += defect.sum() + foreground.sum() - hit
            row["defect_pixels"] += defect.sum()
            row["false_positive_pixels"] += (foreground & ~defect).sum()
            row["pixels"] += pixels
        for area, part in components(defect):
            row = rows[rank(area / pixels)]
            row["defects"] += 1
            row["found"] += (foreground & part).sum() * 10 >= area
        for area, part in components(foreground):
            rows[rank(area / pixels)]["false_alarms"] += not (defect & part).any()
    return rows


def metered(queries):
    meter = SizeMeter()
    for query in queries:
        meter.update(*query)
    return meter


def drawn(pixels):
    """The first `pixels` of an image, row by row."""
    return (np.arange(SHAPE[0] * SHAPE[1]) < pixels).astype(np.uint8).reshape(SHAPE)


@pytest.mark.parametrize("fractions", [False, True])
def test_counts_are_those_of_loops_and_figures_their_shares(fractions):
    """Meters of parts add up; ignored pixels count nowhere."""
    queries = make_queries(fractions)
    meter, expected = metered(queries[20:]), by_hand(queries)
    meter.counts += metered(queries[:20]).counts
    assert [dict(zip(COLUMNS, row, strict=True)) for row in meter.counts.tolist()] == expected
    for name in ("queries", "defects", "found", "false_alarms"):
        assert sum(row[name] > 0 for row in expected) >= 2, "the example has one range only"
    for figures, n, size in zip(meter.report(), expected, SIZES, strict=True):
        shares = dict(zip(("name", "low", "high"), size, strict=True))
        shares |= {"queries": n["queries"], "defects": n["defects"]}
        for name, part, whole in (
            ("iou", "intersection", "union"),
            ("recall", "intersection", "defect_pixels"),
            ("false_positive_area", "false_positive_pixels", "pixels"),
            ("found", "found", "defects"),
            ("false_alarms", "false_alarms", "images"),
        ):
            shares[name] = n[part] / n[whole] if n[whole] else None
        assert figures == shares | {"counts": n}
    pooled = SizeMeter()
    for part in (queries[:20], queries[20:]):
        pooled.add(metered(part).report())
    assert pooled.report() == meter.report()


@pytest.mark.parametrize(("pixels", "expected"), [(1, 0), (5, 0), (6, 1), (60, 2), (20000, 3)])
def test_a_limit_belongs_to_the_range_above(pixels, expected):
    """Of an image of 20000 pixels; a defect, its query and a false alarm of that size.

    A defect is found from a tenth of its pixels on; a normal image counts for false alarms alone.
    """
    mask, nothing = drawn(pixels), drawn(0)
    tenth = -(-pixels // 10)
    queries = [(mask, mask), (mask, nothing), (drawn(tenth), mask), (drawn(tenth - 1), mask)]
    for number, figures in enumerate(metered(queries).report()):
        names = ("queries", "defects", "found", "false_alarms")
        there = [3, 3, 2 / 3, 0.25] if number == expected else [0, 0, None, 0]
        assert [figures[name] for name in names] == there
