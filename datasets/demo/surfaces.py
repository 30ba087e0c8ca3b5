"""Textures of the demo products: machined, cast, woven, wooden and glazed surfaces.

Every texture is a function (rng, frame, ...) -> tones, float32 (h, w) around 0.5. The frame holds the pose of the part,
so that turning marks run around the part's own centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.demo.noise import Light, blur, fractal, lookup, shade, smoothstep, turn, value_noise


@dataclass(frozen=True)
class Frame:
    """Image size, the part's centre and rotation (pixels, radians), and the light's direction."""

    h: int
    w: int
    cx: float
    cy: float
    angle: float
    light: Light

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y relative to the part's centre in image orientation, float32 (1, w) and (h, 1)."""
        x = np.arange(self.w, dtype=np.float32)[None] - np.float32(self.cx)
        y = np.arange(self.h, dtype=np.float32)[:, None] - np.float32(self.cy)
        return x, y


def _profile(rng: np.random.Generator, length: int, cell: float) -> np.ndarray:
    return fractal(rng, 1, length, cell, 3, 0.7)[0]


def turned(rng: np.random.Generator, frame: Frame, pitch: float = 5.0) -> np.ndarray:
    """Concentric tool marks with the bow-tie reflection of a lathe-turned face."""
    x, y = frame.grid()
    radius, theta = cv2.cartToPolar(*np.broadcast_arrays(x, y))
    marks = lookup(_profile(rng, 2048, pitch), radius)
    feed = np.sin(radius * np.float32(2 * np.pi / pitch))
    glint = np.cos(2 * (theta - np.float32(rng.uniform(0, np.pi))))
    tone = 0.5 + 0.09 * glint + marks * (0.045 + 0.02 * glint) + 0.02 * feed
    return tone + 0.02 * fractal(rng, frame.h, frame.w, 90)


def milled(
    rng: np.random.Generator, frame: Frame, feed: float = 14.0, cutter: float = 900.0
) -> np.ndarray:
    """Overlapping arcs of a face mill, with the fainter marks of the cutter's back edge."""
    x, y = frame.grid()
    x, y = turn(x, y, frame.angle)
    bow = np.sqrt(np.maximum(cutter**2 - np.square(y), 1))
    front, back = (x - bow) / np.float32(feed), (x + bow) / np.float32(feed)
    depth = rng.standard_normal(256, dtype=np.float32)
    saw = front - np.floor(front)
    tone = 0.52 + 0.07 * (saw - 0.5) + 0.035 * lookup(depth, front) + 0.02 * lookup(depth, back * 2)
    tone += 0.018 * lookup(_profile(rng, 2048, 3), front * feed)
    return tone + 0.03 * fractal(rng, frame.h, frame.w, 200)


def brushed(
    rng: np.random.Generator, frame: Frame, grain: float = 220.0, depth: float = 0.05
) -> np.ndarray:
    """Long parallel hairlines along x."""
    h, w = frame.h, frame.w
    fine = value_noise(rng, h, w, 1, grain) + 0.8 * value_noise(rng, h, w, 2.2, grain * 2)
    bands = value_noise(rng, h, w, 40, w) + value_noise(rng, h, w, 9, w / 2)
    return 0.55 + depth * fine + 0.012 * bands + 0.025 * fractal(rng, h, w, 300)


def honed(rng: np.random.Generator, frame: Frame, slope: float = 28.0) -> np.ndarray:
    """Cross hatch of a ground and honed face: two sets of fine lines at +-`slope` degrees."""
    h, w = frame.h, frame.w
    side = math.ceil(math.hypot(h, w))
    tone = np.full((h, w), 0.5, np.float32)
    for sign in (-1, 1):
        lines = value_noise(rng, side, side, 1.6, 160) + 0.6 * value_noise(rng, side, side, 6, 400)
        matrix = cv2.getRotationMatrix2D(
            (side / 2, side / 2), sign * slope + np.degrees(frame.angle), 1
        )
        matrix[:, 2] += (w - side) / 2, (h - side) / 2
        tone += 0.045 * cv2.warpAffine(lines, matrix, (w, h), flags=cv2.INTER_LINEAR)
    return tone + 0.03 * fractal(rng, h, w, 160)


def cast(
    rng: np.random.Generator, frame: Frame, cell: float = 9.0, depth: float = 0.16
) -> np.ndarray:
    """Granular relief of a casting: bumps of about `cell` pixels lit from the side, with a skin of uneven tone."""
    h, w = frame.h, frame.w
    height = fractal(rng, h, w, cell, 3, 0.55)
    lit = shade(height, frame.light, depth * cell / 4)
    return 0.46 + lit + 0.035 * height + 0.035 * fractal(rng, h, w, 180, 3)


