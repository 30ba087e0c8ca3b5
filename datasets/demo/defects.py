"""Defects of the demo products, each a small patch: what it covers, how it changes the picture, and its exact mask.

Two geometries carry every kind: blobs (pits, stains, dents, chips, inclusions, bubbles) and strokes (scratches, cracks,
burrs, weave faults). A `Look` holds what stays the same for one defect category of one product; position, direction,
size and contrast are drawn anew for every instance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from datasets.demo.noise import Light, blur, shade, smoothstep, value_noise

REACH = 8  # pixels past its mask within which a defect may still change the picture
SCALE = 4  # strokes are drawn this many times larger, then averaged down: smooth borders and fractional widths


@dataclass(frozen=True)
class Look:
    """Appearance of one defect category. Lengths in pixels, tones 0..1 (BGR or one channel), angles in degrees."""

    name: str
    kind: str
    tone: tuple[float, ...] = (0.1,)
    strength: float = 0.8  # share of `tone` in the middle of the defect
    relief: float = 0.0  # brightness of the lit and the shadowed flank
    width: float = 3.0  # strokes: line width
    bend: float = 0.05  # strokes: change of direction per step, radians
    jag: float = 0.0  # strokes: zigzag about that direction, radians
    longest: float = 620.0  # strokes: largest length
    aspect: float = 1.0  # blobs: length / breadth
    ragged: float = 0.15  # blobs: deviation of the outline from an ellipse
    cluster: int = 1  # blobs: how many make one defect
    instances: int = 1  # most defects of this category in one picture
    angles: tuple[float, ...] = ()  # fixed directions relative to the part; empty: any
    at_edge: bool = False  # sits on the part's border


@dataclass
class Patch:
    """One defect in its own window: mask uint8 {0, 1}, cover 0..1 of `Look.tone`, shade added to the tone."""

    mask: np.ndarray
    cover: np.ndarray
    shade: np.ndarray


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """Fill holes and drop fragments whose outline has under three points, so that polygons give back the mask."""
    filled = np.zeros(mask.shape, np.uint8)
    for contour in outlines(mask):
        cv2.fillPoly(filled, [contour], 1)
    return filled


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outer contours of at least three points of a {0, 1} mask: int32 points, x before y."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour for contour in contours if len(contour) >= 3]


def _blob_field(rng: np.random.Generator, look: Look, area: float, angle: float) -> np.ndarray:
    """Distance from the blob's middle in units of its outline (1 on it), float32, for a cluster the nearest blob's."""
    count = (
        1 if look.cluster == 1 else int(rng.integers(max(2, look.cluster // 2), look.cluster + 1))
    )
    shares = rng.uniform(0.4, 1.6, count)
    radii = np.sqrt(area * shares / shares.sum() / math.pi)
    spread = 0.0 if count == 1 else 1.6 * math.sqrt(area / math.pi)
    half = math.ceil(1.7 * radii.max() * math.sqrt(look.aspect) + 1.5 * spread) + REACH
    axis = np.arange(-half, half + 1, dtype=np.float32)
    field = np.full((len(axis), len(axis)), 9, np.float32)
    for radius in radii:
        dx, dy = np.clip(rng.normal(0, 0.6, 2), -1.4, 1.4) * spread
        field = np.minimum(field, _ellipse(rng, look, axis, (dx, dy), radius, angle))
    return field


def _ellipse(
    rng: np.random.Generator,
    look: Look,
    axis: np.ndarray,
    middle: tuple[float, float],
    radius: float,
    angle: float,
) -> np.ndarray:
    x, y = axis[None] - np.float32(middle[0]), axis[:, None] - np.float32(middle[1])
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    stretch = math.sqrt(look.aspect * rng.uniform(0.8, 1.25))
    u, v = (c * x + s * y) / np.float32(stretch), (c * y - s * x) * np.float32(stretch)
    distance, theta = cv2.cartToPolar(u, v)
    outline = np.ones_like(distance)
    for k in range(2, 6):
        outline += np.float32(1.4 * look.ragged * rng.normal(0, 1) / k) * np.cos(
            k * theta + rng.uniform(0, 6.3)
        )
    field = distance / (np.float32(radius) * np.maximum(outline, 0.45))
    cell = max(2.0, 0.45 * radius)
    frayed = value_noise(rng, *field.shape, cell) + 0.5 * value_noise(
        rng, *field.shape, max(2.0, cell / 2.5)
    )
    return field + np.float32(0.4 * look.ragged) * frayed * np.minimum(field, 1)


def _slope(field: np.ndarray, light: Light) -> np.ndarray:
    """-1..1: how far the outward direction of a blob's wall points along the light."""
    gx, gy = cv2.Sobel(field, cv2.CV_32F, 1, 0), cv2.Sobel(field, cv2.CV_32F, 0, 1)
    return (gx * light[0] + gy * light[1]) / (np.sqrt(gx * gx + gy * gy) + 1e-4)


