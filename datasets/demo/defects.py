"""Defects of the demo products, each drawn in a small window with its exact mask.

Blobs are pit, stain, dent, chip, bubble; strokes are scratch, crack, burr, weave. A `Look` is what
all defects of one category share; position, direction, size and contrast are drawn anew for each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np

from datasets.demo.surfaces import Canvas, blur, smoothstep

REACH = 8  # pixels past its mask within which a defect may still change the picture
SCALE = 4  # strokes are drawn this many times larger, then averaged: smooth borders
STROKES = ("scratch", "crack", "burr", "weave")

# A defect in its window: its mask, the cover 0..1 by `Look.tone`, and the shade added to the tone.
Patch = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Look:
    """Appearance of one defect category: lengths in pixels, tones 0..1 (BGR or grey), degrees."""

    name: str
    kind: str
    tone: tuple[float, ...]
    strength: float  # share of `tone` in the middle of the defect
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


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outer contours of at least three points of a {0, 1} mask: int32 (n, 1, 2), x before y."""
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour for contour in contours if len(contour) >= 3]


def clean_mask(mask: np.ndarray) -> np.ndarray:
    """The mask that its outlines give back: without holes and fragments of one or two points."""
    filled = np.zeros(mask.shape, np.uint8)
    for contour in outlines(mask.astype(np.uint8)):
        cv2.fillPoly(filled, [contour], 1)
    return filled


def _ellipse(c: Canvas, look: Look, middle: tuple[float, float], radius: float) -> np.ndarray:
    """Distance from the middle of one ragged ellipse in units of its outline (1 on it)."""
    u, v = c.grid(c.angle, middle)
    stretch = math.sqrt(look.aspect * c.rng.uniform(0.8, 1.25))
    distance, theta = cv2.cartToPolar(u / stretch, v * stretch)
    outline = np.ones_like(distance)
    for k in range(2, 6):
        wave = 1.4 * look.ragged * c.rng.normal(0, 1) / k
        outline += wave * np.cos(k * theta + c.rng.uniform(0, 6.3))
    field = distance / (np.float32(radius) * np.maximum(outline, 0.45))
    cell = max(2.0, 0.45 * radius)
    frayed = c.noise(cell) + 0.5 * c.noise(max(2.0, cell / 2.5))
    return field + 0.4 * look.ragged * frayed * np.minimum(field, 1)


