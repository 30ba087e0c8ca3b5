"""Scores that follow the pixels of the image: a patch token is 8 or 14 input pixels wide, a scratch
perhaps two.

Which pixels are defect, and at which level of the score its border lies, the query tells by itself
(transductive, as self-support): another light or shade than that of the supports does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import cv2
import numpy as np

from datasets.large_images import ImageStrips, shrunk
from utils.large_arrays import let_go

LONGEST = 2048  # pixels, side of the image at which the addition is found
LEAST_TOKEN = 2.0  # pixels there; smaller tokens follow the image by themselves
REACH = 2.0  # tokens around what is found, within which pixels are told apart
CLEARLY = 0.5  # log-odds below 0 of normal pixels
MOST_EVIDENCE, MOST_LEVEL = 2.0, 1.0  # log-odds, at most, of either change
SCALES, SURROUNDINGS = (1.0, 2.5), 3.0  # Gaussians, pixels; side of the mean, tokens
GRAINS, LEAST_GRAIN = (0.125, 0.25), 0.5  # Gaussians, tokens; lightness added to deviations
NEIGHBOURS, PASSES = (0.125, 0.25, 0.5), 4  # tokens, steps to neighbours in eight directions
ALIKE, LEAST_CONTRAST = 0.3, 0.5  # of the local contrast; added to it, CIELAB
BLURRED = 4  # pixels, as far as the finer Gaussian reaches
CERTAIN = 3.0  # log-odds, either way; more is not spread to neighbours
SPECK = 0.25  # area in tokens; a smaller region is noise of the colours
FAR = 2.5  # log-odds below 0, from which on pixels are normal whatever they look like
WIDEST = 5.0  # tokens, at most, from a pixel to what its features are of
WIDE = 1.5  # tokens, radius of a circle within a region whose border is cut anew
CUT_TOKEN = 4.0  # pixels, side of a token at most where it is cut: that takes 0.03 s, not 40
SURE, ROUNDS = 1.5, 2  # log-odds, either way, that a cut leaves as they are; of fitting and cutting
BROAD, GENEROUS = 3.0, 0.15  # tokens: radius as above; offset of masks, see `offset_of_masks`
BLUR, HIGHEST = 0.7, 3.0  # tokens, log-odds: what is found where a mask is taken for it
PEAK = 0.75  # log-odds that a region reaches somewhere, or half of the highest, if that is less
LEVELS, POWER = np.arange(-1.5, 2.51, 0.25), 8  # log-odds; of the slope as a weight
FEWEST, SAMPLE = 10, 4000  # pixels of a border; of each kind, for what tells them apart
SHRINKAGE, DEVIATION_EPS = 0.1, 0.05  # added to correlations and standard deviations
LEAST = 1e-6  # probability, so that log-odds are finite
ROWS = 64  # of an image, worked on at once
DIRECTIONS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


class Seen(NamedTuple):
    """An answer beside its image, both about as large as the network sees them."""

    logits: np.ndarray  # (h, w) float32 log-odds, less those of the threshold
    image: np.ndarray  # (h, w, 3) uint8 RGB
    token: float  # side, pixels
    step: int  # by which the answer was shrunk


def as_seen(
    score: np.ndarray, image: ImageStrips, *, threshold: float, window: int, image_size: int,
    stride: int,
) -> Seen | None:  # fmt: skip
    """Scores (h, w) float32, probabilities, as the network sees their image, at most LONGEST; None
    where no pixel is over the threshold, or tokens are so small that scores follow the pixels.

    Args:
        window: side of the windows in which it was seen, native pixels; 0: as a whole.
        image_size, stride: sides of the network input and of a patch token in it, pixels.
    """
    longest = max(score.shape)
    window = min(window or longest, longest)
    step = max(round(window / image_size), -(-longest // LONGEST), 1)
    side = -(-longest // step)
    step = -(-longest // side)  # of a thumbnail of this side
    token = window * stride / image_size / step
    if token < LEAST_TOKEN:
        return None
    small = shrunk(lambda top, bottom: score[top:bottom], score.shape, step)
    logits = log_odds(small) - log_odds(np.float32(threshold))
    return Seen(logits, image.thumbnail(side), token, step) if (logits > 0).any() else None


def refine(
    label: np.ndarray, score: np.ndarray, seen: Seen, threshold: float,
    probe: Callable[[np.ndarray], np.ndarray] | None = None, border_offset: float = 0.0,
) -> None:  # fmt: skip
    """Refine in place scores (h, w) float32, probabilities, and labels (h, w) uint8 {0, 1}. What to
    add to log-odds is found on the smaller `seen` and brought back to the image.

    Args:
        probe: corrects log-odds by `pixel_features`, (N, C) float32 to (N,) float32.
        border_offset: of masks, see `offset_of_masks`.
    """
    logits, image, token, _ = seen
    added = addition(logits, image, token)
    if probe is not None:
        pixels, features = pixel_features(logits, added, image, token)
        found = logits + added > 0
        added.ravel()[pixels] += probe(features)
        added = without_doubtful(logits, added, token, found)
    added = cut_wide(logits + added, image, token, border_offset) - logits
    added = without_doubtful(logits, added, token)
    for top in range(0, len(score), ROWS):
        rows = np.s_[top : top + ROWS]
        more = enlarged(added, score.shape, top, top + len(score[rows]))
        score[rows] = 1 / (1 + np.exp(-log_odds(score[rows]) - more))
        label[rows] = score[rows] > threshold
        let_go(score, label)


def addition(logits: np.ndarray, image: np.ndarray, token: float) -> np.ndarray:
    """What to add to log-odds (h, w) float32 of the pixels of an image (h, w, 3) uint8 RGB, by
    tokens of a side in pixels: (h, w) float32.

    Pixels within REACH of those with positive log-odds get evidence by how the latter and clearly
    normal ones near them look, and go along with their neighbours, see `follow_neighbours`. Then 0
    moves to the level of `steepest`. At last doubtful regions are left out.
    """
    added, found = np.zeros_like(logits), logits > 0
    near = distance_to(found) <= REACH * token
    box = box_around(near)
    normal = near[box] & (logits[box] < -CLEARLY)
    if found.sum() >= 2 * FEWEST and normal.sum() >= FEWEST:
        evidence = likelihood_ratio(relative_looks(image[box], token), found[box], normal)
        added[box] = evidence.clip(-MOST_EVIDENCE, MOST_EVIDENCE) * near[box]
    refined = logits + added
    border = near & (distance_to(refined <= 0) <= REACH * token)
    added += follow_neighbours(refined, image, border, token) - refined
    width = round(token / 2) | 1
    level = steepest(cv2.blur(logits + added, (width, width)))
    added -= np.float32(np.clip(level, -MOST_LEVEL, MOST_LEVEL))
    # what is certain is as certain as before where it is still on its side
    kept = border & (found == (logits + added > 0))
    added += kept * (logits - logits.clip(-CERTAIN, CERTAIN))
    return without_doubtful(logits, added, token)


def follow_neighbours(
    logits: np.ndarray, image: np.ndarray, border: np.ndarray, token: float
) -> np.ndarray:
    """Log-odds (h, w) float32 of an image (h, w, 3) uint8 RGB, in which those of the pixels of
    `border`, (h, w) bool, are the means of their neighbours', by how alike the colours are.

    Pixel-adaptive refinement (Araslanov & Roth 2020, *Single-Stage Semantic Segmentation from Image
    Labels*): PASSES times a pixel takes the mean of those NEIGHBOURS away from it in eight
    directions, weighted by exp(-d^2 / 2 s^2) of the distance d of smoothed colours, where s is
    ALIKE of the local contrast, the root mean square of d. Log-odds are CERTAIN at most.
    """
    followed = logits.copy()
    if not border.any():
        return followed
    steps = [max(round(step * token), 1) for step in NEIGHBOURS]
    pad = max(steps)
    box = box_around(border, pad + BLURRED)

    def padded(values: np.ndarray) -> np.ndarray:
        return cv2.copyMakeBorder(values, *(pad,) * 4, cv2.BORDER_REPLICATE)

    colours = padded(cv2.GaussianBlur(lab_colours(image[box]), (0, 0), SCALES[0]))
    width = colours.shape[1]
    at = np.flatnonzero(np.pad(border[box], pad))
    offsets = [(dy * width + dx) * step for step in steps for dy, dx in DIRECTIONS]
    weights = np.zeros((len(offsets), len(at)), np.float32)
    for channel in cv2.split(colours):
        values = channel.ravel()
        for distance, offset in zip(weights, offsets, strict=True):
            distance += (values[at + offset] - values[at]) ** 2 / colours.shape[2]
    scale = ALIKE * (np.sqrt(weights.mean(0)) + LEAST_CONTRAST)
    weights *= -0.5 / scale**2
    np.exp(weights, out=weights)
    weights /= weights.sum(0) + LEAST
    values = logits[box].clip(-CERTAIN, CERTAIN)
    for _ in range(PASSES):
        flat = padded(values).ravel()
        values[border[box]] = sum(w * flat[at + o] for w, o in zip(weights, offsets, strict=True))
    followed[border] = values[border[box]]
    return followed


def without_doubtful(
    logits: np.ndarray, added: np.ndarray, token: float, found: np.ndarray | None = None
) -> np.ndarray:
    """What to add to log-odds, both (h, w) float32, so that regions which with `added` are smaller
    than SPECK, or nowhere as high as PEAK, are clearly normal; with `found`, (h, w) bool, also
    those without a pixel that was found before."""
    refined = logits + added
    positive = (refined > 0).astype(np.uint8)
    count, regions = cv2.connectedComponents(positive, connectivity=8)
    is_speck = np.bincount(regions.ravel(), minlength=count) < SPECK * token**2
    highest = np.zeros(count, np.float32)
    np.maximum.at(highest, regions.ravel(), refined.ravel())
    highest[is_speck] = 0
    doubtful = is_speck | (highest < min(PEAK, highest.max() / 2))
    if found is not None:
        doubtful |= np.bincount(regions[found], minlength=count) == 0
    return np.where(doubtful[regions] & (positive > 0), -CLEARLY - logits, added)


def cut_wide(
    refined: np.ndarray, image: np.ndarray, token: float, offset: float = 0.0
) -> np.ndarray:
    """Log-odds (h, w) float32 of pixels of an image (h, w, 3) uint8 RGB, with borders of wide
    regions where colours change: what is wider than its tokens shows what it looks like.

    GrabCut (Rother et al. 2004) on a copy in which a token is CUT_TOKEN wide. It moves borders of
    regions in which a circle of WIDE fits, by REACH at most and over no pixel whose log-odds are
    over SURE either way, if the mean slope of the colours there gets higher. Where BROAD fits, too,
    they move on outwards by the `offset`, tokens; elsewhere an offset over GENEROUS keeps them from
    moving inwards. Pixels that change sides get log-odds of CLEARLY at most.
    """
    size, shrink = refined.shape[::-1], min(CUT_TOKEN / token, 1)
    small_size = [max(round(side * shrink), 1) for side in size]
    small, colours = (cv2.resize(a, small_size, interpolation=cv2.INTER_AREA)
                      for a in (refined, image))  # fmt: skip
    found, token = small > 0, token * shrink
    count, regions = cv2.connectedComponents(found.astype(np.uint8), connectivity=8)
    radius = np.zeros(count, np.float32)
    np.maximum.at(radius, regions.ravel(), distance_to(~found).ravel())
    wide = found & (radius >= WIDE * token)[regions]
    if not wide.any():
        return refined
    near = distance_to(found) <= REACH * token
    box = box_around(near, int(2 * REACH * token))
    if (~found[box]).sum() < FEWEST:
        return refined
    kinds = np.full(found.shape, cv2.GC_BGD, np.uint8)
    kinds[near & (small >= -SURE)] = cv2.GC_PR_BGD
    kinds[found], kinds[small > SURE] = cv2.GC_PR_FGD, cv2.GC_FGD
    inner = [np.ascontiguousarray(a[box]) for a in (colours, kinds)]
    cv2.setRNGSeed(0)  # it draws the first means of the colours
    cv2.grabCut(*inner, None, None, None, ROUNDS, cv2.GC_INIT_WITH_MASK)
    cut = np.zeros_like(found)
    cut[box] = (inner[1] == cv2.GC_FGD) | (inner[1] == cv2.GC_PR_FGD)

    zone = (distance_to(wide) <= REACH * token) & (wide | ~found)
    count, zones = cv2.connectedComponents(zone.astype(np.uint8), connectivity=8)
    slope = colour_slope(colours)

    def mean_slope(mask: np.ndarray) -> np.ndarray:
        border = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
        total = np.bincount(zones[border], slope[border], minlength=count)
        return total / np.bincount(zones[border], minlength=count).clip(min=1)

    better = mean_slope(cut) > mean_slope(found)
    broad = distance_to(found & (radius >= BROAD * token)[regions]) <= REACH * token
    outwards = cut | found if offset > GENEROUS else cut
    cut = np.where(broad, signed_distance(cut) <= offset * token, outwards)
    cut = np.where(zone & better[zones], cut, found)
    share = cv2.resize(cut.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    # and one pixel of the copy around, where its border and that of the image would part
    other = cv2.dilate((cut != found).astype(np.uint8), np.ones((3, 3)))
    changed = cv2.resize(other, size, interpolation=cv2.INTER_NEAREST) > 0
    changed &= (share > 0.5) != (refined > 0)
    return np.where(changed, CLEARLY * (2 * share - 1), refined)


def offset_of_masks(views: Iterable[tuple[np.ndarray, np.ndarray]], token: float) -> float:
    """How far outside of the borders of colours the masks of supports lie, tokens of a side in
    pixels: the mean over the borders that `cut_wide` moves if masks, blurred, are what was found.

    Some people mark what they see and some a good deal around it; 0 where nothing moves.

    Args:
        views: images (h, w, 3) uint8 RGB with masks (h, w) uint8 {0, 1}.
    """
    offsets = []
    for image, mask in views:
        share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), BLUR * token)
        logits = HIGHEST * (2 * share - 1)
        found, cut = logits > 0, cut_wide(logits, image, token) > 0
        count, regions = cv2.connectedComponents((found | cut).astype(np.uint8), connectivity=8)
        moved = np.bincount(regions[cut != found], minlength=count) > 0
        border = found & moved[regions] & (cv2.erode(found.astype(np.uint8), np.ones((3, 3))) == 0)
        offsets.append(signed_distance(cut)[border] + 0.5)  # a pixel at the border ends there
    values = np.concatenate(offsets) if offsets else np.zeros(0)
    return float(values.mean() / token) if values.size else 0.0


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Of the middle of each pixel to the border of a mask (h, w) bool, pixels; below 0 within."""
    return np.where(mask, 0.5 - distance_to(~mask), distance_to(mask) - 0.5)


