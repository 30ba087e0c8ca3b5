"""What methods mark in images without a defect."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.metrics.score_curves import Curve


def normal_figures(
    areas: Sequence[float], scores: Sequence[float], defective: Sequence[float]
) -> dict[str, float | None]:
    """The measures NORMAL of some normal images, by name; None where undefined.

    Args:
        areas: share of each normal image that is marked, all of it falsely.
        scores: the highest score in each normal image.
        defective: the highest score in each image with the defect that was looked for.
    """
    labels = [False] * len(scores) + [True] * len(defective)
    return {
        "normal_empty": float(np.equal(areas, 0).mean()) if areas else None,
        "normal_area": float(np.mean(areas)) if areas else None,
        "normal_auroc": Curve.of([*scores, *defective], labels).measures()["auroc"],
    }