def _blob(c: Canvas, look: Look, area: float) -> Patch:
    """One blob or a cluster of them, which together cover about `area`."""
    rng, most, count = c.rng, look.cluster, 1
    if most > 1:
        count = int(rng.integers(max(2, most // 2), most + 1))
    shares = rng.uniform(0.4, 1.6, count)
    radii = np.sqrt(area * shares / shares.sum() / math.pi)
    spread = 1.6 * math.sqrt(area / math.pi) if count > 1 else 0.0
    half = math.ceil(1.7 * radii.max() * math.sqrt(look.aspect) + 1.5 * spread) + REACH
    c = replace(c, h=2 * half + 1, w=2 * half + 1, cx=half, cy=half)
    field = np.full((c.h, c.w), 9, np.float32)  # distance in units of the outline
    for radius in radii:
        middle = np.clip(rng.normal(0, 0.6, 2), -1.4, 1.4) * spread
        field = np.minimum(field, _ellipse(c, look, middle, radius))
    gx, gy = cv2.Sobel(field, cv2.CV_32F, 1, 0), cv2.Sobel(field, cv2.CV_32F, 0, 1)
    # -1..1: how far the outward direction of the blob's wall points along the light
    slope = (gx * c.light[0] + gy * c.light[1]) / (np.sqrt(gx * gx + gy * gy) + 1e-4)

    def ridge(distance: np.ndarray, at: float, breadth: float) -> np.ndarray:
        return np.exp(-np.square((distance - at) / breadth))

    strength, relief, lit = look.strength, look.relief, look.relief * slope
    match look.kind:
        case "pit":
            cover = strength * smoothstep(1.08, 0.7, field)
            return field < 1.05, cover, lit * ridge(field, 1, 0.22)
        case "stain":
            cloud = field + 0.16 * c.noise(max(4, c.h / 7))
            patchy = 1 + 0.18 * c.noise(max(3, c.h / 12))
            body = 0.75 * smoothstep(1.12, 0.75, cloud) + 0.25 * ridge(cloud, 0.9, 0.12)
            return cloud < 1, strength * (body * patchy), relief * ridge(cloud, 0.95, 0.1)
        case "dent":
            wall = slope * field * np.exp(-1.6 * np.square(field)) * 3
            return field < 1.1, strength * smoothstep(1.1, 0.1, field), relief * wall
        case "chip":
            facets = np.round(1.3 * c.noise(max(4, c.h / 9))) * 0.1
            inside, rough = smoothstep(1.04, 0.92, field), facets + 0.05 * c.noise(2)
            return field < 1, strength * inside, inside * rough + lit * ridge(field, 0.95, 0.14)
        case "bubble":
            dome = -lit * smoothstep(0.1, 0.8, field) * smoothstep(1.12, 0.9, field)
            glint = relief * 1.2 * ridge(field, 0, 0.3)
            return field < 1.08, strength * ridge(field, 0.98, 0.12), dome + glint
    raise ValueError(f"unknown kind of defect {look.kind!r}")


def _stroke(c: Canvas, look: Look, area: float) -> Patch:
    """A line with its branches, lit from the side, which covers about `area`."""
    rng = c.rng
    width = look.width * rng.uniform(0.85, 1.2)
    length = min(max(area / width, 4 * width), look.longest)
    width = min(max(width, area / length), 2.5 * look.width)

    def wander(start: np.ndarray, length: float, angle: float) -> np.ndarray:
        n = max(6, min(48, round(length / 5)))
        headings = angle + np.cumsum(rng.normal(0, look.bend, n)) + rng.normal(0, look.jag, n)
        steps = np.stack([np.cos(headings), np.sin(headings)], -1) * length / n
        return start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)])

    branches = int(rng.integers(1, 4)) if look.kind == "crack" else 0
    stem = wander(np.zeros(2), length / (1 + 0.3 * branches), c.angle)
    paths = [stem]
    for _ in range(branches):
        start = stem[int(rng.integers(len(stem) // 4, len(stem) - 1))]
        side = c.angle + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        paths.append(wander(start, 0.3 * length, side))
    points = np.concatenate(paths)
    low = points.min(0) - width - REACH
    w, h = np.ceil(points.max(0) + width + REACH - low).astype(int).tolist()
    large = np.zeros((h * SCALE, w * SCALE), np.uint8)
    for path in paths:
        t = np.linspace(0.12, 0.95, len(path) - 1)
        swell = np.ones_like(t)
        if look.kind != "weave":
            swell = np.sqrt(np.sin(t * math.pi)) * rng.uniform(0.8, 1.2, len(t))
        pixels = np.round((path - low) * SCALE).astype(int).tolist()
        for (start, end), s in zip(pairwise(pixels), swell, strict=True):
            thickness = max(round(1.6 * SCALE), round(float(width * s * SCALE)))
            cv2.line(large, start, end, 255, thickness)
    drawn = cv2.resize(large, (w, h), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    c = replace(c, h=h, w=w, cx=0, cy=0)
    fade = np.clip(0.85 + 0.2 * c.noise(24), 0.45, 1)
    flanks = c.shade(blur(drawn, max(0.8, width / 3)), look.relief * max(2.0, width))
    if look.kind == "weave":
        x, y = c.grid()
        flanks += 0.5 * look.relief * drawn * np.sin((x + y) * (math.pi / look.width))
    return drawn > 0.3, look.strength * drawn * fade, flanks * fade


def draw_defect(c: Canvas, look: Look, area: float) -> Patch:
    """One defect of about `area` pixels along the canvas's angle, with REACH pixels around it.

    Returns mask, uint8 {0, 1}, cover and shade, float32, of one size (h, w).
    """
    contrast = c.rng.uniform(0.8, 1.15)
    mask, cover, shade = (_stroke if look.kind in STROKES else _blob)(c, look, area)
    cover = np.clip(np.clip(cover, 0, 1) * contrast, 0, 1).astype(np.float32)
    return clean_mask(mask), cover, (shade * contrast).astype(np.float32)
