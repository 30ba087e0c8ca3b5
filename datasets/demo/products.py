"""The demo's products as one table: surface, outline, palette, harmless marks and defects of each.

An outline is a tuple of drawing steps (value, size, points): one point is a disc of radius `size`,
two are a line of thickness `size`, more are a polygon. Value 255 is part, 0 ground. Points are
shares of the picture's width and height from the part's centre, sizes are shares of its height.

A mark is a function (rng, image shape) that yields (hides, layers): what `hides` lies where the
part is bare and keeps defects away; layers (cover 0..1, tone 0..1) of one size are blended in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from datasets.demo import surfaces
from datasets.demo.defects import Look
from datasets.demo.surfaces import Canvas, blur

Step = tuple[int, float, tuple[tuple[float, float], ...]]
Marks = Iterator[tuple[bool, list[tuple[np.ndarray, float | tuple[float, ...]]]]]
Palette = tuple[tuple[float, ...], tuple[float, ...]]
GREY: Palette = ((0.0,), (1.0,))


def _plate(x: float, top: float, bottom: float) -> Step:
    return 255, 0, ((-x, top), (x, top), (x, bottom), (-x, bottom))


def _holes(radius: float, *centres: tuple[float, float]) -> tuple[Step, ...]:
    return tuple((0, radius, (centre,)) for centre in centres)


def _flange(bore: float, bolts: int) -> tuple[Step, ...]:
    """Disc with a central bore and a circle of bolt holes, of a square picture."""
    turns = np.arange(bolts) * 2 * math.pi / bolts
    circle = zip(0.3572 * np.cos(turns), 0.3572 * np.sin(turns), strict=True)
    return (255, 0.47, ((0, 0),)), *_holes(bore, (0, 0)), *_holes(0.03055, *circle)


_FLANGE, _CAP = _flange(0.1598, 6), _flange(0.094, 4)
_FULL, _STRIP = (_plate(1, -1, 1),), (_plate(1, -0.4, 0.4),)
_SLAB = (_plate(0.455, -0.455, 0.455),)
# A ring with one keyway, larger than the picture is high.
_KEYWAY = (0, 0, ((-0.0392, 0), (0.0392, 0), (0.0392, -0.34462), (-0.0392, -0.34462)))
_RING = ((255, 0.68923, ((0, 0),)), *_holes(0.28948, (0, 0)), _KEYWAY)
# A stepped plate with two slots and three bores.
_STEPPED = ((-0.43, -0.4), (0.1505, -0.4), (0.215, -0.24), (0.43, -0.24), (0.43, 0.4))
_BRACKET = (
    (255, 0, (*_STEPPED, (-0.301, 0.4), (-0.43, 0.24))),
    *((0, 0.064, ((x, 0.06), (x + 0.129, 0.06))) for x in (-0.2365, 0.1505)),
    *_holes(0.036, (-0.344, -0.3), (0.3354, 0.3), (0.043, -0.28)),
)
# A block that leaves the picture on one side, with one large port and two small ones.
_HOUSING = (
    _plate(0.46, -0.42, 0.8),
    *_holes(0.16, (0.161, -0.05)),
    *_holes(0.035, (-0.345, -0.28), (-0.207, -0.28)),
)
# A sheet that fills the picture, with a row of vents and two screw holes.
_PANEL = (
    *_FULL,
    *((0, 0.016, ((x, -0.2), (x, 0.02))) for x in (0.14, 0.19, 0.24, 0.29, 0.34)),
    *_holes(0.0374, (-0.42, -0.36), (-0.42, 0.36)),
)


def dust(rng: np.random.Generator, shape: tuple[int, ...]) -> Marks:
    """A dozen specks, lighter than the ground and slightly out of focus."""
    for _ in range(int(rng.integers(6, 16))):
        cover = np.zeros((15, 15), np.uint8)
        axes = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
        cv2.ellipse(cover, (7, 7), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        yield False, [(blur(np.float32(cover) / 255, 0.9) * rng.uniform(0.3, 0.7), 0.92)]


def fibre(rng: np.random.Generator, shape: tuple[int, ...]) -> Marks:
    """A curled hair of one pixel's width lying on the part."""
    t = np.linspace(0, 1, 40)
    turns = rng.uniform(0.6, 1.6) * 2 * math.pi * t
    x, y = 60 + 38 * np.cos(turns) + 25 * t, 60 + 32 * np.sin(turns + rng.uniform(0, 6)) - 25 * t
    cover = np.zeros((130, 130), np.uint8)
    points = np.stack([x, y], -1).round().astype(np.int32)
    cv2.polylines(cover, [points], False, 255, 1, cv2.LINE_AA)
    yield True, [(np.float32(cover) / 255 * 0.6, float(rng.choice([0.08, 0.95])))]


