"""Measures of anomaly detection over all thresholds, from counts per score: exact, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

LIMIT = 1 << 21  # distinct scores kept: 28 bytes each
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
        self._keys = np.empty(0, np.uint32)  # bit patterns of floats from 0 on: in the order of the floats
        self._table = np.empty((3, 0))  # all, positives, weight; float64 counts exactly up to 2 ** 53

    def add(self, scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> None:
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
            raise ValueError(f"shapes differ: scores {scores.shape}, labels {labels.shape}, weights {weights.shape}")
        if scores.size and not (scores.min() >= 0 and scores.max() < np.inf):
            raise ValueError("scores must be finite and not negative")
        scores, labels, weights = np.abs(scores).ravel(), labels.ravel(), weights.ravel()  # abs: -0 counts as 0
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
        bits = bits >> self.dropped_bits << self.dropped_bits
        keys, counts = np.unique(bits, return_counts=True)
        at = np.searchsorted(self._keys, keys)
        new = at == np.searchsorted(self._keys, keys, "right")
        self._keys = np.insert(self._keys, at[new], keys[new])
        self._table = np.insert(self._table, at[new], 0, axis=1)
        self._table[0, np.searchsorted(self._keys, keys)] += counts
        positive = np.searchsorted(self._keys, bits[labels])
        np.add.at(self._table[1], positive, 1)
        np.add.at(self._table[2], positive, weights[labels])

    def _fit(self) -> None:
        while len(self._keys) > self.limit:
            self.dropped_bits += 1
            cleared = self._keys >> self.dropped_bits << self.dropped_bits
            self._keys, first = np.unique(cleared, return_index=True)
            self._table = np.add.reduceat(self._table, first, axis=1)

    def curve(self) -> Curve:
        """Detections at each distinct score. Where bits were dropped, a threshold is the lower end of the scores that
        tie, so `score >= threshold` holds for the exact scores too."""
        total, positives, overlap = np.cumsum(self._table[:, ::-1], axis=1)
        hits = positives.astype(np.int64)
        return Curve(self._keys[::-1].view(np.float32), hits, total.astype(np.int64) - hits, overlap)

    def _defined_curve(self) -> Curve | None:
        total, positives, _ = self._table.sum(axis=1)
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