def colour_slope(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 RGB to (h, w) float32: slope in CIELAB."""
    lab = lab_colours(image)
    slopes = (cv2.Sobel(lab, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1)))
    return np.sqrt(sum((slope**2).sum(-1) for slope in slopes))


def distance_to(mask: np.ndarray) -> np.ndarray:
    """Of each pixel to a mask (h, w) bool, pixels; what is large where the mask is empty."""
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)


def pixel_features(
    logits: np.ndarray, added: np.ndarray, image: np.ndarray, token: float
) -> tuple[np.ndarray, np.ndarray]:
    """What a pixel and its surroundings look like, for all pixels whose log-odds are over -FAR:
    their places in the flat image (N,) and features (N, 28) float32.

    Of log-odds and refined log-odds their values, means, extremes and slope, and the highest of the
    image; of colours `relative_looks`, the values less the mean of wider surroundings, and edges.

    Args:
        logits, added: (h, w) float32, `added` by `addition`.
        image: (h, w, 3) uint8 RGB.
        token: side, pixels; all surroundings are measured in tokens.
    """
    likely = logits > -FAR
    box = box_around(likely, int(WIDEST * token) + 1)
    pixels, highest = np.flatnonzero(likely), logits.max()
    likely, logits, image = likely[box], logits[box], image[box]
    refined = logits + added[box]

    def around(tokens: float) -> np.ndarray:
        return np.ones((max(int(tokens * token), 1) | 1,) * 2, np.uint8)

    def mean(values: np.ndarray, tokens: float) -> np.ndarray:
        return cv2.blur(values, around(tokens).shape)

    def slope(values: np.ndarray, sigma: float) -> np.ndarray:
        smooth = cv2.GaussianBlur(values, (0, 0), sigma)
        return cv2.magnitude(*(cv2.Sobel(smooth, cv2.CV_32F, *axis) for axis in ((1, 0), (0, 1))))

    lab, looks = lab_colours(image), relative_looks(image, token)
    edges = slope(lab[..., 0], 1.0)
    maps = [logits, refined, logits - highest, np.full_like(logits, highest)]
    maps += [cv2.dilate(logits, around(2)), mean(logits, 2), mean(logits, 6)]
    maps += [bound(refined, around(t)) for t in (0.3, 0.8) for bound in (cv2.dilate, cv2.erode)]
    maps += [slope(refined, max(token / 4, 0.5)) * (token / 8)]
    maps += [*np.moveaxis(looks, -1, 0), *np.moveaxis(lab - mean(lab, 8), -1, 0)]
    maps += [edges, cv2.dilate(edges, around(0.4))]
    return pixels, np.stack([values[likely] for values in maps], axis=1)


def box_around(mask: np.ndarray, margin: int = 0) -> tuple[slice, slice]:
    """The box that holds all of a mask (h, w) bool, and a margin, pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return tuple(slice(max(i[0] - margin, 0), i[-1] + 1 + margin) for i in (rows, columns))


def relative_looks(image: np.ndarray, token: float) -> np.ndarray:
    """What pixels look like beside the mean of their surroundings, image (h, w, 3) uint8 RGB to
    (h, w, 11) float32: colours in CIELAB at several scales, and how grainy they are, the logarithm
    of the deviation of lightness within Gaussians of GRAINS."""
    colours = lab_colours(image)
    layers = [*cv2.split(colours)]
    for sigma in SCALES:
        layers += cv2.split(cv2.GaussianBlur(colours, (0, 0), sigma))
    for sigma in GRAINS:
        light = layers[0]
        mean, square = (cv2.GaussianBlur(a, (0, 0), sigma * token) for a in (light, light**2))
        layers.append(np.log(np.sqrt((square - mean**2).clip(min=0)) + LEAST_GRAIN))
    side = int(SURROUNDINGS * token) | 1
    return np.stack([layer - cv2.blur(layer, (side, side)) for layer in layers], axis=-1)


def lab_colours(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 RGB to (h, w, 3) float32 CIELAB."""
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def likelihood_ratio(looks: np.ndarray, defect: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Log-odds (h, w) float32 of looks (h, w, C) float32 by the normal distributions of two kinds
    of pixels, (h, w) bool: regularised discriminant analysis (Friedman 1989), covariances half of
    the kind and half the mean of both."""
    kinds = [looks[kind] for kind in (defect, normal)]
    kinds = [kind[:: -(-len(kind) // SAMPLE)].astype(np.float64) for kind in kinds]
    scatters = [np.cov(kind, rowvar=False) for kind in kinds]
    common = sum(scatters) / 2
    deviation = np.sqrt(common.diagonal()) + DEVIATION_EPS
    odds = np.zeros(looks.shape[:-1], np.float32)
    for sign, kind, scatter in zip((-0.5, 0.5), kinds, scatters, strict=True):
        correlation = (scatter + common) / 2 / np.outer(deviation, deviation)
        correlation += SHRINKAGE * np.eye(len(correlation))
        inverse = np.linalg.inv(correlation) / np.outer(deviation, deviation)
        mean, inverse = kind.mean(0).astype(np.float32), inverse.astype(np.float32)
        odds += np.float32(sign * np.linalg.slogdet(correlation)[1])
        for top in range(0, len(looks), ROWS):
            apart = looks[top : top + ROWS] - mean
            odds[top : top + ROWS] += np.float32(sign) * ((apart @ inverse) * apart).sum(-1)
    return odds


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
