"""Images read from top to bottom: small ones at once, large ones in strips, to bound the memory."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyvips

from datasets.images import image_size, read_image, unreadable, warn_constant
from utils.errors import DataError
from utils.large_arrays import pages, trim_heap

AT_ONCE = 1 << 24  # pixels; larger files are read in strips
PIECE = 16  # rows per call of the decoder, which holds several copies of what it is asked for
BLOCK = 16  # rows of a thumbnail that are made at once


class ImageStrips:
    """An image, a file or its pixels (h, w, 3) uint8 RGB, whose rows are asked for from the top.

    `size` is (h, w); `pixels` the whole image where it is in memory, else None. Raises DataError as
    `datasets.images.read_image`.
    """

    def __init__(self, image: str | os.PathLike | np.ndarray) -> None:
        self.path = None if isinstance(image, np.ndarray) else Path(image)
        self.pixels: np.ndarray | None = image if self.path is None else None
        self.size = image.shape[:2] if self.path is None else image_size(self.path)
        self._decode: Callable[[int, int], np.ndarray] | None = None
        if self.path is not None and self.size[0] * self.size[1] > AT_ONCE:
            self._decode = _decoder(self.path, self.size)
        if self.path is not None and self._decode is None:
            self.pixels = read_image(self.path)
        self._is_constant = True  # so far
        self._thumbnails: dict[int, np.ndarray] = {}  # by how much smaller
        self._top, self._rows = 0, np.empty((0, self.size[1], 3), np.uint8)

    def strip(self, top: int, bottom: int) -> np.ndarray:
        """Rows top to bottom, (bottom - top, w, 3) uint8 RGB; neither may go back between calls."""
        if self.pixels is not None:
            return self.pixels[top:bottom]
        rows = pages((bottom - top, self.size[1], 3), np.uint8)
        held = self._rows[max(0, top - self._top) :]
        rows[: len(held)] = held
        done, self._top, self._rows = top + len(held), top, rows
        for start in range(done, bottom, PIECE):
            end = min(start + PIECE, bottom)
            piece = rows[start - top : end - top] = self._decode(start, end)
            self._first = piece[0, 0].copy() if start == 0 else self._first
            self._is_constant = self._is_constant and bool((piece == self._first).all())
        if bottom == self.size[0]:
            if self._is_constant:
                warn_constant(str(self.path), self._first)
            # all is read: what is held for the next strip can go
            self._decode, self._rows = None, rows[:0].copy()
        trim_heap()  # of what the decoder left
        return rows

    def thumbnail(self, side: int) -> np.ndarray:
        """The image, read anew where it is not in memory, shrunk by a whole number to at most
        `side`: (h', w', 3) uint8; its own pixels where they are as small."""
        if (step := -(-max(self.size) // side)) == 1 and self.pixels is not None:
            return self.pixels
        if step not in self._thumbnails:  # several memories may ask for it
            anew = ImageStrips(self.path if self.pixels is None else self.pixels)
            self._thumbnails[step] = shrunk(anew.strip, self.size, step)
        return self._thumbnails[step]


def shrunk(rows: Callable[[int, int], np.ndarray], size: tuple[int, int], step: int) -> np.ndarray:
    """An image of a size (h, w), whose rows (top, bottom) are asked for from the top, shrunk by a
    whole number: (h / step, w / step, ...), rounded up."""
    width, parts = -(-size[1] // step), []
    for top in range(0, size[0], BLOCK * step):
        block = rows(top, min(top + BLOCK * step, size[0]))
        shape = width, -(-len(block) // step)
        parts.append(cv2.resize(block, shape, interpolation=cv2.INTER_AREA))
    return np.concatenate(parts)


def _decoder(path: Path, size: tuple[int, int]) -> Callable[[int, int], np.ndarray] | None:
    """A function of (top, bottom) that decodes rows in order, (rows, w, 3 or 1) uint8.

    None where they would not be read_image's pixels. The file is read as the decoder asks for
    bytes: left to itself it maps the file, and what was read of it stays in memory.
    """
    file, source = path.open("rb"), pyvips.SourceCustom()
    source.on_read(file.read)
    source.on_seek(file.seek)
    try:
        image = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="truncated")
    except pyvips.Error:
        image = None
    is_plain = image and image.format == "uchar" and image.interpretation in ("srgb", "b-w")
    if not is_plain or (image.height, image.width) != size:
        file.close()
        return None
    # the region calls the source, but does not hold it
    held = pyvips.Region.new(image), source

    def rows(top: int, bottom: int) -> np.ndarray:
        try:
            pixels = held[0].fetch(0, top, size[1], bottom - top)
        except pyvips.Error as error:
            raise DataError(f"{path}: {unreadable(path, error)}") from error
        pixels = np.frombuffer(pixels, np.uint8).reshape(bottom - top, size[1], -1)
        return pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]  # alpha is dropped, grey is spread

    weakref.finalize(rows, file.close)
    return rows
