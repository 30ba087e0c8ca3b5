"""Measures of anomaly detection, computed the plain way: to compare with."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

EIGHT = np.ones((3, 3))


def plain_aupro(maps, limit=0.3):
    """Of (scores, bool mask) pairs: each threshold by itself, each region by itself."""
    scores = np.concatenate([m[0].ravel() for m in maps])
    labelled = [(s, m, ndimage.label(m, EIGHT)) for s, m in maps]
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        wrong = sum(int(((s >= threshold) & ~m).sum()) for s, m in maps)
        rates.append(wrong / sum(int((~m).sum()) for _, m in maps))
        shares = [
            (s[own == i] >= threshold).mean()
            for s, _, (own, n) in labelled
            for i in range(1, n + 1)
        ]
        overlaps.append(np.mean(shares))
        if rates[-1] > limit:
            break
    area = 0.0
    for x0, x1, y0, y1 in zip(rates, rates[1:], overlaps, overlaps[1:], strict=False):
        if x1 > limit:
            y1, x1 = y0 + (y1 - y0) * (limit - x0) / (x1 - x0), limit
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def plain_levels(labels, scores):
    """AUROC, average precision and the highest F1."""
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    ap = average_precision_score(labels, scores)
    return {"auroc": roc_auc_score(labels, scores), "ap": ap, "f1_max": f1.max()}


def plain_measures(maps):
    """The seven measures of (scores, bool mask) pairs; an image scores as its highest pixel."""
    images = plain_levels([m.any() for _, m in maps], [s.max() for s, _ in maps])
    scores, labels = (np.concatenate([pair[i].ravel() for pair in maps]) for i in (0, 1))
    pixels = plain_levels(labels, scores)
    found = {f"image_{name}": value for name, value in images.items()}
    found |= {f"pixel_{name}": value for name, value in pixels.items()}
    return found | {"aupro": plain_aupro(maps)}