def _ridge(field: np.ndarray, at: float, breadth: float) -> np.ndarray:
    return np.exp(-np.square((field - np.float32(at)) / np.float32(breadth)))


def _pit(rng: np.random.Generator, look: Look, field: np.ndarray, light: Light) -> Patch:
    rim = look.relief * _slope(field, light) * _ridge(field, 1.0, 0.22)
    return Patch(field < 1.05, look.strength * smoothstep(1.08, 0.7, field), rim)


def _stain(rng: np.random.Generator, look: Look, field: np.ndarray, light: Light) -> Patch:
    cloud = field + 0.16 * value_noise(rng, *field.shape, max(4, field.shape[0] / 7))
    patchy = 1 + 0.18 * value_noise(rng, *field.shape, max(3, field.shape[0] / 12))
    body = (0.75 * smoothstep(1.12, 0.75, cloud) + 0.25 * _ridge(cloud, 0.9, 0.12)) * patchy
    return Patch(
        cloud < 1.0, np.clip(look.strength * body, 0, 1), look.relief * _ridge(cloud, 0.95, 0.1)
    )


def _dent(rng: np.random.Generator, look: Look, field: np.ndarray, light: Light) -> Patch:
    wall = _slope(field, light) * field * np.exp(-1.6 * np.square(field)) * 3.0
    return Patch(field < 1.1, look.strength * smoothstep(1.1, 0.1, field), look.relief * wall)


def _chip(rng: np.random.Generator, look: Look, field: np.ndarray, light: Light) -> Patch:
    facets = np.round(1.3 * value_noise(rng, *field.shape, max(4, field.shape[0] / 9))) * 0.1
    rough = facets + 0.05 * value_noise(rng, *field.shape, 2)
    inside = smoothstep(1.04, 0.92, field)
    rim = look.relief * _slope(field, light) * _ridge(field, 0.95, 0.14)
    return Patch(field < 1.0, look.strength * inside, inside * rough + rim)


def _bubble(rng: np.random.Generator, look: Look, field: np.ndarray, light: Light) -> Patch:
    dome = (
        -look.relief
        * _slope(field, light)
        * smoothstep(0.1, 0.8, field)
        * smoothstep(1.12, 0.9, field)
    )
    outline = look.strength * _ridge(field, 0.98, 0.12)
    return Patch(field < 1.08, outline, dome + look.relief * 1.2 * _ridge(field, 0.0, 0.3))


BLOBS = {"pit": _pit, "stain": _stain, "dent": _dent, "chip": _chip, "bubble": _bubble}


def _path(
    rng: np.random.Generator, length: float, angle: float, bend: float, jag: float
) -> np.ndarray:
    """Points (n, 2) of a wandering line that starts at the origin."""
    n = max(6, min(48, round(length / 5)))
    headings = angle + np.cumsum(rng.normal(0, bend, n)) + rng.normal(0, jag, n)
    steps = np.stack([np.cos(headings), np.sin(headings)], -1) * length / n
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])


