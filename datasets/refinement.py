"""Scores that follow the pixels of the image: a patch token is 8 or 14 input pixels wide, a scratch
perhaps two.

Which pixels are defect, and at which level of the score its border lies, the query tells by itself
(transductive, as self-support): another light or shade than that of the supports does no harm.
"""

from __future__ import annotations

import cv2
import numpy as np

from datasets.large_images import ImageStrips, shrunk
from utils.large_arrays import let_go

LONGEST = 2048  # pixels, side of the image at which the addition is found
LEAST_TOKEN = 2.0  # pixels there; smaller tokens follow the image by themselves
REACH = 2.0  # tokens around what is found, within which pixels are told apart
CLEARLY, MOST = 0.5, 1.0  # log-odds: of normal pixels, below 0; of either change, at most
SCALES, SURROUNDINGS = (1.0, 2.5), 3.0  # Gaussians, pixels; side of the mean, tokens
SPECK = 0.25  # area in tokens; a smaller region is noise of the colours
PEAK = 0.75  # log-odds that a region reaches somewhere, or half of the highest, if that is less
LEVELS, POWER = np.arange(-1.5, 2.51, 0.25), 8  # log-odds; of the slope as a weight
FEWEST, SAMPLE = 10, 4000  # pixels of a border; of each kind, for the discriminant
SHRINKAGE, DEVIATION_EPS = 0.1, 0.05  # added to correlations and standard deviations
LEAST = 1e-6  # probability, so that log-odds are finite
ROWS = 64  # written at once


