"""Building blocks of the demo images: noise, shading and tone, all float32 and seeded.

Lengths are pixels. Tones run from 0 (black) to 1 (white). Light is a unit vector (x to the right, y down) that points
from the light into the picture.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

Light = tuple[float, float]


def value_noise(
    rng: np.random.Generator, h: int, w: int, cell_y: float, cell_x: float | None = None
) -> np.ndarray:
    """Smooth noise of about unit spread, float32 (h, w); features of `cell_y` x `cell_x` pixels."""
    cell_x = cell_y if cell_x is None else cell_x
    shape = (max(2, math.ceil(h / cell_y) + 1), max(2, math.ceil(w / cell_x) + 1))
    grid = rng.standard_normal(shape, dtype=np.float32)
    if cell_y <= 1 and cell_x <= 1:
        return np.ascontiguousarray(grid[:h, :w])
    return cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC)


def fractal(
    rng: np.random.Generator,
    h: int,
    w: int,
    cell: float,
    octaves: int = 3,
    gain: float = 0.6,
    stretch: float = 1.0,
) -> np.ndarray:
    """Sum of `octaves` noises, each of half the cell and `gain` times the weight; float32 (h, w), about unit spread.

    `stretch` lengthens the features along x.
    """
    total = np.zeros((h, w), np.float32)
    weight, power = 1.0, 0.0
    for octave in range(octaves):
        size = cell / 2**octave
        total += np.float32(weight) * value_noise(rng, h, w, size, size * stretch)
        power += weight**2
        weight *= gain
    return total * np.float32(1 / math.sqrt(power))


def shade(height: np.ndarray, light: Light, gain: float = 1.0) -> np.ndarray:
    """Brightness change of a lit relief: slopes that face the light gain, the others lose; float32 like `height`."""
    x, y = light
    kernel = -0.5 * gain * np.array([[0, y, 0], [x, 0, -x], [0, -y, 0]], np.float32)
    # A rising slope along the light's way faces the light, hence the sign: darker where height falls away from it.
    return cv2.filter2D(height, cv2.CV_32F, -kernel, borderType=cv2.BORDER_REFLECT)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of standard deviation `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 at `low`, 1 at `high`, smooth between; falls where `high` < `low`."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def lookup(profile: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Linear interpolation into a repeating 1-d `profile`, whose length is a power of two; float32 like `position`."""
    low = np.floor(position)
    part = position - low
    index = low.astype(np.int32) & (len(profile) - 1)
    step = np.roll(profile, -1) - profile
    return profile[index] + step[index] * part


def tint(tone: np.ndarray, palette: tuple[tuple[float, ...], tuple[float, ...]]) -> np.ndarray:
    """Map tones (h, w) to a colour ramp, palette = (colour at 0, colour at 1) in BGR or one channel; (h, w, c)."""
    dark, light = palette
    channels = [tone * np.float32(b - a) + np.float32(a) for a, b in zip(dark, light, strict=True)]
    return cv2.merge(channels) if len(channels) > 1 else channels[0][..., None]


def turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in a frame rotated by `angle` radians."""
    c, s = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return c * x + s * y, c * y - s * x
