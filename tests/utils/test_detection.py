from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from tests.plain_measures import EIGHT, plain_aupro, plain_f1_max
from utils.metrics.detection import ScoreCounts, precision_recall, region_weights

REPO = Path(__file__).resolve().parents[2]


def smooth_map(rng, ties):
    """(48, 64) scores and a mask of a few regions that score higher; rounded to 20 values, or all distinct."""
    scores = cv2.GaussianBlur(rng.random((48, 64), dtype=np.float32), (0, 0), 2)
    mask = cv2.GaussianBlur(rng.random(scores.shape), (0, 0), 3) > 0.545
    scores += 0.03 * mask * rng.random(scores.shape, dtype=np.float32)
    return (scores * 40).round() / 40 if ties else scores, mask


@pytest.fixture(params=[False, True], ids=["distinct", "ties"])
def maps(request):
    """Five images, one of them without a defect."""
    rng = np.random.default_rng(3)
    made = [smooth_map(rng, request.param) for _ in range(5)]
    return [*made[:4], (made[4][0], np.zeros_like(made[4][1]))]


def counted(maps, **options):
    counts = ScoreCounts(**options)
    for scores, mask in maps:
        counts.add_map(scores, mask)
    return counts


def pooled(maps):
    return np.concatenate([m[1].ravel() for m in maps]), np.concatenate(
        [m[0].ravel() for m in maps]
    )


def measures(counts):
    return {
        "auroc": counts.auroc(),
        "average_precision": counts.average_precision(),
        "aupro": counts.aupro(),
        "f1_max": counts.f1_max()[0],
    }


def states(counts):
    curve = counts.curve()
    return [
        curve.thresholds.tolist(),
        curve.true_positives.tolist(),
        curve.false_positives.tolist(),
    ]


def slack(counts):
    """How far the measures of a curve of ties can lie from those of any finer curve through its points: within a tie
    the finer curve stays in the box between two points, and precision and F1 between those where all negatives of the
    tie come first and where all positives do."""
    curve = counts.curve()
    hits, wrong = np.append(0, curve.true_positives), np.append(0, curve.false_positives)
    overlap, step = np.append(0, curve.overlap) / counts.regions, np.diff(wrong) / wrong[-1]
    recall = np.diff(hits) / hits[-1]
    low = hits[:-1] / np.maximum(hits[:-1] + wrong[1:], 1)
    high = hits[1:] / np.maximum(hits[1:] + wrong[:-1], 1)
    return {
        "auroc": (step * recall).sum() / 2,
        "average_precision": (recall * (high - low)).sum(),
        "aupro": (step * np.diff(overlap)).sum() / 2 / 0.3,
        "f1_max": (2 * hits[1:] / (hits[-1] + hits[1:] + wrong[:-1])).max() - counts.f1_max()[0],
    }


def test_agrees_with_scikit_learn(maps):
    counts, (labels, scores) = counted(maps), pooled(maps)
    assert counts.dropped_bits == 0
    assert counts.auroc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert counts.average_precision() == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    value, threshold = counts.f1_max()
    assert (value, threshold) == pytest.approx(plain_f1_max(labels, scores), abs=1e-12)


def test_scores_of_images_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.random(300) < 0.6
    scores = (rng.gamma(2, size=300) + labels).astype(np.float32)
    counts = ScoreCounts()
    for score, label in zip(scores, labels, strict=True):
        counts.add(score, label)
    assert counts.auroc() == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert counts.average_precision() == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    assert counts.aupro() is None, "values have no regions"


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_aupro_agrees_with_a_loop_over_thresholds(maps, limit):
    small = [(s[::2, ::2].copy(), m[::2, ::2].copy()) for s, m in maps]
    assert counted(small).aupro(limit) == pytest.approx(plain_aupro(small, limit), abs=1e-12)


def test_aupro_gives_a_small_region_the_say_of_a_large_one():
    """Of a region of 1 and one of 50 pixels only the small one is found, before any normal pixel."""
    mask, scores = np.zeros((10, 20), bool), np.full((10, 20), 0.5, np.float32)
    mask[0, 0] = mask[5:10, 10:20] = True
    scores[0, 0], scores[5:10, 10:20] = 1, 0.1
    counts = counted([(scores, mask)])
    assert counts.regions == 2
    rise = 0.3 * 0.5  # all normal pixels tie: they come with no further region
    assert counts.aupro() == pytest.approx(rise / 0.3)


