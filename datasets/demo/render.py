"""One demo image: surface, harmless marks, defects where they may sit, lens and sensor."""

from __future__ import annotations

import math
import zlib
from dataclasses import replace

import cv2
import numpy as np

from datasets.demo.defects import REACH, Look, clean_mask, draw_defect
from datasets.demo.products import Palette, Product
from datasets.demo.surfaces import Canvas, blur
from utils.errors import DataError

INSET = 6  # pixels between the part's border and a defect of its face


def render(
    product: Product, seed: int, index: int, shares: dict[int, float]
) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """Image `index` of a product, with defects of the area shares (0..1) given by category.

    Returns uint8 (h, w, 3) in BGR or (h, w, 1), and category and mask, uint8 {0, 1} (h, w), of each
    defect. Each step has its own random stream: other shares change nothing but the defects. Raises
    DataError where no place is left for a defect.
    """

    def stream(step: str) -> np.random.Generator:
        keys = seed, zlib.crc32(product.name.encode()), index, zlib.crc32(step.encode())
        return np.random.default_rng(keys)

    image, part, canvas = _surface(product, stream("pose"), stream("surface"))
    room, rng, defects = part.copy(), stream("marks"), []
    for mark in product.marks:
        if rng.random() < 0.75:
            _draw_mark(rng, image, room, mark)
    rng = stream("defects")
    face = _Face(replace(canvas, rng=rng), image, part, room)
    for category, share in shares.items():
        look, area = product.looks[category], share * part.size
        count = min(int(rng.integers(1, look.instances + 1)), max(1, int(area // 150)))
        masks = [face.add(look, area / count) for _ in range(count)]
        defects += [(category, mask) for mask in masks if mask is not None]
        if all(mask is None for mask in masks):
            where = f"image {index} of {product.name}"
            raise DataError(f"{where} has no place for a {look.name}; give another --seed")
    return _lens(stream("lens"), image), defects


def _surface(
    product: Product, pose: np.random.Generator, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, Canvas]:
    """The bare part on its ground, float32 (h, w, c), its mask, uint8 0..255 (h, w), its pose."""
    h, w = product.size
    light = product.light + pose.normal(0, 0.15)
    shift = 0.5 + pose.uniform(-0.03, 0.03, 2)
    angle = float(np.clip(pose.normal(0, product.tilt), -2 * product.tilt, 2 * product.tilt))
    direction = math.cos(light), math.sin(light)
    canvas = Canvas(rng, h, w, w * shift[0], h * shift[1], angle, direction)

    def tint(tone: np.ndarray, palette: Palette) -> np.ndarray:
        ends = zip(*palette, strict=True)
        return cv2.merge([tone * (high - low) + low for low, high in ends])

    tone, part = product.texture(canvas), _draw_part(canvas, product)
    if part.min() == 255:
        return tint(tone, product.palette).reshape(h, w, -1), part, canvas
    soft = part.astype(np.float32) / 255
    tone += canvas.shade(blur(soft, 2.5), product.bevel * 3)
    small = cv2.resize(soft, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    shadow = cv2.resize(blur(small, 2.3), (w, h), interpolation=cv2.INTER_LINEAR)
    ground = product.ground_tone * (1 - 0.5 * shadow) + 0.02 * canvas.fractal(70)
    layers = tint(tone, product.palette), tint(ground, product.ground)
    return cv2.blendLinear(*layers, soft, 1 - soft).reshape(h, w, -1), part, canvas


def _draw_part(canvas: Canvas, product: Product) -> np.ndarray:
    """255 on the part, 0 on the ground, between at the border: uint8 (h, w)."""
    mask = np.zeros((canvas.h, canvas.w), np.uint8)
    c, s = math.cos(canvas.angle), math.sin(canvas.angle)
    for value, size, points in product.outline:
        place = [(x * canvas.w, y * canvas.h) for x, y in points]
        place = [(canvas.cx + c * x - s * y, canvas.cy + s * x + c * y) for x, y in place]
        pixels, size = [(round(x), round(y)) for x, y in place], round(size * canvas.h)
        if len(pixels) == 1:
            cv2.circle(mask, *pixels, size, value, -1, cv2.LINE_AA)
        elif len(pixels) == 2:
            cv2.line(mask, *pixels, value, size, cv2.LINE_AA)
        else:
            cv2.fillPoly(mask, [np.array(pixels, np.int32)], value, cv2.LINE_AA)
    return mask


def _draw_mark(rng: np.random.Generator, image: np.ndarray, room: np.ndarray, mark) -> None:
    """Draw a mark, and set `room` to 0 under it; give up after 25 places that are not bare."""
    for hides, layers in mark(rng, image.shape):
        h, w = layers[0][0].shape
        for _ in range(25):
            x = int(rng.integers(0, image.shape[1] - w))
            y = int(rng.integers(0, image.shape[0] - h))
            window = np.s_[y : y + h, x : x + w]
            if hides and not room[window].all():
                continue
            for cover, tone in layers:
                image[window] += cover[..., None] * (np.float32(tone) - image[window])
            if hides:
                room[window] = 0
            break


def _lens(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Uneven light, vignetting, slight defocus, sensor noise; float tones -> uint8."""
    h, w, channels = image.shape
    x = np.linspace(-1, 1, w, dtype=np.float32)[None]
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    lean = rng.uniform(-0.1, 0.1, 2).astype(np.float32)
    gain = rng.uniform(0.9, 1.08) * (1 + lean[0] * x + lean[1] * y)
    gain *= 1 - np.float32(rng.uniform(0.04, 0.12)) * (x * x + y * y)
    noise = rng.standard_normal((h, w), dtype=np.float32) * rng.uniform(1.2, 2.6)
    image = cv2.GaussianBlur(image, (5, 5), rng.uniform(0.55, 0.8))
    image = cv2.multiply(image, cv2.merge([gain * 255] * channels))
    return cv2.add(image, cv2.merge([noise] * channels), dtype=cv2.CV_8U).reshape(h, w, channels)


class _Face:
    """The face of one part, and where defects may still sit on it; masks uint8 {0, 1} (h, w)."""

    def __init__(self, canvas: Canvas, image: np.ndarray, part: np.ndarray, room: np.ndarray):
        self.canvas, self.image = canvas, image
        self.part = (part > 127).astype(np.uint8)
        self.inner = cv2.erode(self.part, np.ones((2 * INSET + 1, 2 * INSET + 1), np.uint8))
        # Everything off the part is free, so that a chip or burr may hang over the border.
        self.free = ((room > 0) | (part == 0)).astype(np.uint8)
        border = cv2.morphologyEx(self.part, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        border[:12], border[-12:], border[:, :12], border[:, -12:] = 0, 0, 0, 0
        self.edge = np.argwhere(border)

    def add(self, look: Look, area: float) -> np.ndarray | None:
        """Draw one defect of at most `area` pixels; its mask, None where it finds no place."""
        rng, tone = self.canvas.rng, np.float32(look.tone)
        edge_chip = look.kind == "chip" and look.at_edge  # half of it hangs over the border
        for _ in range(16):
            if look.angles:
                angle = math.radians(rng.choice(look.angles)) + self.canvas.angle
            else:
                angle = rng.uniform(0, 2 * math.pi)
            canvas = replace(self.canvas, angle=angle)
            mask, cover, shade = draw_defect(canvas, look, 2 * area if edge_chip else area)
            area *= 0.8
            if not mask.any() or (place := self._find(look, mask)) is None:
                continue
            there, here, mask = place
            near = np.clip(1 - cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3) / REACH, 0, 1)
            if edge_chip:
                near *= self.part[there]
            cover, shade = (cover[here] * near)[..., None], (shade[here] * near)[..., None]
            self.image[there] += cover * (tone - self.image[there]) + shade
            whole = np.zeros_like(self.part)
            whole[there] = mask
            self.free &= 1 - cv2.dilate(whole, np.ones((6 * REACH + 1, 6 * REACH + 1), np.uint8))
            return whole
        return None

    def _find(self, look: Look, mask: np.ndarray):
        """Slices of the image and of the window where they overlap, and the mask visible there;
        None where 30 draws find no place."""
        rng, (h, w), (rows, columns) = self.canvas.rng, mask.shape, self.part.shape
        allowed = self.free if look.at_edge else self.free & self.inner
        for _ in range(30):
            if look.at_edge:
                y, x = self.edge[rng.integers(len(self.edge))] - (h // 2, w // 2)
            else:
                x = int(rng.integers(0, max(1, columns - w)))
                y = int(rng.integers(0, max(1, rows - h)))
            here = np.s_[max(0, -y) : rows - y, max(0, -x) : columns - x]
            there = np.s_[max(0, y) : y + h, max(0, x) : x + w]
            shown = mask[here]
            if shown.sum() < mask.sum() or not allowed[there][shown > 0].all():
                continue
            if look.at_edge and look.kind == "chip":  # shows what is missing of the part
                shown = clean_mask(shown & self.part[there])
                if not 0.25 < shown.sum() / mask.sum() < 0.8:
                    continue
            return there, here, shown
        return None
