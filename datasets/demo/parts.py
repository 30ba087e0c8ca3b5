"""Outlines of the demo parts and the harmless things on them: bores, slots, print, labels, dust, pen strokes, glare.

A shape is a function (rng, frame) -> mask, uint8 (h, w), 255 on the part and soft at its border. A distractor is a
function (rng, image, room) that draws into the image, float32 (h, w, c) with tones 0..1; `room`, uint8 (h, w), is not 0
where the part is bare, and what hides the surface takes its place away from it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from datasets.demo.noise import blur, value_noise
from datasets.demo.surfaces import Frame


def _at(frame: Frame, x: float, y: float) -> tuple[int, int]:
    """Pixel of a point given relative to the part's centre, in the part's rotated frame."""
    c, s = math.cos(frame.angle), math.sin(frame.angle)
    return round(frame.cx + c * x - s * y), round(frame.cy + s * x + c * y)


def _polygon(
    mask: np.ndarray, frame: Frame, corners: list[tuple[float, float]], value: int
) -> None:
    cv2.fillPoly(mask, [np.array([_at(frame, *p) for p in corners], np.int32)], value, cv2.LINE_AA)


def _hole(mask: np.ndarray, frame: Frame, x: float, y: float, radius: float) -> None:
    cv2.circle(mask, _at(frame, x, y), round(radius), 0, -1, cv2.LINE_AA)


def full(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """The surface fills the picture."""
    return np.full((frame.h, frame.w), 255, np.uint8)


def flange(
    rng: np.random.Generator, frame: Frame, bore: float = 0.17, bolts: int = 6
) -> np.ndarray:
    """Disc with a central bore and a circle of bolt holes."""
    mask = np.zeros((frame.h, frame.w), np.uint8)
    radius = 0.47 * min(frame.h, frame.w)
    cv2.circle(mask, _at(frame, 0, 0), round(radius), 255, -1, cv2.LINE_AA)
    _hole(mask, frame, 0, 0, bore * 2 * radius)
    for k in range(bolts):
        turn = 2 * math.pi * k / bolts
        _hole(
            mask,
            frame,
            0.76 * radius * math.cos(turn),
            0.76 * radius * math.sin(turn),
            0.065 * radius,
        )
    return mask


def ring(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Wide ring with one keyway, larger than the picture is high."""
    mask = np.zeros((frame.h, frame.w), np.uint8)
    radius = 0.56 * max(frame.h, frame.w)
    cv2.circle(mask, _at(frame, 0, 0), round(radius), 255, -1, cv2.LINE_AA)
    _hole(mask, frame, 0, 0, 0.42 * radius)
    key, top = 0.07 * radius, 0.5 * radius
    _polygon(mask, frame, [(-key, 0), (key, 0), (key, -top), (-key, -top)], 0)
    return mask