def refine(
    label: np.ndarray, score: np.ndarray, image: ImageStrips, *, threshold: float, window: int,
    image_size: int, stride: int,
) -> None:  # fmt: skip
    """Refine in place scores (h, w) float32, probabilities, and labels (h, w) uint8 {0, 1} of an
    image. Where no pixel is over the threshold they stay as they are. What to add is found on a
    copy as large as the network sees it, at most LONGEST, and brought back to the image.

    Args:
        window: side of the windows in which it was seen, native pixels; 0: as a whole.
        image_size, stride: sides of the network input and of a patch token in it, pixels.
    """
    longest, border = max(score.shape), log_odds(np.float32(threshold))
    window = min(window or longest, longest)
    step = max(round(window / image_size), -(-longest // LONGEST), 1)
    side = -(-longest // step)
    step = -(-longest // side)  # of a thumbnail of this side
    token = window * stride / image_size / step
    if token < LEAST_TOKEN:
        return
    small = shrunk(lambda top, bottom: score[top:bottom], score.shape, step)
    logits = log_odds(small) - border
    if not (logits > 0).any():
        return
    added = addition(logits, image.thumbnail(side), token)
    for top in range(0, len(score), ROWS):
        rows = np.s_[top : top + ROWS]
        more = enlarged(added, score.shape, top, top + len(score[rows]))
        score[rows] = 1 / (1 + np.exp(-log_odds(score[rows]) - more))
        label[rows] = score[rows] > threshold
        let_go(score, label)


def addition(logits: np.ndarray, image: np.ndarray, token: float) -> np.ndarray:
    """What to add to log-odds (h, w) float32 of the pixels of an image (h, w, 3) uint8 RGB, by
    tokens of a side in pixels: (h, w) float32.

    Pixels within REACH of those with positive log-odds get evidence by the linear discriminant
    (Fisher 1936) of the latter and of clearly normal ones near them, by colour relative to the
    surroundings. Its value is the log-odds of two normal distributions of the same covariance. Then
    0 moves to the level of `steepest`. Either change is MOST at most. Positive regions that after
    it are smaller than SPECK, or nowhere as high as PEAK, become clearly normal.
    """
    added, found = np.zeros_like(logits), logits > 0
    far = cv2.distanceTransform((~found).astype(np.uint8), cv2.DIST_L2, 3)
    near = far <= REACH * token
    rows, columns = (np.flatnonzero(near.any(axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    normal = near[box] & (logits[box] < -CLEARLY)
    if found.sum() >= 2 * FEWEST and normal.sum() >= FEWEST:
        colours = relative_colours(image[box], token)
        direction, middle = discriminant(colours[found[box]], colours[normal])
        evidence = np.clip(colours @ direction - middle, -MOST, MOST)
        added[box] = evidence * near[box]
    width = round(token / 2) | 1
    level = steepest(cv2.blur(logits + added, (width, width)))
    added -= np.float32(np.clip(level, -MOST, MOST))
    refined = logits + added
    positive = (refined > 0).astype(np.uint8)
    count, regions = cv2.connectedComponents(positive, connectivity=8)
    is_speck = np.bincount(regions.ravel(), minlength=count) < SPECK * token**2
    highest = np.zeros(count, np.float32)
    np.maximum.at(highest, regions.ravel(), refined.ravel())
    highest[is_speck] = 0
    doubtful = is_speck | (highest < min(PEAK, highest.max() / 2))
    return np.where(doubtful[regions] & (positive > 0), -CLEARLY - logits, added)


def relative_colours(image: np.ndarray, token: float) -> np.ndarray:
    """Colours of pixels, in CIELAB at several scales, less the mean of their surroundings: image
    (h, w, 3) uint8 RGB to (h, w, 9) float32."""
    colours = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    side = int(SURROUNDINGS * token) | 1
    mean = cv2.blur(colours, (side, side))
    smooth = (cv2.GaussianBlur(colours, (0, 0), sigma) for sigma in SCALES)
    return np.concatenate([colours - mean, *(layer - mean for layer in smooth)], axis=-1)


def discriminant(defect: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, float]:
    """Direction (C,) float32 and its product with the middle of the means of two kinds of pixels
    (N, C), by the mean of their covariances."""
    kinds = [kind[:: -(-len(kind) // SAMPLE)].astype(np.float64) for kind in (defect, normal)]
    scatter = sum(np.cov(kind, rowvar=False) for kind in kinds) / 2
    deviation = np.sqrt(scatter.diagonal()) + DEVIATION_EPS
    means = [kind.mean(0) / deviation for kind in kinds]
    correlation = scatter / np.outer(deviation, deviation)
    regular = correlation + SHRINKAGE * np.eye(len(correlation))
    direction = np.linalg.solve(regular, means[0] - means[1])
    middle = float(direction @ (means[0] + means[1]) / 2)
    return (direction / deviation).astype(np.float32), middle


def steepest(logits: np.ndarray) -> float:
    """The level at which log-odds (h, w) float32 fall fastest: where a defect ends, they leave it
    at once. It is the mean of all levels, weighted by a power of the mean slope of the pixels at
    most half a step from them, so that of two equally steep ones none is left out; 0 without any.
    """
    slope = cv2.magnitude(*(cv2.Sobel(logits, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))))
    place = np.round((logits - LEVELS[0]) / (LEVELS[1] - LEVELS[0])).astype(np.int64)
    place = place.clip(-1, len(LEVELS)).ravel() + 1  # below all levels 0, above all the last
    count = np.bincount(place, minlength=len(LEVELS) + 2)
    total = np.bincount(place, slope.ravel(), minlength=len(LEVELS) + 2)
    inside = count[::-1].cumsum()[::-1]
    is_border = (count[1:-1] >= FEWEST) & (inside[2:] >= FEWEST)
    mean = np.where(is_border, total[1:-1] / count[1:-1].clip(min=1), 0)
    return float(np.average(LEVELS, weights=(mean / mean.max()) ** POWER)) if mean.any() else 0.0


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Of probabilities (...,) float32."""
    probability = np.clip(probability, LEAST, 1 - LEAST)
    return np.log(probability / (1 - probability))


def enlarged(values: np.ndarray, size: tuple[int, int], top: int, bottom: int) -> np.ndarray:
    """Rows top to bottom of values (h', w') float32 at a larger size (h, w), bilinear."""
    if values.shape == size:
        return values[top:bottom]
    spans = (np.arange(top, bottom), np.arange(size[1]))
    at = [(s + 0.5) * n / m - 0.5 for s, n, m in zip(spans, values.shape, size, strict=True)]
    low = [a.clip(0, n - 1).astype(int) for a, n in zip(at, values.shape, strict=True)]
    high = [(i + 1).clip(max=n - 1) for i, n in zip(low, values.shape, strict=True)]
    part = [(a - i).clip(0, 1).astype(np.float32) for a, i in zip(at, low, strict=True)]
    across = values[low[0]] * (1 - part[0][:, None]) + values[high[0]] * part[0][:, None]
    return across[:, low[1]] * (1 - part[1]) + across[:, high[1]] * part[1]
