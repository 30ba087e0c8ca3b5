"""How precision, recall and IoU depend on the threshold, from counts of scores in fixed steps."""

from __future__ import annotations

from typing import Any

import numpy as np

LEVELS = 1000  # steps between the scores 0 and 1
POINTS = 101
ROUNDING = (
    1e-3  # of a step: more than float32 is off by, so that a score of k / LEVELS is at step k
)


class ScoreHistogram:
    """Counts of pixel scores by their true label, in steps of 1 / LEVELS.

    Attributes:
        counts: (2, LEVELS + 1) int64: background, defect; those of several processes add up.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((2, LEVELS + 1), np.int64)

    def update(self, score: np.ndarray, target: np.ndarray) -> None:
        """Add an image: score (h, w) float in [0, 1], target (h, w) uint8, not 0 where there is a defect."""
        levels = np.minimum(score * np.float32(LEVELS) + np.float32(ROUNDING), LEVELS).astype(
            np.uint16
        )
        marked = levels[target != 0]
        found = np.bincount(marked.ravel(), minlength=LEVELS + 1)
        self.counts += np.stack([np.bincount(levels.ravel(), minlength=LEVELS + 1) - found, found])

    def iou(self) -> np.ndarray:
        """(LEVELS + 1,) float64: IoU of what scores k / LEVELS or more, pooled."""
        wrong, right = self.counts[:, ::-1].cumsum(1)[:, ::-1]
        return right / np.maximum(right[0] + wrong, 1)

    def report(self) -> dict[str, Any]:
        """Thresholds from 0 to 1 and what a score from there on finds: precision (None where nothing is found), recall
        and IoU; average precision over all steps, sum of (R_n - R_{n-1}) P_n. Empty lists without a defect pixel."""
        wrong, right = self.counts[:, ::-1].cumsum(1)[:, ::-1]
        total = int(right[0])
        if not total:
            return {
                "threshold": [],
                "precision": [],
                "recall": [],
                "iou": [],
                "average_precision": None,
            }
        precision = right / np.maximum(right + wrong, 1)
        steps = range(0, LEVELS + 1, LEVELS // (POINTS - 1))
        return {
            "threshold": [k / LEVELS for k in steps],
            "precision": [float(precision[k]) if right[k] + wrong[k] else None for k in steps],
            "recall": [float(right[k] / total) for k in steps],
            "iou": [float(v) for v in self.iou()[list(steps)]],
            "average_precision": float((-np.diff(right / total, append=0) * precision).sum()),
        }
