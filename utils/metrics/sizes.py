"""Figures by the size of a defect: what a method finds of small and of large ones, and how often it raises an alarm."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from utils.metrics.segmentation import IGNORE, intersection_union

SIZES = (
    ("under 0.03 %", 0.0, 0.0003),
    ("0.03-0.3 %", 0.0003, 0.003),
    ("0.3-3 %", 0.003, 0.03),
    ("over 3 %", 0.03, 1.0),
)  # name, least share of the image, share from which on it is the next range

# Share of a defect's pixels that must be predicted for it to count as found: a stray pixel is no detection, and tiny
# defects are never outlined exactly, neither by annotators nor by predictions, so that half would ask for too much.
FOUND_SHARE = 0.1

COLUMNS = (
    "images",  # all that were seen, the same in every range
    "queries",  # whose whole defect area lies in the range; the pixels below are theirs
    "intersection",
    "union",
    "defect_pixels",
    "false_positive_pixels",
    "pixels",
    "defects",  # connected components of the truth of this size
    "found",
    "false_alarms",  # connected components of the prediction of this size without a defect pixel
)
IMAGES, QUERIES, PIXELS, DEFECTS, FOUND, ALARMS = (
    COLUMNS.index(name)
    for name in ("images", "queries", "pixels", "defects", "found", "false_alarms")
)


class SizeMeter:
    """Adds up counts per range of sizes.

    A size is a share of the image's pixels; ignored pixels count nowhere. An image without any defect pixel is
    counted for its false alarms alone.

    Attributes:
        counts: (ranges, COLUMNS) int64; those of several meters add up.
    """

    def __init__(self) -> None:
        self.counts = np.zeros((len(SIZES), len(COLUMNS)), np.int64)

    def update(self, prediction: np.ndarray, target: np.ndarray) -> None:
        """Add one query.

        Args:
            prediction: (h, w), {0, 1}, or fractions, of which 0.5 and above are foreground; intersection and union
                are those of `intersection_union`.
            target: (h, w), {0, 1}, 255 where a pixel is ignored.
        """
        counted = target != IGNORE
        predicted = (np.asarray(prediction) >= 0.5) & counted
        defect = target == 1
        pixels = np.count_nonzero(counted)
        self.counts[:, IMAGES] += 1
        areas, hits = _components(defect, predicted)
        if areas.size:
            intersection, union = intersection_union(prediction, target)
            area = areas.sum()
            wrong = np.count_nonzero(predicted) - hits.sum()
            size = _sizes(area / pixels)
            self.counts[size, QUERIES : PIXELS + 1] += [
                1,
                intersection[1],
                union[1],
                area,
                wrong,
                pixels,
            ]
            self.counts[:, DEFECTS] += _per_size(areas, pixels)
            self.counts[:, FOUND] += _per_size(areas[hits / areas >= FOUND_SHARE], pixels)
        areas, hits = _components(predicted, defect)
        self.counts[:, ALARMS] += _per_size(areas[hits == 0], pixels)

    def report(self) -> list[dict[str, Any]]:
        """Figures per range as plain JSON, None where undefined.

        `iou`, `recall` and `false_positive_area` (a share of the image) pool the pixels of the queries of the range;
        `found` is the share of the `defects`; `false_alarms` are per image.
        """
        return [
            _figures(size, dict(zip(COLUMNS, row, strict=True)))
            for size, row in zip(SIZES, self.counts.tolist(), strict=True)
        ]


def _figures(size: tuple[str, float, float], n: dict[str, int]) -> dict[str, Any]:
    name, low, high = size
    return {
        "name": name,
        "low": low,
        "high": high,
        "queries": n["queries"],
        "iou": _share(n["intersection"], n["union"]),
        "recall": _share(n["intersection"], n["defect_pixels"]),
        "false_positive_area": _share(n["false_positive_pixels"], n["pixels"]),
        "defects": n["defects"],
        "found": _share(n["found"], n["defects"]),
        "false_alarms": _share(n["false_alarms"], n["images"]),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _components(mask: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each 8-connected component of a mask, and how many of them `other` has too.

    Args:
        mask, other: (h, w) bool.

    Returns:
        Both (components,) int64.
    """
    if not mask.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    number, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    areas, shared = (
        np.bincount(labels[m], minlength=number) for m in (mask, mask & other)
    )  # faster than WithStats
    return areas[1:], shared[1:]


def _sizes(shares: np.ndarray) -> np.ndarray:
    """Number of the range of each share."""
    return np.searchsorted([low for _, low, _ in SIZES], shares, side="right") - 1


def _per_size(areas: np.ndarray, pixels: int) -> np.ndarray:
    """(ranges,) how many areas lie in each range."""
    return np.bincount(_sizes(areas / pixels), minlength=len(SIZES))