def _stroke_paths(
    rng: np.random.Generator, look: Look, area: float, angle: float
) -> tuple[list[np.ndarray], float]:
    """Centre lines, the stem first, and the line width that together cover about `area`."""
    width = look.width * rng.uniform(0.85, 1.2)
    length = min(max(area / width, 4 * width), look.longest)
    width = min(max(width, area / length), 2.5 * look.width)
    branches = int(rng.integers(1, 4)) if look.kind == "crack" else 0
    stem = _path(rng, length / (1 + 0.3 * branches), angle, look.bend, look.jag)
    paths = [stem]
    for _ in range(branches):
        k = int(rng.integers(len(stem) // 4, len(stem) - 1))
        side = angle + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        paths.append(stem[k] + _path(rng, 0.3 * length, side, look.bend, look.jag))
    return paths, width


def _draw_strokes(
    rng: np.random.Generator, paths: list[np.ndarray], width: float, even: bool
) -> np.ndarray:
    """Coverage 0..1 of the strokes in a window that holds them with REACH pixels around."""
    points = np.concatenate(paths)
    low = points.min(0) - width - REACH
    w, h = np.ceil(points.max(0) + width + REACH - low).astype(int)
    canvas = np.zeros((h * SCALE, w * SCALE), np.uint8)
    for path in paths:
        t = np.linspace(0.12, 0.95, len(path) - 1)
        swell = (
            np.ones_like(t)
            if even
            else np.sqrt(np.sin(t * math.pi)) * rng.uniform(0.8, 1.2, len(t))
        )
        pixels = np.round((path - low) * SCALE).astype(int)
        for (start, end), s in zip(pairwise(pixels), swell, strict=True):
            thick = max(round(1.6 * SCALE), round(float(width * s * SCALE)))
            cv2.line(canvas, start.tolist(), end.tolist(), 255, thick)
    return (
        cv2.resize(canvas, (int(w), int(h)), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    )


def _stroke(rng: np.random.Generator, look: Look, area: float, angle: float, light: Light) -> Patch:
    paths, width = _stroke_paths(rng, look, area, angle)
    drawn = _draw_strokes(rng, paths, width, look.kind == "weave")
    fade = np.clip(0.85 + 0.2 * value_noise(rng, *drawn.shape, 24), 0.45, 1)
    flanks = shade(blur(drawn, max(0.8, width / 3)), light, look.relief * max(2.0, width))
    cover = look.strength * drawn * fade
    if look.kind == "weave":
        axis = np.add.outer(np.arange(drawn.shape[0]), np.arange(drawn.shape[1])).astype(np.float32)
        flanks += 0.5 * look.relief * drawn * np.sin(axis * np.float32(math.pi / look.width))
    return Patch(drawn > 0.3, cover, flanks * fade)


def draw_defect(
    rng: np.random.Generator, look: Look, area: float, angle: float, light: Light
) -> Patch:
    """One defect of about `area` pixels, its long axis at `angle` radians, in a window of its own size."""
    contrast = rng.uniform(0.8, 1.15)
    if look.kind in BLOBS:
        patch = BLOBS[look.kind](rng, look, _blob_field(rng, look, area, angle), light)
    else:
        patch = _stroke(rng, look, area, angle, light)
    cover = np.clip(patch.cover * contrast, 0, 1).astype(np.float32)
    return Patch(
        clean_mask(patch.mask.astype(np.uint8)), cover, (patch.shade * contrast).astype(np.float32)
    )


def apply_defect(image: np.ndarray, patch: Patch, tone: tuple[float, ...]) -> None:
    """Draw the patch into an image window of its size (h, w, c), in place; nothing past REACH pixels of the mask."""
    distance = cv2.distanceTransform(1 - patch.mask, cv2.DIST_L2, 3)
    near = np.clip(1 - distance / np.float32(REACH), 0, 1)
    cover = (patch.cover * near)[..., None]
    image += cover * (np.asarray(tone, np.float32) - image) + (patch.shade * near)[..., None]
