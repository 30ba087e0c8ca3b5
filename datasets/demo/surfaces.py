"""Textures of the demo products, made of noise and light: metal, paint, fabric, wood, glaze.

Arrays are float32, lengths are pixels, tones run from 0 (black) to 1 (white). A texture is a
function of a canvas and returns tones (h, w) around 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

Pair = tuple[float, float]


@dataclass(frozen=True)
class Canvas:
    """A picture to draw: random numbers, size, centre and rotation (radians) of the part, light.

    `light` is the unit vector (x to the right, y down) along which the light shines.
    """

    rng: np.random.Generator
    h: int
    w: int
    cx: float = 0.0
    cy: float = 0.0
    angle: float = 0.0
    light: Pair = (1.0, 0.0)

    def grid(self, angle: float = 0.0, middle: Pair = (0, 0)) -> tuple[np.ndarray, np.ndarray]:
        """x and y (h, w) relative to the part's centre + `middle`, in axes turned by `angle`."""
        x = np.arange(self.w, dtype=np.float32)[None] - np.float32(self.cx) - np.float32(middle[0])
        y = np.arange(self.h, dtype=np.float32)[:, None] - np.float32(self.cy)
        y -= np.float32(middle[1])
        c, s = math.cos(angle), math.sin(angle)
        return c * x + s * y, c * y - s * x

    def noise(self, cell_y: float, cell_x: float | None = None) -> np.ndarray:
        """Smooth noise (h, w) of about unit spread with features of `cell_y` x `cell_x` pixels."""
        cell_x = cell_y if cell_x is None else cell_x
        shape = max(2, math.ceil(self.h / cell_y) + 1), max(2, math.ceil(self.w / cell_x) + 1)
        grid = self.rng.standard_normal(shape, dtype=np.float32)
        if cell_y <= 1 and cell_x <= 1:
            return np.ascontiguousarray(grid[: self.h, : self.w])
        return cv2.resize(grid, (self.w, self.h), interpolation=cv2.INTER_CUBIC)

    def fractal(self, cell: float, octaves: int = 3, gain: float = 0.6) -> np.ndarray:
        """Sum (h, w) of noises, each of half the cell and `gain` times the weight; unit spread."""
        total, weight, power = np.zeros((self.h, self.w), np.float32), 1.0, 0.0
        for octave in range(octaves):
            total += weight * self.noise(cell / 2**octave)
            power += weight**2
            weight *= gain
        return total * np.float32(1 / math.sqrt(power))

    def grooves(self, cell: float, position: np.ndarray) -> np.ndarray:
        """Random heights with features of `cell` pixels along `position`, across the grooves."""
        return lookup(Canvas(self.rng, 1, 2048).fractal(cell, 3, 0.7)[0], position)

    def shade(self, height: np.ndarray, gain: float) -> np.ndarray:
        """Brightness change of a lit relief: slopes that face the light gain, the others lose."""
        x, y = self.light
        kernel = 0.5 * gain * np.array([[0, y, 0], [x, 0, -x], [0, -y, 0]], np.float32)
        return cv2.filter2D(height, cv2.CV_32F, kernel, borderType=cv2.BORDER_REFLECT)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of standard deviation `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between; falls where `high` < `low`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def lookup(profile: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Linear interpolation into a repeating 1-d `profile`, whose length is a power of two."""
    low = np.floor(position)
    index = low.astype(np.int32) & (len(profile) - 1)
    step = np.roll(profile, -1) - profile
    return profile[index] + step[index] * (position - low)


def turned(c: Canvas) -> np.ndarray:
    """Concentric tool marks with the bow-tie reflection of a lathe-turned face."""
    pitch = 5.0
    radius, theta = cv2.cartToPolar(*c.grid())
    marks = c.grooves(pitch, radius)
    feed = np.sin(radius * (2 * math.pi / pitch))
    glint = np.cos(2 * (theta - c.rng.uniform(0, math.pi)))
    tone = 0.5 + 0.09 * glint + marks * (0.045 + 0.02 * glint) + 0.02 * feed
    return tone + 0.02 * c.fractal(90)


def milled(c: Canvas) -> np.ndarray:
    """Overlapping arcs of a face mill, with the fainter marks of the cutter's back edge."""
    feed, cutter = 14.0, 900.0
    x, y = c.grid(c.angle)
    bow = np.sqrt(np.maximum(cutter**2 - np.square(y), 1))
    front, back = (x - bow) / feed, (x + bow) / feed
    depth = c.rng.standard_normal(256, dtype=np.float32)
    saw = front - np.floor(front)
    tone = 0.52 + 0.07 * (saw - 0.5) + 0.035 * lookup(depth, front) + 0.02 * lookup(depth, back * 2)
    return tone + 0.018 * c.grooves(3, front * feed) + 0.03 * c.fractal(200)


def brushed(c: Canvas) -> np.ndarray:
    """Long parallel hairlines along x."""
    fine = c.noise(1, 220) + 0.8 * c.noise(2.2, 440)
    bands = c.noise(40, c.w) + c.noise(9, c.w / 2)
    return 0.55 + 0.05 * fine + 0.012 * bands + 0.025 * c.fractal(300)


def honed(c: Canvas) -> np.ndarray:
    """Cross hatch of a ground and honed face: two sets of fine lines at +-28 degrees."""
    side = math.ceil(math.hypot(c.h, c.w))
    square, tone = Canvas(c.rng, side, side), np.full((c.h, c.w), 0.5, np.float32)
    for slope in (-28, 28):
        lines = square.noise(1.6, 160) + 0.6 * square.noise(6, 400)
        matrix = cv2.getRotationMatrix2D((side / 2, side / 2), slope + math.degrees(c.angle), 1)
        matrix[:, 2] += (c.w - side) / 2, (c.h - side) / 2
        tone += 0.045 * cv2.warpAffine(lines, matrix, (c.w, c.h), flags=cv2.INTER_LINEAR)
    return tone + 0.03 * c.fractal(160)


def cast(c: Canvas) -> np.ndarray:
    """Granular relief of a casting: bumps lit from the side, with a skin of uneven tone."""
    height = c.fractal(9, 3, 0.55)
    return 0.46 + c.shade(height, 0.36) + 0.035 * height + 0.035 * c.fractal(180)


def sand(c: Canvas) -> np.ndarray:
    """Coarse sand-cast skin: sharp grains, dark pores between them, broad waves."""
    height = np.abs(c.noise(7)) + 0.5 * np.abs(c.noise(3)) + c.noise(60)
    pores = smoothstep(0.16, 0.0, np.abs(c.noise(11)) + np.abs(c.noise(13)))
    return 0.44 + c.shade(height, 0.22) - 0.13 * pores + 0.04 * c.fractal(140)


def painted(c: Canvas) -> np.ndarray:
    """Orange peel of a sprayed coat: gentle smooth waves with a soft broad reflection."""
    wave = c.shade(blur(c.fractal(15, 2, 0.4), 1.5), 0.22)
    x, y = c.grid()
    along = (x * c.light[0] + y * c.light[1]) / max(c.h, c.w)
    gloss = np.exp(-np.square((along - c.rng.uniform(-0.3, 0.3)) / 0.25))
    return 0.42 + wave * (0.8 + gloss) + 0.16 * gloss + 0.008 * c.noise(1)


def woven(
    c: Canvas, period: float, repeat: int = 2, float_over: int = 1, contrast: float = 0.16
) -> np.ndarray:
    """Fabric: the weft lies on top in `float_over` of `repeat` places (2 of 4: twill)."""
    x, y = c.grid(c.angle)
    wobble = 0.10 * c.noise(70)
    threads = []  # warp, weft: number, roundness across, tone
    for position in (x / period + wobble, y / period - wobble):
        number, tones = np.floor(position), c.rng.standard_normal(1024, dtype=np.float32)
        across = np.sin((position - number) * math.pi)
        threads.append((number, across, tones[number.astype(np.int32) & 1023]))
    (warp, across_warp, tone_warp), (weft, across_weft, tone_weft) = threads
    weft_on_top = np.mod(warp + weft, repeat) < float_over
    top = across_weft * (0.62 + 0.38 * across_warp)
    thread = np.where(weft_on_top, top, across_warp * (0.62 + 0.38 * across_weft) - 0.18)
    tones = np.where(weft_on_top, tone_weft, tone_warp)
    fuzz = c.noise(1.5) + c.noise(5)
    return 0.33 + 2 * contrast * thread - contrast + 0.15 + 0.025 * tones + 0.02 * fuzz


def mesh(c: Canvas) -> np.ndarray:
    """Wire cloth: crossing round wires over a dark ground."""
    period, wire = 26.0, 0.42  # pixels, the wire's share of them
    x, y = c.grid(c.angle)
    wobble = 0.05 * c.noise(120)
    tone = 0.10 + 0.02 * c.fractal(60)
    u, v = x / period + wobble, y / period + wobble

    def bar(along: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        off = (side - np.floor(side) - 0.5) / (wire / 2)
        bend = np.cos((along - np.floor(along) - 0.5) * (2 * math.pi))
        lit = 0.5 + 0.28 * np.sqrt(np.maximum(1 - off * off, 0)) - 0.14 * off + 0.05 * bend
        return smoothstep(1.0, 0.8, np.abs(off)), lit

    (in_a, lit_a), (in_b, lit_b) = bar(u, v), bar(v, u)
    a_on_top = np.mod(np.floor(u) + np.floor(v), 2) < 1
    for cover, lit in ((in_a, lit_a), (in_b, lit_b), (in_a * a_on_top, lit_a)):
        tone = tone * (1 - cover) + (lit - 0.18) * cover
    return tone + 0.02 * c.noise(1.5)


def wood(c: Canvas) -> np.ndarray:
    """Veneer: year rings drawn out along x, bent by slow waves, with fine dark pores."""
    bent = c.grid()[1] + 55 * c.noise(220, 700) + 6 * c.noise(60, 400)
    rings = c.grooves(36, bent)
    pores = smoothstep(1.1, 2.2, c.noise(1.6, 40))
    return 0.56 + 0.10 * rings + 0.035 * c.noise(2.5, 260) - 0.16 * pores + 0.03 * c.fractal(250)


def rolled(c: Canvas) -> np.ndarray:
    """Rolled sheet: streaks along y and islands of mill scale with ragged borders."""
    streaks = c.noise(500, 1.5) + c.noise(900, 9)
    scale = c.fractal(90, 5, 0.65)
    islands = smoothstep(0.25, 0.75, scale) * 0.07 + smoothstep(-0.9, -1.3, scale) * -0.05
    return 0.45 + 0.022 * streaks + islands + 0.02 * c.noise(2)


def glazed(c: Canvas) -> np.ndarray:
    """Ceramic glaze: cloudy tone with fine speckles under a smooth skin."""
    specks = smoothstep(2.0, 2.6, c.noise(3.5)) + 0.6 * smoothstep(2.3, 2.9, c.noise(7))
    waves = c.shade(c.fractal(45, 2), 0.25)
    return 0.66 + 0.045 * c.fractal(160, 4) - 0.2 * specks + waves


def moulded(c: Canvas) -> np.ndarray:
    """Spark-eroded plastic: fine even pebbles and faint flow lines."""
    flow = np.sin((c.grid(0.5)[1] + 40 * c.noise(250)) * (2 * math.pi / 130))
    return 0.48 + c.shade(c.fractal(5, 2), 0.11) + 0.012 * flow + 0.02 * c.fractal(260)
