"""Pictures of what a method sees and says."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np

from utils.large_arrays import let_go
from utils.output_files import whole_file

PREDICTION = (255, 64, 64)
TRUTH = (64, 255, 64)
TYPES = (
    *((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167)),
    *((230, 159, 0), (86, 180, 233), (240, 228, 66), (128, 128, 128)),
)
PANEL = 640
ROWS = 64  # written at once


def overlay(
    image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = PREDICTION
) -> np.ndarray:
    """Tint a mask and draw its outline.

    Args:
        image: (h, w, 3) uint8 RGB.
        mask: (h, w) bool or {0, 1}.
        colour: RGB.

    Returns:
        (h, w, 3) uint8 RGB, a copy.
    """
    chosen = np.asarray(mask).astype(bool)
    # a table, for large images: pixels as floating point numbers take eight times the memory
    table = (
        (0.6 * np.arange(256)[:, None] + 0.4 * np.array(colour)).astype(np.uint8).reshape(256, 1, 3)
    )
    return outline(np.where(chosen[:, :, None], cv2.LUT(image, table), image), chosen, colour)


def overlay_labels(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Tint several types of defect, each in a colour of its own, and explain the colours in a bar below.

    Args:
        image: (h, w, 3) uint8 RGB.
        labels: (h, w) uint8, 0 background, i the i-th type.
        names: of the types.

    Returns:
        (h + bar, w, 3) uint8 RGB.
    """
    for number in range(1, len(names) + 1):
        mask = labels == number
        if mask.any():
            image = overlay(image, mask, colour_of(number))
    return np.concatenate([image, legend(names, image.shape[1])])


def colour_of(number: int) -> tuple[int, int, int]:
    """Colour of type `number`, from 1: eight that colour-blind people tell apart (Okabe and Ito), then again."""
    return TYPES[(number - 1) % len(TYPES)]


def legend(names: Sequence[str], width: int) -> np.ndarray:
    """A bar `width` pixels wide with the colour of each name, (h, width, 3) uint8 RGB; as many rows as it needs."""
    scale = max(0.4, width / 1600)
    height, thick = round(36 * scale), max(1, round(scale))
    rows, left = [np.full((height, width, 3), 255, np.uint8)], 0
    for number, name in enumerate(names, 1):
        name = drawable(name)
        text = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)[0][0]
        needed = text + round(1.7 * height)
        if left and left + needed > width:
            rows, left = [*rows, np.full((height, width, 3), 255, np.uint8)], 0
        pad = height // 5
        cv2.rectangle(
            rows[-1], (left + pad, pad), (left + height - pad, height - pad), colour_of(number), -1
        )
        place = (left + height, height - round(0.3 * height))
        cv2.putText(
            rows[-1], name, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), thick, cv2.LINE_AA
        )
        left += needed
    return np.concatenate(rows)


def drawable(text: str) -> str:
    """Text as OpenCV takes it: printable, and UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in text)


def outline(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Draw the contours of a mask into a copy of an RGB image, at least two pixels wide once it is shown small."""
    contours, _ = cv2.findContours(
        np.asarray(mask).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
    )
    width = max(1, round(max(image.shape[:2]) / PANEL))
    return cv2.drawContours(np.ascontiguousarray(image.copy()), contours, -1, colour, width)


def heat(score: np.ndarray) -> np.ndarray:
    """A (h, w) score in [0, 1] as colours, (h, w, 3) uint8 RGB."""
    levels = (np.clip(score, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def panels(pictures: list[tuple[str, np.ndarray]], height: int = PANEL) -> np.ndarray:
    """Pictures side by side, each with its caption, scaled to one height: list of (caption, RGB) to (H, W, 3) uint8."""
    return np.concatenate(
        [_captioned(caption, picture, height) for caption, picture in pictures], axis=1
    )


def _captioned(caption: str, picture: np.ndarray, height: int) -> np.ndarray:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    width, rows = (
        (width, height) if width <= 3 * height else (3 * height, round(height * 3 * height / width))
    )
    method = cv2.INTER_AREA if rows < picture.shape[0] else cv2.INTER_NEAREST
    small = cv2.resize(picture, (width, rows), interpolation=method)
    canvas = np.full((height + 28, width + 4, 3), 255, np.uint8)
    canvas[28 : 28 + rows, 2 : 2 + width] = small
    return cv2.putText(
        canvas,
        drawable(caption),
        (6, 20),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.55,
        (0, 0, 0),
        1,
        cv2.LINE_AA,
    )


def write_image(path: Path, image: np.ndarray) -> None:
    """Write PNG: (h, w) uint8 or uint16, or (h, w, 3) uint8 RGB; (h, w) in a temporary file is written in pieces.

    Raises:
        OutputError: the file cannot be written; it is there whole or not at all.
    """
    with whole_file(path) as file:
        if isinstance(image, np.memmap):
            _write_in_pieces(file, image)
        else:
            coded = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            file.write(
                cv2.imencode(path.suffix, coded)[1].data
            )  # OpenCV itself opens no name that is not UTF-8


def _write_in_pieces(file: BinaryIO, image: np.memmap) -> None:
    """Write grey values as PNG without ever holding them as a whole, which no imaging library here does."""
    size, coder = struct.pack(">II", image.shape[1], image.shape[0]), zlib.compressobj(1)
    file.write(
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", size + bytes([8 * image.itemsize, 0, 0, 0, 0]))
    )
    for top in range(0, len(image), ROWS):
        values = image[top : top + ROWS].astype(image.dtype.newbyteorder(">")).view(np.uint8)
        rows = np.pad(values, ((0, 0), (1, 0)))  # a 0 before each row: stored as it is
        file.write(_chunk(b"IDAT", coder.compress(rows.tobytes())))
        let_go(image)
    file.write(_chunk(b"IDAT", coder.flush()) + _chunk(b"IEND", b""))


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file: length, kind, content, checksum."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