def test_weights_of_regions_are_one_over_their_area():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 3:8], mask[6, 8], mask[15, 20:23] = (
        255,
        255,
        255,
    )  # the second touches the first by a corner
    weights, regions = region_weights(mask)
    expected, n = ndimage.label(mask, EIGHT)
    assert regions == n == 2
    assert weights.shape == mask.shape and weights.dtype == np.float64
    assert (weights[mask == 0] == 0).all()
    for i in (1, 2):
        np.testing.assert_array_equal(weights[expected == i], 1 / (expected == i).sum())
    for full in (np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        weights, regions = region_weights(full)
        assert (weights == full / 12).all() and regions == full.max()


def test_given_weights_make_the_overlap():
    counts = ScoreCounts()
    counts.add(np.array([3, 2, 1, 2]), np.array([1, 1, 1, 0]), np.array([0.5, 0.25, 0.25, 9]))
    assert counts.curve().overlap.tolist() == [0.5, 0.75, 1]


def test_curve_counts_what_reaches_each_threshold(maps):
    curve, (labels, scores) = counted(maps).curve(), pooled(maps)
    np.testing.assert_array_equal(curve.thresholds, np.unique(scores)[::-1])
    for i in range(0, len(curve.thresholds), 97):
        found = scores >= curve.thresholds[i]
        assert curve.true_positives[i] == (found & labels).sum()
        assert curve.false_positives[i] == (found & ~labels).sum()


def test_perfect_and_inverted_detectors():
    mask = np.zeros((30, 40), bool)
    mask[3:9, 5:25] = True
    rng = np.random.default_rng(0)
    noise = rng.random(mask.shape, dtype=np.float32)
    good, bad = noise + mask.astype(np.float32), noise + (~mask).astype(np.float32)
    perfect, inverted = counted([(good, mask)]), counted([(bad, mask)])
    assert perfect.auroc() == perfect.average_precision() == perfect.f1_max()[0] == 1
    assert perfect.aupro() == pytest.approx(1, abs=1e-12)
    assert perfect.f1_max()[1] == good[mask].min()
    assert inverted.auroc() == inverted.aupro() == 0
    share = mask.mean()
    assert inverted.f1_max()[0] == pytest.approx(2 * share / (1 + share)), (
        "all is the best that is left"
    )
    assert inverted.average_precision() < share


def test_one_score_for_all_tells_nothing():
    labels = np.arange(10) < 4
    counts = ScoreCounts()
    counts.add(np.full(10, 0.3), labels)
    assert counts.auroc() == 0.5
    assert counts.average_precision() == pytest.approx(0.4)
    assert counts.f1_max() == (pytest.approx(2 * 0.4 / 1.4), np.float32(0.3))


@pytest.mark.parametrize("labels", [[], [0, 0, 0], [1, 1, 1]])
def test_a_missing_label_leaves_all_undefined(labels):
    counts, mask = ScoreCounts(), np.array([labels], bool)
    if labels:
        counts.add_map(np.array([[0.1, 0.2, 0.2]]), mask)
    assert [counts.auroc(), counts.average_precision(), counts.f1_max(), counts.aupro()] == [
        None
    ] * 4


@pytest.mark.parametrize("bad", [-1e-6, -np.inf, np.inf, np.nan])
def test_negative_or_infinite_scores_are_refused_and_leave_nothing(bad):
    counts, scores = ScoreCounts(), np.ones((4, 5), np.float32)
    scores[2, 3] = bad
    with pytest.raises(ValueError, match="finite and not negative"):
        counts.add_map(scores, scores > 0)
    assert counts.curve().thresholds.size == counts.regions == 0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        ScoreCounts().add(np.ones((2, 3)), np.ones((3, 2), bool))
    with pytest.raises(ValueError, match="shapes differ"):
        ScoreCounts().add(np.ones(3), np.ones(3, bool), np.ones(1))


def test_zero_has_no_sign():
    counts = ScoreCounts()
    counts.add(np.array([0.0, -0.0, 1.0]), np.array([1, 0, 1]))
    assert states(counts) == [[1, 0], [1, 2], [0, 1]]


def test_few_kept_scores_stay_close_to_exact():
    rng = np.random.default_rng(5)
    maps = [smooth_map(rng, ties=False) for _ in range(4)]
    exact, coarse = counted(maps), counted(maps, limit=1000)
    assert coarse.dropped_bits > 0
    assert 500 < len(coarse.curve().thresholds) <= 1000, "a bit halves them at most"
    for name, allowed in slack(coarse).items():
        assert allowed < 0.02, "the bound says something"
        assert abs(measures(coarse)[name] - measures(exact)[name]) <= allowed, name
    fine, rough = exact.curve(), coarse.curve()
    at = [np.flatnonzero(fine.thresholds >= t)[-1] for t in rough.thresholds]
    assert fine.true_positives[at].tolist() == rough.true_positives.tolist(), "its points are exact"
    assert fine.false_positives[at].tolist() == rough.false_positives.tolist()


@pytest.mark.parametrize("limit", [1, 2, 700, 1 << 21])
def test_order_and_grouping_do_not_matter(limit, monkeypatch):
    rng = np.random.default_rng(6)
    maps = [smooth_map(rng, ties=bool(i % 2)) for i in range(6)]
    whole, backwards = counted(maps, limit=limit), counted(maps[::-1], limit=limit)
    at_once, by_row = ScoreCounts(limit), ScoreCounts(limit)
    weighted = [(scores, mask, region_weights(mask)[0]) for scores, mask in maps]
    at_once.add(*map(np.stack, zip(*weighted, strict=True)))
    monkeypatch.setattr("utils.metrics.detection.BLOCK", 50)  # rows of 64 in two parts
    for i in rng.permutation(48):
        for image in weighted:
            by_row.add(*(part[i] for part in image))
    for other in (backwards, at_once, by_row):
        assert other.dropped_bits == whole.dropped_bits
        assert states(other) == states(whole)
        np.testing.assert_allclose(other.curve().overlap, whole.curve().overlap, rtol=1e-12)


@pytest.mark.parametrize("limit", [300, 1 << 21])
def test_points_to_draw_lie_on_the_curve(maps, limit):
    counts, (labels, scores) = counted(maps, limit=limit), pooled(maps)
    drawn = json.loads(json.dumps(precision_recall(counts, points=21)))
    assert 5 < len(drawn["threshold"]) <= 22
    assert drawn["threshold"] == sorted(set(drawn["threshold"]), reverse=True)
    for threshold, *point in zip(
        *(drawn[k] for k in ("threshold", "precision", "recall", "iou")), strict=True
    ):
        found = scores >= threshold
        hits = (found & labels).sum()
        assert point == pytest.approx(
            [hits / found.sum(), hits / labels.sum(), hits / (found | labels).sum()]
        )
    best = drawn["threshold"].index(counts.f1_max()[1])
    assert drawn["iou"][best] == max(drawn["iou"])
    assert drawn["recall"][-1] == 1
    tie = np.diff(counts.curve().true_positives, prepend=0).max() / labels.sum()
    assert np.diff(drawn["recall"], prepend=0).max() <= 1 / 20 + tie


def test_nothing_to_draw_without_a_positive():
    counts = ScoreCounts()
    assert precision_recall(counts) == {"threshold": [], "precision": [], "recall": [], "iou": []}
    counts.add(np.ones(3), np.zeros(3, bool))
    assert precision_recall(counts)["threshold"] == []


GROWTH = r"""
import re, cv2, numpy as np
from pathlib import Path
from utils.metrics.detection import ScoreCounts

def peak():
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

rng, counts = np.random.default_rng(0), ScoreCounts()
mask = np.zeros((1024, 1024), bool)
mask[100:130, 200:300] = True
for i in range(50):
    if i == 10:
        before = peak()
    small = cv2.GaussianBlur(rng.random((128, 128), dtype=np.float32), (0, 0), 1.5)
    counts.add_map(np.abs(cv2.resize(small, mask.shape, interpolation=cv2.INTER_CUBIC)), mask)
print(peak() - before, counts.curve().false_positives[-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_images():
    """The scores of the forty images fill 160 MiB, and counting them without a limit takes more; the counts may take
    24 MiB, 12 bytes for each of 2 ** 21 scores, and have been at their limit within the first ten."""
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], cwd=REPO, capture_output=True, text=True, check=True
    )
    grown, normal = map(int, done.stdout.split())
    assert normal == 50 * (1024 * 1024 - 3000)
    assert grown < 80