def dark_print(rng: np.random.Generator, shape: tuple[int, ...], tone: float = 0.12) -> Marks:
    """Two printed lines: a part number and a date code."""
    size = max(shape) / 1500
    cover = np.zeros((round(130 * size), round(470 * size)), np.uint8)
    number = f"{'ABKTRX'[rng.integers(6)]}{rng.integers(100, 999)}-{rng.integers(10, 99)}"
    lot, font = f"LOT {rng.integers(10000, 99999)}", cv2.FONT_HERSHEY_SIMPLEX
    for line, text, scale in ((0.42, number, 1.7), (0.85, lot, 1.1)):
        at, thickness = (8, round(cover.shape[0] * line)), max(2, round(3 * size))
        cv2.putText(cover, text, at, font, scale * size, 255, thickness, cv2.LINE_AA)
    worn = np.clip(0.85 + 0.12 * Canvas(rng, *cover.shape).noise(9), 0, 1)
    yield True, [(blur(np.float32(cover) / 255, 0.8) * worn, tone)]


light_print = partial(dark_print, tone=0.9)


def label(rng: np.random.Generator, shape: tuple[int, ...]) -> Marks:
    """Paper sticker with a bar code and its soft shadow."""
    w, h = (int(v * max(shape) / 1500) for v in (200, 110))
    shadow, paper, bars = np.zeros((3, h + 16, w + 16), np.float32)
    shadow[6:-4, 6:-4] = 0.5
    paper[6:-10, 4:-12] = 0.97
    stripes = np.repeat(rng.random((w - 30) // 4) < 0.5, 4)
    bars[18 : 18 + h // 2, 16 : 16 + len(stripes)] = stripes * 0.9
    yield True, [(blur(shadow, 3), 0.05), (paper, 0.86), (bars, 0.1)]


def pen(rng: np.random.Generator, shape: tuple[int, ...]) -> Marks:
    """Inspector's check mark in felt pen."""
    size = max(shape) / 1500
    corners = np.array([(20, 70), (50, 110), (120, 15)]) * size
    points = (corners + rng.normal(0, 6 * size, (3, 2)) + 8 * size).round().astype(np.int32)
    cover = np.zeros((round(140 * size), round(150 * size)), np.uint8)
    cv2.polylines(cover, [points], False, 255, max(3, round(9 * size)), cv2.LINE_AA)
    tone = (0.55, 0.2, 0.1) if shape[2] == 3 else 0.2
    yield True, [(blur(np.float32(cover) / 255, 1.0) * 0.75, tone)]


def glare(rng: np.random.Generator, shape: tuple[int, ...]) -> Marks:
    """Soft round reflection of a lamp."""
    side = int(rng.uniform(0.12, 0.25) * min(shape[:2]))
    bump = np.exp(-np.square(np.linspace(-2.6, 2.6, side, dtype=np.float32)))
    yield False, [(0.35 * bump[:, None] * bump[None], 1.0)]


def punch(rng: np.random.Generator, shape: tuple[int, ...]) -> Marks:
    """Two stamped gauge marks: small circles with a bright and a dark half."""
    dark, bright = np.zeros((2, 61, 61), np.uint8)
    cv2.circle(dark, (29, 29), 22, 255, 3, cv2.LINE_AA)
    cv2.circle(bright, (31, 31), 22, 255, 3, cv2.LINE_AA)
    for _ in range(2):
        yield True, [(np.float32(dark) / 255 * 0.55, 0.1), (np.float32(bright) / 255 * 0.45, 0.95)]


@dataclass(frozen=True)
class Product:
    """What all images of a product share. Palette: colour (BGR or grey, 0..1) of tones 0 and 1."""

    name: str
    size: tuple[int, int]  # height, width
    texture: Callable[[Canvas], np.ndarray]
    outline: tuple[Step, ...]
    marks: tuple[Callable[..., Marks], ...]
    looks: tuple[Look, ...]
    palette: Palette = GREY
    ground: Palette = GREY  # behind the part
    ground_tone: float = 0.12
    bevel: float = 0.5  # brightness of the part's lit border
    light: float = -2.2  # direction towards which the light shines, radians
    tilt: float = 0.05  # spread of the part's rotation between images, radians


# fmt: off
# Look(name, kind, tone, strength, relief)
_TRAIN = (
    Product("Turned_Flange", (1200, 1200), surfaces.turned, _FLANGE, (dust, dark_print, glare), (
        Look("scratch", "scratch", (0.95,), 0.6, 0.25, width=2.6, bend=0.03, instances=2),
        Look("dent", "dent", (0.25,), 0.2, 0.32, aspect=1.3, ragged=0.05)),
        light=0.7, tilt=0.5),
    Product("Milled_Bracket", (1100, 1500), surfaces.milled, _BRACKET, (dust, punch, pen), (
        Look("burr", "burr", (0.98,), 0.85, 0.5, width=4.5, bend=0.16, jag=0.2, longest=110.0,
             at_edge=True, instances=2),
        Look("chip", "chip", (0.24,), 0.85, 0.25, ragged=0.2, at_edge=True)),
        palette=((0.05, 0.04, 0.03), (0.98, 0.95, 0.92)),
        ground=((0.1, 0.06, 0.04), (0.6, 0.4, 0.3)), light=0.9, tilt=0.12),
    Product("Brushed_Panel", (1000, 1700), surfaces.brushed, _PANEL, (dust, dark_print, label), (
        Look("scratch", "scratch", (0.12,), 0.7, 0.2, width=3.0, bend=0.02, instances=2),
        Look("stain", "stain", (0.3, 0.42, 0.5), 0.5, 0.02, ragged=0.22)),
        palette=((0.08, 0.06, 0.05), (0.93, 0.9, 0.87)),
        ground=((0, 0, 0), (0.4, 0.4, 0.4)), light=1.2, tilt=0.01),
    Product("Cast_Housing", (1200, 1500), surfaces.cast, _HOUSING, (dust, light_print, pen), (
        Look("porosity", "pit", (0.05,), 0.85, 0.3, ragged=0.12, cluster=7),
        Look("crack", "crack", (0.06,), 0.85, 0.12, width=2.6, bend=0.14, jag=0.4)),
        palette=((0.05, 0.06, 0.07), (0.85, 0.93, 0.97)),
        ground=((0.05, 0.05, 0.05), (0.5, 0.45, 0.4)), light=0.6),
    Product("Painted_Cover", (1100, 1400), surfaces.painted, _SLAB, (dust, light_print, glare), (
        Look("bubble", "bubble", (0.25, 0.16, 0.05), 0.35, 0.28, ragged=0.04, cluster=4),
        Look("scratch", "scratch", (0.82, 0.84, 0.84), 0.85, 0.15, width=3.4, bend=0.06)),
        palette=((0.12, 0.06, 0.0), (0.95, 0.75, 0.32)),
        ground=((0.2, 0.2, 0.2), (0.6, 0.6, 0.6)), ground_tone=0.3, light=1.0),
    Product("Twill_Fabric", (1024, 1280),
        partial(surfaces.woven, period=9.0, repeat=4, float_over=2), _FULL, (dust, fibre, label), (
        Look("missing_thread", "weave", (0.1, 0.05, 0.04), 0.75, 0.08, width=7.0, bend=0.006,
             angles=(0, 90)),
        Look("oil_stain", "stain", (0.12, 0.12, 0.1), 0.45, ragged=0.2, instances=2)),
        palette=((0.16, 0.07, 0.05), (0.85, 0.6, 0.5)), tilt=0.2),
    Product("Ceramic_Tile", (1300, 1300), surfaces.glazed, _SLAB, (dust, fibre, glare), (
        Look("crack", "crack", (0.2, 0.22, 0.25), 0.75, 0.05, width=2.0, bend=0.07, jag=0.15),
        Look("chip", "chip", (0.5, 0.62, 0.74), 0.95, 0.3, ragged=0.22, at_edge=True, instances=2)),
        palette=((0.3, 0.38, 0.42), (0.93, 0.97, 0.98)),
        ground=((0.1, 0.1, 0.1), (0.9, 0.9, 0.9)), ground_tone=0.35, bevel=0.4, light=0.5),
    Product("Wood_Veneer", (1000, 1800), surfaces.wood, _FULL, (dust, pen, dark_print), (
        Look("resin", "stain", (0.02, 0.1, 0.24), 0.75, -0.05, aspect=3.0, ragged=0.14,
             angles=(0,)),
        Look("dent", "dent", (0.15, 0.22, 0.3), 0.35, 0.22, aspect=1.8, ragged=0.05, instances=2)),
        palette=((0.05, 0.14, 0.26), (0.62, 0.82, 0.97)), light=0.8, tilt=0.0),
    Product("Rolled_Sheet", (1024, 1600), surfaces.rolled, _STRIP, (dust, dark_print, label), (
        Look("inclusion", "pit", (0.08,), 0.7, 0.1, aspect=4.5, ragged=0.15, cluster=3,
             angles=(90,)),
        Look("pit", "pit", (0.16,), 0.65, 0.4, ragged=0.1, instances=3)),
        bevel=0.3, light=0.4, tilt=0.02),
)
_TEST = (
    Product("Ground_Ring", (1300, 1600), surfaces.honed, _RING, (dust, dark_print, punch), (
        Look("pit", "pit", (0.1,), 0.8, 0.35, ragged=0.2, cluster=3),
        Look("scratch", "scratch", (0.9,), 0.5, 0.4, width=3.6, bend=0.12, instances=2)),
        palette=((0.1, 0.08, 0.06), (0.92, 0.94, 0.96)),
        ground=((0.02, 0.02, 0.02), (0.5, 0.5, 0.5)), light=2.4, tilt=1.0),
    Product("Sand_Casting", (1200, 1400), surfaces.sand, _BRACKET, (dust, light_print, pen), (
        Look("inclusion", "chip", (0.85,), 0.8, 0.25, aspect=1.4, ragged=0.28),
        Look("crack", "crack", (0.04,), 0.9, 0.2, width=3.6, bend=0.1, jag=0.35)),
        ground_tone=0.7, light=2.0, tilt=0.1),
    Product("Plain_Weave", (1100, 1300), partial(surfaces.woven, period=14.0, contrast=0.13), _FULL,
        (dust, dark_print, label), (
        Look("thick_thread", "weave", (0.86, 0.93, 0.95), 0.6, 0.2, width=13.0, bend=0.006,
             angles=(0, 90)),
        Look("foreign_fibre", "scratch", (0.2, 0.16, 0.5), 0.8, 0.12, width=3.6, bend=0.2,
             jag=0.1)),
        palette=((0.3, 0.36, 0.4), (0.86, 0.93, 0.95)), tilt=0.25),
    Product("Moulded_Cap", (1200, 1200), surfaces.moulded, _CAP, (dust, light_print, fibre), (
        Look("burn", "stain", (0.04, 0.05, 0.08), 0.6, ragged=0.25),
        Look("chip", "chip", (0.3, 0.35, 0.75), 0.85, 0.3, ragged=0.3, at_edge=True, instances=2)),
        palette=((0.03, 0.05, 0.2), (0.3, 0.42, 0.98)),
        ground=((0.1, 0.1, 0.1), (0.9, 0.9, 0.9)), ground_tone=0.75, bevel=0.4, light=1.1,
        tilt=0.8),
)
_OPEN_DOMAIN = (
    Product("woven_mesh", (1024, 1024), surfaces.mesh, _FULL, (dust, fibre, glare), (
        Look("broken_wire", "pit", (0.05, 0.06, 0.06), 1.0, aspect=2.2, ragged=0.1,
             angles=(0, 90)),),
        palette=((0.02, 0.02, 0.02), (0.85, 0.95, 1.0)), tilt=0.4),
)
# fmt: on

PRODUCTS = {product.name: product for product in (*_TRAIN, *_TEST, *_OPEN_DOMAIN)}
TRAIN_PRODUCTS, TEST_PRODUCTS, OPEN_DOMAIN_OBJECTS = (
    tuple(product.name for product in group) for group in (_TRAIN, _TEST, _OPEN_DOMAIN)
)
