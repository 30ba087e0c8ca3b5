"""IoU that forgives outlines that are a little too wide, too narrow or shifted."""

from __future__ import annotations

import cv2
import numpy as np

from utils.metrics.segmentation import IGNORE, share


def matched_pixels(prediction: np.ndarray, target: np.ndarray, tolerance: int) -> int:
    """Predicted pixels within `tolerance` of a true one, and true ones of a predicted one, added.

    `prediction` and `target` are (h, w), as `intersection_union` takes them; ignored pixels count
    nowhere. A pixel is within t of another where neither rows nor columns differ by more than t.
    """
    counted = target != IGNORE
    predicted, defect = (np.asarray(prediction) >= 0.5) & counted, target == 1
    square, matched = np.ones(2 * (2 * tolerance + 1,), np.uint8), 0
    for mask, other in ((predicted, defect), (defect, predicted)):
        near = cv2.dilate(other.view(np.uint8), square)
        matched += np.count_nonzero(mask & (near > 0))
    return matched


def tolerant_iou(matched: int, areas: int) -> float | None:
    """IoU from `matched_pixels` and the predicted and true pixels together, both added up over
    images; None where nothing is predicted or true.

    m / (m + wrong + missed), where m is the mean of matched predicted and matched true pixels, so
    that m = matched / 2 and wrong + missed = areas - matched. Without tolerance it is the IoU.
    """
    return share(matched, 2 * areas - matched)