def bracket(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Stepped plate with two slots and three bores."""
    w, h = 0.43 * frame.w, 0.40 * frame.h
    mask = np.zeros((frame.h, frame.w), np.uint8)
    outline = [
        (-w, -h),
        (0.35 * w, -h),
        (0.5 * w, -0.6 * h),
        (w, -0.6 * h),
        (w, h),
        (-0.7 * w, h),
        (-w, 0.6 * h),
    ]
    _polygon(mask, frame, outline, 255)
    for x in (-0.55, 0.35):
        ends = _at(frame, x * w, 0.15 * h), _at(frame, (x + 0.3) * w, 0.15 * h)
        cv2.line(mask, *ends, 0, max(8, round(0.16 * h)), cv2.LINE_AA)
    for x, y in ((-0.8, -0.75), (0.78, 0.75), (0.1, -0.7)):
        _hole(mask, frame, x * w, y * h, 0.09 * h)
    return mask


def housing(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Block that leaves the picture on one side, with one large port and two small ones."""
    w, h = 0.46 * frame.w, 0.8 * frame.h
    mask = np.zeros((frame.h, frame.w), np.uint8)
    _polygon(mask, frame, [(-w, -0.42 * frame.h), (w, -0.42 * frame.h), (w, h), (-w, h)], 255)
    _hole(mask, frame, 0.35 * w, -0.05 * frame.h, 0.16 * frame.h)
    for x in (-0.75, -0.45):
        _hole(mask, frame, x * w, -0.28 * frame.h, 0.035 * frame.h)
    return mask


def panel(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Sheet that fills the picture, with a row of vents and two screw holes."""
    mask = full(rng, frame)
    for k in range(5):
        x = (0.14 + 0.05 * k) * frame.w
        cv2.line(
            mask, _at(frame, x, -0.2 * frame.h), _at(frame, x, 0.02 * frame.h), 0, 16, cv2.LINE_AA
        )
    for y in (-0.36, 0.36):
        _hole(mask, frame, -0.42 * frame.w, y * frame.h, 0.022 * frame.w)
    return mask


def tile(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Square slab with a small border of ground around it."""
    mask = np.zeros((frame.h, frame.w), np.uint8)
    w, h = 0.455 * frame.w, 0.455 * frame.h
    _polygon(mask, frame, [(-w, -h), (w, -h), (w, h), (-w, h)], 255)
    return mask


def strip(rng: np.random.Generator, frame: Frame) -> np.ndarray:
    """Band that runs through the picture from left to right."""
    mask = np.zeros((frame.h, frame.w), np.uint8)
    w, h = frame.w, 0.40 * frame.h
    _polygon(mask, frame, [(-w, -h), (w, -h), (w, h), (-w, h)], 255)
    return mask


def _blend(
    image: np.ndarray, cover: np.ndarray, tone: float | tuple[float, ...], x: int, y: int
) -> None:
    """Mix `tone` into the window at (x, y); cover float32 (h, w) in 0..1; windows past the border are cut."""
    h, w = min(cover.shape[0], image.shape[0] - y), min(cover.shape[1], image.shape[1] - x)
    if h <= 0 or w <= 0:
        return
    window, cover = image[y : y + h, x : x + w], cover[:h, :w, None]
    window += cover * (np.asarray(tone, np.float32) - window)


def _anywhere(rng: np.random.Generator, room: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Top left corner (x, y) of a window (h, w) that may lie across the part's border."""
    return int(rng.integers(0, max(1, room.shape[1] - size[1]))), int(
        rng.integers(0, max(1, room.shape[0] - size[0]))
    )


def _place(
    rng: np.random.Generator,
    image: np.ndarray,
    room: np.ndarray,
    layers: list[tuple[np.ndarray, float | tuple]],
) -> None:
    """Blend layers (cover, tone) of one size into a bare window and take it; give up where a few draws find none."""
    h, w = layers[0][0].shape
    for _ in range(25):
        x, y = _anywhere(rng, room, (h, w))
        window = room[y : y + h, x : x + w]
        if window.shape == (h, w) and window.all():
            for cover, tone in layers:
                _blend(image, cover, tone, x, y)
            window[:] = 0
            return


def dust(rng: np.random.Generator, image: np.ndarray, room: np.ndarray) -> None:
    """A dozen specks and a lint fibre, lighter than the ground and slightly out of focus."""
    for _ in range(int(rng.integers(6, 16))):
        cover = np.zeros((15, 15), np.uint8)
        axes = (int(rng.integers(1, 4)), int(rng.integers(1, 3)))
        cv2.ellipse(cover, (7, 7), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
        soft = blur(cover.astype(np.float32) / 255, 0.9) * np.float32(rng.uniform(0.3, 0.7))
        _blend(image, soft, 0.92, *_anywhere(rng, room, (15, 15)))


def fibre(rng: np.random.Generator, image: np.ndarray, room: np.ndarray) -> None:
    """A curled hair of one pixel's width lying on the part."""
    t = np.linspace(0, 1, 40)
    loops = rng.uniform(0.6, 1.6) * 2 * math.pi
    x = 60 + 38 * np.cos(loops * t) + 25 * t
    y = 60 + 32 * np.sin(loops * t + rng.uniform(0, 6)) - 25 * t
    cover = np.zeros((130, 130), np.uint8)
    cv2.polylines(
        cover, [np.stack([x, y], -1).round().astype(np.int32)], False, 255, 1, cv2.LINE_AA
    )
    _place(
        rng, image, room, [(cover.astype(np.float32) / 255 * 0.6, float(rng.choice([0.08, 0.95])))]
    )


def print_mark(
    rng: np.random.Generator, image: np.ndarray, room: np.ndarray, tone: float = 0.12
) -> None:
    """Two printed lines: a part number and a date code."""
    size = max(image.shape[:2]) / 1500
    cover = np.zeros((round(130 * size), round(470 * size)), np.uint8)
    number = f"{'ABKTRX'[rng.integers(6)]}{rng.integers(100, 999)}-{rng.integers(10, 99)}"
    for line, text, scale in (
        (0.42, number, 1.7),
        (0.85, f"LOT {rng.integers(10000, 99999)}", 1.1),
    ):
        at = (8, round(cover.shape[0] * line))
        cv2.putText(
            cover,
            text,
            at,
            cv2.FONT_HERSHEY_SIMPLEX,
            scale * size,
            255,
            max(2, round(3 * size)),
            cv2.LINE_AA,
        )
    worn = np.clip(0.85 + 0.12 * value_noise(rng, *cover.shape, 9), 0, 1)
    _place(rng, image, room, [(blur(cover.astype(np.float32) / 255, 0.8) * worn, tone)])


def light_print(rng: np.random.Generator, image: np.ndarray, room: np.ndarray) -> None:
    """The same print in white."""
    print_mark(rng, image, room, 0.9)


def label(rng: np.random.Generator, image: np.ndarray, room: np.ndarray) -> None:
    """Paper sticker with a bar code and its soft shadow."""
    w, h = (int(v * max(image.shape[:2]) / 1500) for v in (200, 110))
    shadow, paper, bars = (np.zeros((h + 16, w + 16), np.float32) for _ in range(3))
    shadow[6:-4, 6:-4] = 0.5
    paper[6:-10, 4:-12] = 0.97
    stripes = np.repeat(rng.random((w - 30) // 4) < 0.5, 4)
    bars[18 : 18 + h // 2, 16 : 16 + len(stripes)] = stripes * 0.9
    _place(rng, image, room, [(blur(shadow, 3), 0.05), (paper, 0.86), (bars, 0.1)])


def pen(rng: np.random.Generator, image: np.ndarray, room: np.ndarray) -> None:
    """Inspector's check mark in felt pen."""
    size = max(image.shape[:2]) / 1500
    points = (
        np.array([(20, 70), (50, 110), (120, 15)]) * size
        + rng.normal(0, 6 * size, (3, 2))
        + 8 * size
    )
    cover = np.zeros((round(140 * size), round(150 * size)), np.uint8)
    cv2.polylines(
        cover, [points.round().astype(np.int32)], False, 255, max(3, round(9 * size)), cv2.LINE_AA
    )
    tone = (0.55, 0.2, 0.1) if image.shape[2] == 3 else 0.2
    _place(rng, image, room, [(blur(cover.astype(np.float32) / 255, 1.0) * 0.75, tone)])


def glare(rng: np.random.Generator, image: np.ndarray, room: np.ndarray) -> None:
    """Soft round reflection of a lamp."""
    side = int(rng.uniform(0.12, 0.25) * min(image.shape[:2]))
    t = np.linspace(-2.6, 2.6, side, dtype=np.float32)
    bump = np.exp(-np.square(t))
    _blend(image, 0.35 * bump[:, None] * bump[None], 1.0, *_anywhere(rng, room, (side, side)))


def punch(rng: np.random.Generator, image: np.ndarray, room: np.ndarray) -> None:
    """Two stamped gauge marks: small circles with a bright and a dark half."""
    for _ in range(2):
        dark, bright = np.zeros((2, 61, 61), np.uint8)
        cv2.circle(dark, (29, 29), 22, 255, 3, cv2.LINE_AA)
        cv2.circle(bright, (31, 31), 22, 255, 3, cv2.LINE_AA)
        layers = [
            (dark.astype(np.float32) / 255 * 0.55, 0.1),
            (bright.astype(np.float32) / 255 * 0.45, 0.95),
        ]
        _place(rng, image, room, layers)
