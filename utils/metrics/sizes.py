"""Figures by the size of a defect, and how often a false alarm is raised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from utils.metrics.segmentation import IGNORE, intersection_union, share

# name, least share of the image, share from which on it is the next range
SIZES = (
    ("under 0.03 %", 0.0, 0.0003),
    ("0.03-0.3 %", 0.0003, 0.003),
    ("0.3-3 %", 0.003, 0.03),
    ("over 3 %", 0.03, 1.0),
)

# Share of a defect's pixels that must be predicted for it to count as found: a stray pixel is no
# detection, and half would ask for too much of tiny defects, which nobody outlines exactly.
FOUND_SHARE = 0.1

# images: all queries, the same in every range. queries: those whose whole defect area lies in the
# range; the five counts of pixels after it are theirs. defects: components of the truth of this
# size. false_alarms: components of the prediction of this size without a defect pixel.
COLUMNS = (
    *("images", "queries", "intersection", "union", "defect_pixels", "false_positive_pixels"),
    *("pixels", "defects", "found", "false_alarms"),
)


class SizeMeter:
    """Adds up counts per range of sizes: (ranges, COLUMNS) int64; those of several meters add up.

    A size is a share of the image's pixels; ignored pixels count nowhere. An image without any
    defect pixel is counted for its false alarms alone.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((len(SIZES), len(COLUMNS)), np.int64)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one query, as `intersection_union` takes it."""
        counted = target != IGNORE
        predicted, defect = (np.asarray(prediction) >= 0.5) & counted, target == 1
        pixels = np.count_nonzero(counted)
        areas, hits = _components(defect, predicted)
        alarm_areas, touched = _components(predicted, defect)
        self.counts[:, 0] += 1
        if areas.size:
            intersection, union = (counts[1] for counts in intersection_union(prediction, target))
            wrong = np.count_nonzero(predicted) - hits.sum()
            row = [1, intersection, union, areas.sum(), wrong, pixels]
            self.counts[_ranges(areas.sum() / pixels), 1:7] += row
        found, alarms = areas[hits / areas >= FOUND_SHARE], alarm_areas[touched == 0]
        for column, sizes in enumerate((areas, found, alarms), 7):
            self.counts[:, column] += np.bincount(_ranges(sizes / pixels), minlength=len(SIZES))

    def report(self) -> list[dict[str, Any]]:
        """Figures per range as plain JSON, None where undefined.

        `iou`, `recall` and `false_positive_area` (a share of the image) pool the pixels of the
        queries of the range; `found` is the share of the `defects`; `false_alarms` are per image.
        `counts` are what they are made of, so that figures of several reports can be pooled.
        """
        report = []
        for (name, low, high), row in zip(SIZES, self.counts.tolist(), strict=True):
            n = dict(zip(COLUMNS, row, strict=True))
            figures = {"name": name, "low": low, "high": high, "queries": n["queries"]}
            figures["iou"] = share(n["intersection"], n["union"])
            figures["recall"] = share(n["intersection"], n["defect_pixels"])
            figures["false_positive_area"] = share(n["false_positive_pixels"], n["pixels"])
            figures |= {"defects": n["defects"], "found": share(n["found"], n["defects"])}
            figures |= {"false_alarms": share(n["false_alarms"], n["images"]), "counts": n}
            report.append(figures)
        return report

    def add(self, report: Sequence[dict[str, Any]]) -> None:
        """Add what another meter has reported."""
        self.counts += [[part["counts"][column] for column in COLUMNS] for part in report]


def _components(mask: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each 8-connected component of a mask, and of these in `other`; (h, w) bool."""
    number, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    # faster than connectedComponentsWithStats
    areas, shared = (np.bincount(labels[m], minlength=number)[1:] for m in (mask, mask & other))
    return areas, shared


def _ranges(shares: np.ndarray) -> np.ndarray:
    """Number of the range of each share of an image."""
    return np.searchsorted([low for _, low, _ in SIZES], shares, side="right") - 1
