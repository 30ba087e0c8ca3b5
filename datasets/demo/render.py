"""One demo image: surface, harmless marks, defects where they may sit, lens and sensor."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.demo.defects import REACH, Look, Patch, apply_defect, clean_mask, draw_defect
from datasets.demo.noise import blur, fractal, shade, tint
from datasets.demo.products import Product
from datasets.demo.surfaces import Frame

INSET = 6  # pixels between the part's border and a defect of its face


@dataclass(frozen=True)
class Instance:
    """One defect: its category within the product and its mask, uint8 {0, 1}, in a window at (x, y) of the image."""

    category: int
    x: int
    y: int
    mask: np.ndarray


def _rng(seed: int, product: Product, index: int, stream: str) -> np.random.Generator:
    return np.random.default_rng(
        [seed, zlib.crc32(product.name.encode()), index, zlib.crc32(stream.encode())]
    )


def _frame(rng: np.random.Generator, product: Product) -> Frame:
    h, w = product.size
    light = product.light + rng.normal(0, 0.15)
    shift = rng.uniform(-0.03, 0.03, 2)
    angle = float(np.clip(rng.normal(0, product.tilt), -2 * product.tilt, 2 * product.tilt))
    return Frame(
        h, w, w * (0.5 + shift[0]), h * (0.5 + shift[1]), angle, (math.cos(light), math.sin(light))
    )


def _surface(
    rng: np.random.Generator, product: Product, frame: Frame
) -> tuple[np.ndarray, np.ndarray]:
    """The bare part on its ground: float32 (h, w, c), and the part's mask, uint8 0..255."""
    tone = product.texture(rng, frame)
    part = product.shape(rng, frame)
    if part.min() == 255:
        return tint(tone, product.palette), part
    soft = part.astype(np.float32) / 255
    tone += shade(blur(soft, 2.5), frame.light, product.bevel * 3)
    small = cv2.resize(soft, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    shadow = cv2.resize(blur(small, 2.3), (frame.w, frame.h), interpolation=cv2.INTER_LINEAR)
    ground = product.ground_tone * (1 - 0.5 * shadow) + 0.02 * fractal(rng, frame.h, frame.w, 70)
    mixed = cv2.blendLinear(
        tint(tone, product.palette), tint(ground, product.ground), soft, 1 - soft
    )
    return mixed.reshape(frame.h, frame.w, -1), part


def _lens(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light, vignetting, slight defocus, sensor noise; float tones -> uint8."""
    h, w = image.shape[:2]
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    lean = rng.uniform(-0.1, 0.1, 2).astype(np.float32)
    gain = np.float32(rng.uniform(0.9, 1.08)) * (1 + lean[0] * x + lean[1] * y)
    gain *= 1 - np.float32(rng.uniform(0.04, 0.12)) * (x * x + y * y)
    noise = rng.standard_normal((h, w), dtype=np.float32) * np.float32(rng.uniform(1.2, 2.6))
    channels = image.shape[2]
    image = cv2.GaussianBlur(image, (5, 5), float(rng.uniform(0.55, 0.8)))
    image = cv2.multiply(image, cv2.merge([gain * 255] * channels))
    return cv2.add(image, cv2.merge([noise] * channels), dtype=cv2.CV_8U).reshape(h, w, channels)


class _Places:
    """Where defects may still go on one part."""

    def __init__(self, part: np.ndarray, room: np.ndarray) -> None:
        self.part = (part > 127).astype(np.uint8)
        kernel = np.ones((2 * INSET + 1, 2 * INSET + 1), np.uint8)
        self.inner = cv2.erode(self.part, kernel)
        # Off the part nothing is taken, so that a chip or burr may hang over the border.
        self.free = ((room > 0) | (part == 0)).astype(np.uint8)
        border = cv2.morphologyEx(self.part, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        border[:12], border[-12:], border[:, :12], border[:, -12:] = 0, 0, 0, 0
        self.edge = cv2.findNonZero(border)

    def find(
        self, rng: np.random.Generator, look: Look, patch: Patch
    ) -> tuple[int, int, np.ndarray] | None:
        """Window corner (x, y), possibly negative, and the mask left there; None where a few draws find nothing."""
        for _ in range(30):
            x, y = self._draw(rng, look.at_edge, patch.mask.shape)
            mask = self._visible(look, patch.mask, x, y)
            if mask is not None:
                return x, y, mask
        return None

    def _draw(
        self, rng: np.random.Generator, at_edge: bool, size: tuple[int, int]
    ) -> tuple[int, int]:
        if at_edge:
            x, y = self.edge.reshape(-1, 2)[rng.integers(len(self.edge))]
            return int(x) - size[1] // 2, int(y) - size[0] // 2
        h, w = self.part.shape
        return int(rng.integers(0, max(1, w - size[1]))), int(rng.integers(0, max(1, h - size[0])))

    def _visible(self, look: Look, mask: np.ndarray, x: int, y: int) -> np.ndarray | None:
        here, there = overlap(mask.shape, self.part.shape, x, y)
        inside = mask[here] > 0
        if inside.sum() < mask.sum() or not self.free[there][inside].all():
            return None
        if not look.at_edge:
            return mask if self.inner[there][inside].all() else None
        if look.kind != "chip":
            return mask
        kept = np.zeros_like(mask)
        kept[here] = mask[here] & self.part[there]
        kept = clean_mask(kept)
        return kept if 0.25 < kept.sum() / mask.sum() < 0.8 else None

    def take(self, x: int, y: int, mask: np.ndarray) -> None:
        """Keep later defects away from this one."""
        margin = 3 * REACH
        wide = cv2.dilate(np.pad(mask, margin), np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
        here, there = overlap(wide.shape, self.part.shape, x - margin, y - margin)
        self.free[there] &= 1 - wide[here]


def overlap(
    size: tuple[int, int], image: tuple[int, int], x: int, y: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Index the part of a window of `size` at (x, y) that lies in an image: within the window, within the image."""
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(size[0], image[0] - y), min(size[1], image[1] - x)
    return np.s_[top:bottom, left:right], np.s_[y + top : y + bottom, x + left : x + right]


def _add_defect(
    rng: np.random.Generator,
    image: np.ndarray,
    places: _Places,
    look: Look,
    area: float,
    frame: Frame,
) -> tuple[int, int, np.ndarray] | None:
    for _ in range(16):
        angle = (
            math.radians(rng.choice(look.angles)) + frame.angle
            if look.angles
            else rng.uniform(0, 2 * math.pi)
        )
        patch = draw_defect(
            rng, look, area * (2 if look.kind == "chip" and look.at_edge else 1), angle, frame.light
        )
        found = places.find(rng, look, patch) if patch.mask.any() else None
        if found is not None:
            x, y, patch.mask = found
            here, there = overlap(patch.mask.shape, image.shape[:2], x, y)
            window = Patch(patch.mask[here], patch.cover[here], patch.shade[here])
            if look.kind == "chip" and look.at_edge:
                window.cover, window.shade = (
                    v * places.part[there] for v in (window.cover, window.shade)
                )
            apply_defect(image[there], window, look.tone)
            places.take(x, y, patch.mask)
            return there[1].start, there[0].start, window.mask
        area *= 0.8
    return None


def render(
    product: Product, seed: int, index: int, shares: dict[int, float], with_defects: bool = True
) -> tuple[np.ndarray, list[Instance]]:
    """Image `index` of a product, with the area shares wanted per defect category.

    Returns uint8 (h, w, 3) in BGR or (h, w, 1), and the instances. Without defects the picture is the same but for
    them: each step draws from its own random stream.
    """
    frame = _frame(_rng(seed, product, index, "pose"), product)
    image, part = _surface(_rng(seed, product, index, "surface"), product, frame)
    rng, room = _rng(seed, product, index, "marks"), part.copy()
    for mark in product.marks:
        if rng.random() < 0.75:
            mark(rng, image, room)
    instances = []
    if with_defects:
        instances = _defects(
            _rng(seed, product, index, "defects"),
            product,
            image,
            _Places(part, room),
            frame,
            shares,
        )
    return _lens(_rng(seed, product, index, "lens"), image), instances


def _defects(
    rng: np.random.Generator,
    product: Product,
    image: np.ndarray,
    places: _Places,
    frame: Frame,
    shares: dict[int, float],
) -> list[Instance]:
    instances = []
    for category, share in shares.items():
        look = product.looks[category]
        area = share * places.part.size
        count = min(int(rng.integers(1, look.instances + 1)), max(1, int(area // 150)))
        placed = [_add_defect(rng, image, places, look, area / count, frame) for _ in range(count)]
        instances += [Instance(category, *found) for found in placed if found is not None]
        if not any(placed_one is not None for placed_one in placed):
            raise RuntimeError(f"no place for {look.name} on {product.name}")
    return instances
