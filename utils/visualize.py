"""Pictures of what a method sees and answers; all are uint8 RGB (h, w, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import pyvips

from utils.large_arrays import let_go
from utils.output_files import whole_file

Colour = tuple[int, int, int]
PREDICTION: Colour = (255, 64, 64)
TRUTH: Colour = (64, 255, 64)
# colours that colour-blind people tell apart (Okabe and Ito)
TYPES = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167),
         (230, 159, 0), (86, 180, 233), (240, 228, 66), (128, 128, 128))  # fmt: skip
PANEL = 640  # pixels, height of a panel


def overlay(image: np.ndarray, mask: np.ndarray, colour: Colour = PREDICTION) -> np.ndarray:
    """Tint a mask, (h, w) bool or {0, 1}, in a copy of an image and draw its outline."""
    marked = mask.astype(bool)
    # a table of the 256 levels: large images as floating point numbers take 8 times the memory
    levels = (0.6 * np.arange(256)[:, None] + 0.4 * np.array(colour)).astype(np.uint8)
    tinted = cv2.LUT(image, levels.reshape(256, 1, 3))
    return outline(np.where(marked[:, :, None], tinted, image), marked, colour)


def outline(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """Draw the contours of a mask into a copy of an image, so wide that they show in a panel."""
    marked, method = mask.astype(np.uint8), cv2.CHAIN_APPROX_NONE
    contours, _ = cv2.findContours(marked, cv2.RETR_LIST, method)
    width = max(1, round(max(image.shape[:2]) / PANEL))
    return cv2.drawContours(np.ascontiguousarray(image.copy()), contours, -1, colour, width)


def overlay_labels(image: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Tint several types of defect, each in its colour, above a bar that explains the colours;
    `labels` is (h, w) uint8, 0 background, i the type with the i-th name."""
    for number in range(1, len(names) + 1):
        if (labels == number).any():
            image = overlay(image, labels == number, colour_of(number))
    return np.concatenate([image, legend(names, image.shape[1])])


def colour_of(number: int) -> Colour:
    """Colour of type `number`, counted from 1; they repeat after the last."""
    return TYPES[(number - 1) % len(TYPES)]


def legend(names: Sequence[str], width: int) -> np.ndarray:
    """A bar `width` pixels wide with the colour of each name, with as many rows as it needs."""
    scale = max(0.4, width / 1600)
    height, thick, left = round(36 * scale), max(1, round(scale)), 0
    pad, font = height // 5, cv2.FONT_HERSHEY_SIMPLEX
    rows = [np.full((height, width, 3), 255, np.uint8)]
    for number, name in enumerate(map(drawable, names), 1):
        needed = cv2.getTextSize(name, font, scale, thick)[0][0] + round(1.7 * height)
        if left and left + needed > width:
            rows, left = [*rows, np.full((height, width, 3), 255, np.uint8)], 0
        corners = (left + pad, pad), (left + height - pad, height - pad)
        cv2.rectangle(rows[-1], *corners, colour_of(number), -1)
        place = (left + height, height - round(0.3 * height))
        cv2.putText(rows[-1], name, place, font, scale, (0, 0, 0), thick, cv2.LINE_AA)
        left += needed
    return np.concatenate(rows)


def drawable(text: str) -> str:
    """Text as OpenCV takes it: printable, and UTF-8."""
    return "".join(c if c.isprintable() else "?" for c in text)


def heat(score: np.ndarray) -> np.ndarray:
    """A (h, w) score in [0, 1] as colours."""
    levels = (np.clip(score, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


def panels(pictures: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Pictures with their captions side by side, scaled to one height or three times that width."""
    canvases = []
    for caption, picture in pictures:
        scale = min(PANEL / picture.shape[0], 3 * PANEL / picture.shape[1])
        rows, columns = (max(1, round(scale * n)) for n in picture.shape[:2])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
        small = cv2.resize(picture, (columns, rows), interpolation=method)
        canvas = np.full((PANEL + 28, columns + 4, 3), 255, np.uint8)
        canvas[28 : 28 + rows, 2 : 2 + columns] = small
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(canvas, drawable(caption), (6, 20), font, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        canvases.append(canvas)
    return np.concatenate(canvases, axis=1)


def write_image(path: Path, image: np.ndarray) -> None:
    """Write PNG or JPEG, by the suffix: (h, w) uint8 or uint16, or (h, w, 3) uint8 RGB.

    A map in a temporary file is written, as PNG, without being held as a whole.

    Raises:
        OutputError: the file cannot be written; it is there whole or not at all.
    """
    with whole_file(path) as file:
        if isinstance(image, np.memmap):
            _write_map(file, image)
        else:  # OpenCV itself opens no name that is not UTF-8
            coded = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            options = [cv2.IMWRITE_JPEG_QUALITY, 90] if path.suffix == ".jpg" else []
            file.write(cv2.imencode(path.suffix, coded, options)[1].data)


def _write_map(file: BinaryIO, image: np.memmap) -> None:
    """Write (h, w) uint8 or uint16 as PNG; with each piece written the map's pages leave memory."""
    faults: list[BaseException] = []

    def write(piece: bytes) -> int:
        let_go(image)
        try:
            return file.write(piece)
        except BaseException as error:  # it would get lost in the library, which is in C
            faults.append(error)
            return -1

    target = pyvips.TargetCustom()
    target.on_write(write)
    kind, space = ("uchar", "b-w") if image.dtype == np.uint8 else ("ushort", "grey16")
    picture = pyvips.Image.new_from_memory(image.data, image.shape[1], image.shape[0], 1, kind)
    try:
        picture.copy(interpretation=space).pngsave_target(target, compression=1, filter="none")
    except pyvips.Error as error:
        raise (faults or [error])[0] from error
