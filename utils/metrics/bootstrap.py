"""Paired bootstrap: how far IoU and its differences move with other query images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

LEVELS = (0.025, 0.975)
FREEDOM = 4  # queries less classes that an interval takes at least: fewer show too little spread
CHUNK = 1 << 22  # numbers of draws held at once, 32 MiB


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % percentile interval, fractions; None where undefined.

    `p`, of differences, is two-sided, of the hypothesis that there is none. Too few queries have
    `low`, `high` and `p` None.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """IoU of each run, and the difference of each later run to the first."""

    runs: list[Estimate]
    differences: list[Estimate]


def paired_bootstrap(
    strata: Mapping[str, np.ndarray], samples: int, seed: int
) -> tuple[Comparison, dict[str, Comparison]]:
    """mIoU and class IoU of several runs, with the spread over the choice of their queries.

    Queries are drawn with replacement within their class, the same for all runs (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8). Of n queries n - 1 are drawn,
    since n draws make the variance (n - 1) / n of what it should be (Rao and Wu, JASA 83, 1988),
    which over classes of few queries finds differences where there are none.

    `strata` holds per class (queries, runs, 2) float64: intersection and union in pixels. Returns
    mIoU, the mean over the classes that have a union in every run (of each sample), and classes.
    """
    rng = np.random.default_rng(seed)
    total, defined, freedom, classes = 0.0, 0.0, 0, {}
    for name, counts in strata.items():
        iou = _class_iou(counts, samples, rng)
        classes[name] = _compare(iou, len(counts) - 1)
        in_all = ~np.isnan(iou).any(axis=1, keepdims=True)
        freedom += len(counts) - 1 if in_all[0] else 0
        total, defined = total + np.where(in_all, iou, 0), defined + in_all
    return _compare(_ratio(total, defined), freedom), classes


def _class_iou(counts: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """(1 + samples, runs) float64: IoU of all queries, then of each sample; NaN: no union."""
    queries, runs, _ = counts.shape
    pixels = [np.ascontiguousarray(counts[:, run]) for run in range(runs)]
    sums = np.empty((1 + samples, runs, 2))
    sums[0] = counts.sum(axis=0)
    chances, step = np.full(queries, 1 / queries), max(1, CHUNK // queries)
    for start in range(1, 1 + samples, step):
        part = sums[start : start + step]
        drawn = rng.multinomial(max(1, queries - 1), chances, size=len(part))
        # run by run: equal columns of one product might be rounded differently
        for run in range(runs):
            part[:, run] = drawn.astype(np.float64) @ pixels[run]
    return _ratio(sums[..., 0], sums[..., 1])


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)


def _compare(iou: np.ndarray, freedom: int) -> Comparison:
    differences = [_estimate(v, freedom, is_difference=True) for v in (iou[:, 1:] - iou[:, :1]).T]
    return Comparison([_estimate(v, freedom) for v in iou.T], differences)


def _estimate(values: np.ndarray, freedom: int, is_difference: bool = False) -> Estimate:
    """From (1 + samples,) values, the figure itself first."""
    value = None if np.isnan(values[0]) else float(values[0])
    drawn, p = values[1:][~np.isnan(values[1:])], None
    if freedom < FREEDOM or not drawn.size:
        return Estimate(value)
    if is_difference:
        # twice the share beyond 0, counted with one more (Davison and Hinkley, 1997, section 4.2)
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (beyond + 1) / (len(drawn) + 1))
    low, high = np.quantile(drawn, LEVELS)
    return Estimate(value, float(low), float(high), p)
