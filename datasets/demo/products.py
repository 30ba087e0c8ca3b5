"""The demo's products: surface, outline, palette, harmless marks and defect categories of each, as one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from datasets.demo import parts, surfaces
from datasets.demo.defects import Look

Palette = tuple[tuple[float, ...], tuple[float, ...]]
GREY: Palette = ((0.0,), (1.0,))


@dataclass(frozen=True)
class Product:
    """What all images of one product share. Palettes: colour (BGR or grey, 0..1) of the tones 0 and 1."""

    name: str
    size: tuple[int, int]  # height, width
    texture: Callable[..., np.ndarray]
    shape: Callable[..., np.ndarray]
    looks: tuple[Look, ...]
    marks: tuple[Callable[..., None], ...]
    palette: Palette = GREY
    ground: Palette = GREY  # behind the part
    ground_tone: float = 0.12
    bevel: float = 0.5  # brightness of the part's lit border
    light: float = -2.2  # direction towards which the light shines, radians
    tilt: float = 0.05  # spread of the part's rotation between images, radians


_TURNED = Product(
    "Turned_Flange",
    (1200, 1200),
    surfaces.turned,
    parts.flange,
    (
        Look("scratch", "scratch", (0.95,), 0.6, 0.25, 2.6, 0.03, instances=2),
        Look("dent", "dent", (0.25,), 0.2, 0.32, aspect=1.3, ragged=0.05),
    ),
    (parts.dust, parts.print_mark, parts.glare),
    light=0.7,
    tilt=0.5,
)
_MILLED = Product(
    "Milled_Bracket",
    (1100, 1500),
    surfaces.milled,
    parts.bracket,
    (
        Look("burr", "burr", (0.98,), 0.85, 0.5, 4.5, 0.16, 0.2, 110.0, at_edge=True, instances=2),
        Look("chip", "chip", (0.24,), 0.85, 0.25, ragged=0.2, at_edge=True),
    ),
    (parts.dust, parts.punch, parts.pen),
    ((0.05, 0.04, 0.03), (0.98, 0.95, 0.92)),
    ((0.1, 0.06, 0.04), (0.6, 0.4, 0.3)),
    light=0.9,
    tilt=0.12,
)
_BRUSHED = Product(
    "Brushed_Panel",
    (1000, 1700),
    surfaces.brushed,
    parts.panel,
    (
        Look("scratch", "scratch", (0.12,), 0.7, 0.2, 3.0, 0.02, instances=2),
        Look("stain", "stain", (0.3, 0.42, 0.5), 0.5, 0.02, ragged=0.22),
    ),
    (parts.dust, parts.print_mark, parts.label),
    ((0.08, 0.06, 0.05), (0.93, 0.9, 0.87)),
    ((0, 0, 0), (0.4, 0.4, 0.4)),
    light=1.2,
    tilt=0.01,
)
_CAST = Product(
    "Cast_Housing",
    (1200, 1500),
    surfaces.cast,
    parts.housing,
    (
        Look("porosity", "pit", (0.05,), 0.85, 0.3, ragged=0.12, cluster=7),
        Look("crack", "crack", (0.06,), 0.85, 0.12, 2.6, 0.14, 0.4),
    ),
    (parts.dust, parts.light_print, parts.pen),
    ((0.05, 0.06, 0.07), (0.85, 0.93, 0.97)),
    ((0.05, 0.05, 0.05), (0.5, 0.45, 0.4)),
    light=0.6,
)
_PAINTED = Product(
    "Painted_Cover",
    (1100, 1400),
    surfaces.painted,
    parts.tile,
    (
        Look("bubble", "bubble", (0.25, 0.16, 0.05), 0.35, 0.28, ragged=0.04, cluster=4),
        Look("scratch", "scratch", (0.82, 0.84, 0.84), 0.85, 0.15, 3.4, 0.06),
    ),
    (parts.dust, parts.light_print, parts.glare),
    ((0.12, 0.06, 0.0), (0.95, 0.75, 0.32)),
    ((0.2, 0.2, 0.2), (0.6, 0.6, 0.6)),
    0.3,
    light=1.0,
)
_TWILL = Product(
    "Twill_Fabric",
    (1024, 1280),
    partial(surfaces.woven, period=9.0, repeat=4, float_over=2),
    parts.full,
    (
        Look("missing_thread", "weave", (0.1, 0.05, 0.04), 0.75, 0.08, 7.0, 0.006, angles=(0, 90)),
        Look("oil_stain", "stain", (0.12, 0.12, 0.1), 0.45, ragged=0.2, instances=2),
    ),
    (parts.dust, parts.fibre, parts.label),
    ((0.16, 0.07, 0.05), (0.85, 0.6, 0.5)),
    tilt=0.2,
)
_TILE = Product(
    "Ceramic_Tile",
    (1300, 1300),
    surfaces.glazed,
    parts.tile,
    (
        Look("crack", "crack", (0.2, 0.22, 0.25), 0.75, 0.05, 2.0, 0.07, 0.15),
        Look("chip", "chip", (0.5, 0.62, 0.74), 0.95, 0.3, ragged=0.22, at_edge=True, instances=2),
    ),
    (parts.dust, parts.fibre, parts.glare),
    ((0.3, 0.38, 0.42), (0.93, 0.97, 0.98)),
    ((0.1, 0.1, 0.1), (0.9, 0.9, 0.9)),
    0.35,
    0.4,
    light=0.5,
)
_WOOD = Product(
    "Wood_Veneer",
    (1000, 1800),
    surfaces.wood,
    parts.full,
    (
        Look(
            "resin", "stain", (0.02, 0.1, 0.24), 0.75, -0.05, aspect=3.0, ragged=0.14, angles=(0,)
        ),
        Look("dent", "dent", (0.15, 0.22, 0.3), 0.35, 0.22, aspect=1.8, ragged=0.05, instances=2),
    ),
    (parts.dust, parts.pen, parts.print_mark),
    ((0.05, 0.14, 0.26), (0.62, 0.82, 0.97)),
    light=0.8,
    tilt=0.0,
)
_ROLLED = Product(
    "Rolled_Sheet",
    (1024, 1600),
    surfaces.rolled,
    parts.strip,
    (
        Look(
            "inclusion", "pit", (0.08,), 0.7, 0.1, aspect=4.5, ragged=0.15, cluster=3, angles=(90,)
        ),
        Look("pit", "pit", (0.16,), 0.65, 0.4, ragged=0.1, instances=3),
    ),
    (parts.dust, parts.print_mark, parts.label),
    bevel=0.3,
    light=0.4,
    tilt=0.02,
)
_GROUND = Product(
    "Ground_Ring",
    (1300, 1600),
    surfaces.honed,
    parts.ring,
    (
        Look("pit", "pit", (0.1,), 0.8, 0.35, ragged=0.2, cluster=3),
        Look("scratch", "scratch", (0.9,), 0.5, 0.4, 3.6, 0.12, instances=2),
    ),
    (parts.dust, parts.print_mark, parts.punch),
    ((0.1, 0.08, 0.06), (0.92, 0.94, 0.96)),
    ((0.02, 0.02, 0.02), (0.5, 0.5, 0.5)),
    light=2.4,
    tilt=1.0,
)
_SAND = Product(
    "Sand_Casting",
    (1200, 1400),
    surfaces.sand,
    parts.bracket,
    (
        Look("inclusion", "chip", (0.85,), 0.8, 0.25, aspect=1.4, ragged=0.28),
        Look("crack", "crack", (0.04,), 0.9, 0.2, 3.6, 0.1, 0.35),
    ),
    (parts.dust, parts.light_print, parts.pen),
    ground_tone=0.7,
    light=2.0,
    tilt=0.1,
)
_PLAIN = Product(
    "Plain_Weave",
    (1100, 1300),
    partial(surfaces.woven, period=14.0, contrast=0.13),
    parts.full,
    (
        Look("thick_thread", "weave", (0.86, 0.93, 0.95), 0.6, 0.2, 13.0, 0.006, angles=(0, 90)),
        Look("foreign_fibre", "scratch", (0.2, 0.16, 0.5), 0.8, 0.12, 3.6, 0.2, 0.1),
    ),
    (parts.dust, parts.print_mark, parts.label),
    ((0.3, 0.36, 0.4), (0.86, 0.93, 0.95)),
    tilt=0.25,
)
_MOULDED = Product(
    "Moulded_Cap",
    (1200, 1200),
    surfaces.moulded,
    partial(parts.flange, bore=0.1, bolts=4),
    (
        Look("burn", "stain", (0.04, 0.05, 0.08), 0.6, ragged=0.25),
        Look("chip", "chip", (0.3, 0.35, 0.75), 0.85, 0.3, ragged=0.3, at_edge=True, instances=2),
    ),
    (parts.dust, parts.light_print, parts.fibre),
    ((0.03, 0.05, 0.2), (0.3, 0.42, 0.98)),
    ((0.1, 0.1, 0.1), (0.9, 0.9, 0.9)),
    0.75,
    0.4,
    light=1.1,
    tilt=0.8,
)
_MESH = Product(
    "woven_mesh",
    (1024, 1024),
    surfaces.mesh,
    parts.full,
    (Look("broken_wire", "pit", (0.05, 0.06, 0.06), 1.0, aspect=2.2, ragged=0.1, angles=(0, 90)),),
    (parts.dust, parts.fibre, parts.glare),
    ((0.02, 0.02, 0.02), (0.85, 0.95, 1.0)),
    tilt=0.4,
)

_TRAIN = (_TURNED, _MILLED, _BRUSHED, _CAST, _PAINTED, _TWILL, _TILE, _WOOD, _ROLLED)
_TEST = (_GROUND, _SAND, _PLAIN, _MOULDED)
_OPEN = (_MESH,)

PRODUCTS = {product.name: product for product in (*_TRAIN, *_TEST, *_OPEN)}
TRAIN_PRODUCTS = tuple(product.name for product in _TRAIN)
TEST_PRODUCTS = tuple(product.name for product in _TEST)
OPEN_DOMAIN_OBJECTS = tuple(product.name for product in _OPEN)