def sand(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Coarse sand-cast skin: sharp grains, dark pores between them, broad waves."""
    h, w = frame.h, frame.w
    height = (
        np.abs(value_noise(rng, h, w, 7))
        + 0.5 * np.abs(value_noise(rng, h, w, 3))
        + value_noise(rng, h, w, 60)
    )
    pores = smoothstep(
        0.16, 0.0, np.abs(value_noise(rng, h, w, 11)) + np.abs(value_noise(rng, h, w, 13))
    )
    return 0.44 + shade(height, frame.light, 0.22) - 0.13 * pores + 0.04 * fractal(rng, h, w, 140)


def painted(
    rng: np.random.Generator, frame: Frame, cell: float = 15.0, depth: float = 0.22
) -> np.ndarray:
    """Orange peel of a sprayed coat: gentle smooth waves with a soft broad reflection."""
    h, w = frame.h, frame.w
    wave = shade(blur(fractal(rng, h, w, cell, 2, 0.4), 1.5), frame.light, depth)
    x, y = frame.grid()
    along = (x * np.float32(frame.light[0]) + y * np.float32(frame.light[1])) / np.float32(
        max(h, w)
    )
    gloss = np.exp(-np.square((along - np.float32(rng.uniform(-0.3, 0.3))) / 0.25))
    return 0.42 + wave * (0.8 + gloss) + 0.16 * gloss + 0.008 * value_noise(rng, h, w, 1)


def _threads(
    rng: np.random.Generator, position: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    index = np.floor(position)
    tone = rng.standard_normal(1024, dtype=np.float32)
    profile = np.sin((position - index) * np.float32(np.pi))
    return index, profile, tone[index.astype(np.int32) & 1023]


def woven(
    rng: np.random.Generator,
    frame: Frame,
    period: float = 12.0,
    repeat: int = 2,
    float_over: int = 1,
    contrast: float = 0.16,
) -> np.ndarray:
    """Fabric: a weft thread lies on top in `float_over` of `repeat` places (2, 1: plain weave; 4, 2: twill)."""
    h, w = frame.h, frame.w
    x, y = turn(*frame.grid(), frame.angle)
    wobble = 0.10 * value_noise(rng, h, w, 70)
    u, v = x / np.float32(period) + wobble, y / np.float32(period) - wobble
    (iu, across_u, tone_u), (iv, across_v, tone_v) = _threads(rng, u), _threads(rng, v)
    weft_on_top = np.mod(iu + iv, repeat) < float_over
    thread = np.where(
        weft_on_top, across_v * (0.62 + 0.38 * across_u), across_u * (0.62 + 0.38 * across_v) - 0.18
    )
    tones = np.where(weft_on_top, tone_v, tone_u)
    fuzz = value_noise(rng, h, w, 1.5) + value_noise(rng, h, w, 5)
    return 0.33 + 2 * contrast * thread - contrast + 0.15 + 0.025 * tones + 0.02 * fuzz


def mesh(
    rng: np.random.Generator, frame: Frame, period: float = 26.0, wire: float = 0.42
) -> np.ndarray:
    """Wire cloth: crossing round wires over a dark ground; `wire` is the wire's share of the period."""
    h, w = frame.h, frame.w
    x, y = turn(*frame.grid(), frame.angle)
    wobble = 0.05 * value_noise(rng, h, w, 120)
    tone = 0.10 + 0.02 * fractal(rng, h, w, 60)
    u, v = x / np.float32(period) + wobble, y / np.float32(period) + wobble
    upper = np.mod(np.floor(u) + np.floor(v), 2) < 1
    bars = []
    for along, side in ((u, v), (v, u)):
        off = (side - np.floor(side) - 0.5) / (wire / 2)
        inside = smoothstep(1.0, 0.8, np.abs(off))
        bend = np.cos((along - np.floor(along) - 0.5) * np.float32(2 * np.pi))
        bars.append(
            (inside, 0.5 + 0.28 * np.sqrt(np.maximum(1 - off * off, 0)) - 0.14 * off + 0.05 * bend)
        )
    (in_a, tone_a), (in_b, tone_b) = bars
    for inside, lit, top in ((in_a, tone_a, ~upper), (in_b, tone_b, ~upper), (in_a, tone_a, upper)):
        cover = inside if top is not upper else inside * upper
        tone = tone * (1 - cover) + (lit - 0.18) * cover
    return tone + 0.02 * value_noise(rng, h, w, 1.5)


def wood(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Veneer: year rings drawn out along x, bent by slow waves, with fine dark pores."""
    h, w = frame.h, frame.w
    _, y = frame.grid()
    bent = y + 55 * value_noise(rng, h, w, 220, 700) + 6 * value_noise(rng, h, w, 60, 400)
    rings = lookup(_profile(rng, 2048, 36), bent)
    pores = smoothstep(1.1, 2.2, value_noise(rng, h, w, 1.6, 40))
    streak = value_noise(rng, h, w, 2.5, 260)
    return 0.56 + 0.10 * rings + 0.035 * streak - 0.16 * pores + 0.03 * fractal(rng, h, w, 250)


def rolled(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Rolled sheet: streaks along y and islands of mill scale with ragged borders."""
    h, w = frame.h, frame.w
    streaks = value_noise(rng, h, w, 500, 1.5) + value_noise(rng, h, w, 900, 9)
    scale = fractal(rng, h, w, 90, 5, 0.65)
    islands = smoothstep(0.25, 0.75, scale) * 0.07 + smoothstep(-0.9, -1.3, scale) * -0.05
    return 0.45 + 0.022 * streaks + islands + 0.02 * value_noise(rng, h, w, 2)


def glazed(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Ceramic glaze: cloudy tone with fine speckles under a smooth skin."""
    h, w = frame.h, frame.w
    specks = smoothstep(2.0, 2.6, value_noise(rng, h, w, 3.5)) + 0.6 * smoothstep(
        2.3, 2.9, value_noise(rng, h, w, 7)
    )
    waves = shade(fractal(rng, h, w, 45, 2), frame.light, 0.25)
    return 0.66 + 0.045 * fractal(rng, h, w, 160, 4) - 0.2 * specks + waves


def moulded(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Spark-eroded plastic: fine even pebbles and faint flow lines."""
    h, w = frame.h, frame.w
    _, y = turn(*frame.grid(), 0.5)
    flow = np.sin((y + 40 * value_noise(rng, h, w, 250)) * np.float32(2 * np.pi / 130))
    return (
        0.48
        + shade(fractal(rng, h, w, 5, 2), frame.light, 0.11)
        + 0.012 * flow
        + 0.02 * fractal(rng, h, w, 260)
    )
