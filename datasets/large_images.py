"""Images read from top to bottom: small ones at once, large ones in strips, to bound the memory."""

from __future__ import annotations

import os
import weakref
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
    """An image whose rows are asked for from top to bottom.

    Args:
        image: a file, or its pixels (h, w, 3) uint8 RGB.

    Attributes:
        size: (h, w) in pixels.
        pixels: the whole image where it is in memory, else None.

    Raises:
        DataError: see `datasets.images.read_image`.
    """

    def __init__(self, image: str | os.PathLike | np.ndarray) -> None:
        self.path = None if isinstance(image, np.ndarray) else Path(image)
        self.pixels: np.ndarray | None = image if self.path is None else None
        self._decoder: _Decoder | None = None
        self.size = image.shape[:2] if self.path is None else image_size(self.path)
        if self.path is not None:
            if self.size[0] * self.size[1] > AT_ONCE:
                self._decoder = _in_strips(self.path, self.size)
            if self._decoder is None:
                self.pixels = read_image(self.path)
        self._is_constant = True  # so far
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
            piece = rows[start - top : end - top] = self._read(start, end)
            self._first = piece[0, 0].copy() if start == 0 else self._first
            self._is_constant = self._is_constant and bool((piece == self._first).all())
        if bottom == self.size[0]:
            if self._is_constant:
                warn_constant(str(self.path), self._first)
            # all is read: what is held for the next strip can go
            self._decoder, self._rows = None, rows[:0].copy()
        trim_heap()  # of what the decoder left
        return rows

    def thumbnail(self, side: int) -> np.ndarray:
        """The image shrunk by a whole number to at most `side` pixels, (h', w', 3) uint8 RGB.

        It is read once more.
        """
        step = -(-max(self.size) // side)
        anew = ImageStrips(self.path if self.pixels is None else self.pixels)
        width, parts = -(-self.size[1] // step), []
        for top in range(0, self.size[0], BLOCK * step):
            rows = anew.strip(top, min(top + BLOCK * step, self.size[0]))
            shape = width, -(-len(rows) // step)
            parts.append(cv2.resize(rows, shape, interpolation=cv2.INTER_AREA))
        return np.concatenate(parts)

    def _read(self, top: int, bottom: int) -> np.ndarray:
        try:
            pixels = self._decoder.rows(top, bottom)
        except pyvips.Error as error:
            raise DataError(f"{self.path}: {unreadable(self.path, error)}") from error
        return pixels[:, :, : 3 if pixels.shape[2] >= 3 else 1]  # alpha is dropped, grey is spread


class _Decoder:
    """A file that gives its rows in order, read as the decoder asks for bytes.

    Left to itself the decoder maps the file, and what was read of it stays in memory.
    Raises pyvips.Error where it cannot decode the file.
    """

    def __init__(self, path: Path) -> None:
        # the source is kept: the region calls it, but does not hold it
        file, self.source = path.open("rb"), pyvips.SourceCustom()
        weakref.finalize(self, file.close)
        self.source.on_read(file.read)
        self.source.on_seek(file.seek)
        options = {"access": "sequential", "fail_on": "truncated"}
        self.image = pyvips.Image.new_from_source(self.source, "", **options)
        self.region = pyvips.Region.new(self.image)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """(bottom - top, w, channels) uint8."""
        pixels = self.region.fetch(0, top, self.image.width, bottom - top)
        return np.frombuffer(pixels, np.uint8).reshape(bottom - top, self.image.width, -1)


def _in_strips(path: Path, size: tuple[int, int]) -> _Decoder | None:
    """The file, opened to be read in strips; None where that would not give read_image's pixels."""
    try:
        decoder = _Decoder(path)
    except pyvips.Error:
        return None
    image = decoder.image
    is_plain = image.format == "uchar" and image.interpretation in ("srgb", "b-w")
    return decoder if is_plain and (image.height, image.width) == size else None
