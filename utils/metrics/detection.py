"""Measures of anomaly detection over all thresholds, from counts per score: exact, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

LIMIT = 1 << 21  # distinct scores kept: 12 bytes each, and 20 for each of positives
BLOCK = 1 << 20  # scores added at a time: bounds the memory whatever the size of an image


def region_weights(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """What each pixel is worth where all regions, the 8-connected components, have an equal say.

    Args:
        mask: (h, w) bool or uint8, nonzero: defect.

    Returns:
        (h, w) float64, 1 / area of the pixel's region, 0 outside; and the number of regions.
    """
    positive = np.asarray(mask, bool).astype(np.uint8)
    count, region, stats, _ = cv2.connectedComponentsWithStats(positive, connectivity=8)
    worth = 1 / np.maximum(stats[:, cv2.CC_STAT_AREA], 1)
    worth[0] = 0
    return worth[region], count - 1


@dataclass(frozen=True)
class Curve:
    """Running sums over the distinct thresholds, descending: what `score >= threshold` detects.

    Attributes:
        thresholds: (n,) float32.
        true_positives, false_positives: (n,) int64.
        overlap: (n,) float64, sum of the covered fractions of all regions.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    overlap: np.ndarray


class _Sums:
    """Sums of some quantities by key.

    Attributes:
        keys: (n,) uint32, ascending, each once.
        values: (rows, n) float64, which counts exactly up to 2 ** 53.
    """

    def __init__(self, rows: int) -> None:
        self.keys, self.values = np.empty(0, np.uint32), np.empty((rows, 0))

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Add (rows, m) values of (m,) ascending keys."""
        keys = np.concatenate([self.keys, keys])
        order = np.argsort(keys, kind="stable")  # two ascending runs: merged in linear time
        self._set(keys[order], np.concatenate([self.values, values], axis=1)[:, order])

    def drop(self, bits: int) -> None:
        """Clear the lowest bits of all keys."""
        self._set(_cleared(self.keys, bits), self.values)

    def _set(self, keys: np.ndarray, values: np.ndarray) -> None:
        first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        self.keys, self.values = keys[first], np.add.reduceat(values, first, axis=1)


class ScoreCounts:
    """How often each score came with which label.

    Exact while at most `limit` scores are distinct. Beyond that the low bits of all scores are dropped, one at a time,
    until they fit: close scores tie, their order stays, and every point of the curve is still one of the exact curve.
    The counts do not depend on the order or grouping of what is added; sums of weights do in the last digits.

    All measures are None as long as either label is missing.

    Args:
        limit: most distinct scores to keep, at least 1.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.regions = 0
        self.dropped_bits = 0
        # keys are bit patterns of floats from 0 on: in the order of the floats
        self._all = _Sums(1)  # count
        self._positive = _Sums(
            2
        )  # count, weight; apart from the others, as positive pixels are few

    def add(
        self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
    ) -> None:
        """Count scores of images or pixels.

        Args:
            scores: any shape, rounded to float32; finite, from 0 on, higher: more anomalous.
            labels: the same shape, bool or uint8, nonzero: positive.
            weights: the same shape, float64, of the positives; those of negatives are not read.

        Raises:
            ValueError: a score that is negative or not finite, or shapes that differ; nothing is added then.
        """
        scores, labels = np.asarray(scores, np.float32), np.asarray(labels, bool)
        weights = np.zeros(labels.shape) if weights is None else np.asarray(weights, np.float64)
        if not scores.shape == labels.shape == weights.shape:
            raise ValueError(
                f"shapes differ: scores {scores.shape}, labels {labels.shape}, weights {weights.shape}"
            )
        if scores.size and not (scores.min() >= 0 and scores.max() < np.inf):
            raise ValueError("scores must be finite and not negative")
        scores, labels, weights = (
            np.abs(scores).ravel(),
            labels.ravel(),
            weights.ravel(),
        )  # abs: -0 counts as 0
        for start in range(0, scores.size, BLOCK):
            part = slice(start, start + BLOCK)
            self._count(scores[part].view(np.uint32), labels[part], weights[part])
            self._fit()

    def add_map(self, scores: np.ndarray, mask: np.ndarray) -> None:
        """Count the pixels and regions of one image; see `add` and `region_weights`.

        Args:
            scores: (h, w).
            mask: (h, w) bool or uint8, nonzero: defect.
        """
        weights, regions = region_weights(mask)
        self.add(scores, mask, weights)
        self.regions += regions

    def _count(self, bits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> None:
        bits = _cleared(bits, self.dropped_bits)
        # torch takes a third of the time that numpy does; int32 keeps the order, for the sign bit is never set
        keys, counts = torch.unique(torch.from_numpy(bits.view(np.int32)), return_counts=True)
        self._all.add(keys.numpy().view(np.uint32), counts.numpy()[None])
        if labels.any():
            order = bits[labels].argsort()
            self._positive.add(
                bits[labels][order], np.stack([np.ones(len(order)), weights[labels][order]])
            )

    def _fit(self) -> None:
        while len(self._all.keys) > self.limit:
            self.dropped_bits += 1
            self._all.drop(self.dropped_bits)
            self._positive.drop(self.dropped_bits)

    def curve(self) -> Curve:
        """Detections at each distinct score. Where bits were dropped, a threshold is the lower end of the scores that
        tie, so `score >= threshold` holds for the exact scores too."""
        found = np.zeros((2, len(self._all.keys)))
        found[:, np.searchsorted(self._all.keys, self._positive.keys)] = self._positive.values
        hits, overlap = np.cumsum(found[:, ::-1], axis=1)
        total, hits = np.cumsum(self._all.values[0, ::-1]).astype(np.int64), hits.astype(np.int64)
        return Curve(self._all.keys[::-1].view(np.float32), hits, total - hits, overlap)

    def _defined_curve(self) -> Curve | None:
        positives, total = self._positive.values[0].sum(), self._all.values.sum()
        return self.curve() if 0 < positives < total else None

    def auroc(self) -> float | None:
        """Area under the true against the false positive rate, by trapezoids: a tie counts half."""
        if (curve := self._defined_curve()) is None:
            return None
        return _area(_rate(curve.false_positives), _rate(curve.true_positives))

    def average_precision(self) -> float | None:
        """Sum of (R_n - R_{n-1}) P_n over the thresholds n, descending; R: recall, P: precision."""
        if (curve := self._defined_curve()) is None:
            return None
        gained = np.diff(curve.true_positives, prepend=0) / curve.true_positives[-1]
        return float((gained * _precision(curve)).sum())

    def f1_max(self) -> tuple[float, float] | None:
        """The highest F1 of all thresholds, and the (highest) threshold that reaches it."""
        if (curve := self._defined_curve()) is None:
            return None
        iou = _iou(curve)
        best = int(iou.argmax())
        return float(2 * iou[best] / (1 + iou[best])), float(curve.thresholds[best])

    def aupro(self, limit: float = 0.3) -> float | None:
        """Area under the mean overlap per region against the false positive rate up to `limit`, as a share of `limit`.

        Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 4: the rate is over the normal pixels
        of all images, the curve starts at (0, 0) and is linear between thresholds. None without regions, too.
        """
        if not self.regions or (curve := self._defined_curve()) is None:
            return None
        rate = _rate(curve.false_positives)
        overlap = np.append(0, curve.overlap) / self.regions
        inside = np.searchsorted(rate, limit, "right")
        end = np.interp(limit, rate, overlap)
        return _area(np.append(rate[:inside], limit), np.append(overlap[:inside], end)) / limit


def precision_recall(counts: ScoreCounts, points: int = 101) -> dict[str, list[float]]:
    """The curve at some thresholds, to draw it by: at the highest that reaches each of `points` evenly spaced recalls,
    and at that of the highest F1 and IoU.

    Returns:
        threshold (descending), precision, recall and iou: lists of one length, at most `points` + 1, empty without a
        positive.
    """
    curve = counts.curve()
    hits = curve.true_positives
    if not hits.size or not hits[-1]:
        return {"threshold": [], "precision": [], "recall": [], "iou": []}
    iou = _iou(curve)
    at = np.union1d(np.searchsorted(hits, np.linspace(0, 1, points) * hits[-1]), iou.argmax())
    return {
        "threshold": curve.thresholds[at].tolist(),
        "precision": _precision(curve)[at].tolist(),
        "recall": (hits[at] / hits[-1]).tolist(),
        "iou": iou[at].tolist(),
    }


def _cleared(keys: np.ndarray, bits: int) -> np.ndarray:
    return keys >> bits << bits


def _rate(found: np.ndarray) -> np.ndarray:
    """Running counts, as shares of the last, from 0 on."""
    return np.append(0, found) / found[-1]


def _area(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.trapezoid(y, x))


def _precision(curve: Curve) -> np.ndarray:
    return curve.true_positives / (curve.true_positives + curve.false_positives)


def _iou(curve: Curve) -> np.ndarray:
    """F1 is 2 IoU / (1 + IoU): highest at the same threshold."""
    return curve.true_positives / (curve.true_positives[-1] + curve.false_positives)
