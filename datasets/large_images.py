"""Images read from top to bottom: small ones at once, large ones in strips, so that they do not fill the memory."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

import cv2
import numpy as np
import pyvips

from datasets.image_faults import cause
from datasets.images import image_size, read_image, tell_constant
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
        self._file: _Decoder | None = None
        if self.path is not None:
            self.size = image_size(self.path)
            self._file = _in_strips(self.path) if self.size[0] * self.size[1] > AT_ONCE else None
            if self._file is None:
                self.pixels = read_image(self.path)
        if self.pixels is not None:
            self.size = self.pixels.shape[:2]
        self._constant = True  # so far
        self._top = 0
        self._rows = np.empty((0, self.size[1], 3), np.uint8)

    def strip(self, top: int, bottom: int) -> np.ndarray:
        """Rows top to bottom, (bottom - top, w, 3) uint8 RGB; neither may be less than in the call before."""
        if self.pixels is not None:
            return self.pixels[top:bottom]
        rows = pages((bottom - top, self.size[1], 3), np.uint8)
        known = (
            self._rows[top - self._top :] if top < self._top + len(self._rows) else self._rows[:0]
        )
        rows[: len(known)] = known
        done, self._top, self._rows = top + len(known), top, rows
        for start in range(done, bottom, PIECE):
            end = min(start + PIECE, bottom)
            piece = rows[start - top : end - top] = self._read(start, end)
            self._first = piece[0, 0] if start == 0 else self._first
            self._constant = self._constant and bool((piece == self._first).all())
        if bottom == self.size[0]:
            if self._constant:
                tell_constant(str(self.path), self._first)
            self._file, self._rows = (
                None,
                rows[:0].copy(),
            )  # all is read: what is held for the next strip can go
        trim_heap()  # of what the decoder left
        return rows

    def thumbnail(self, side: int) -> np.ndarray:
        """The image shrunk by a whole number to at most `side` pixels, (h', w', 3) uint8 RGB, read once more."""
        step = -(-max(self.size) // side)
        anew = ImageStrips(self.path if self.pixels is None else self.pixels)
        width = -(-self.size[1] // step)
        parts = []
        for top in range(0, self.size[0], BLOCK * step):
            rows = anew.strip(top, min(top + BLOCK * step, self.size[0]))
            parts.append(
                cv2.resize(rows, (width, -(-len(rows) // step)), interpolation=cv2.INTER_AREA)
            )
        return np.concatenate(parts)

    def _read(self, top: int, bottom: int) -> np.ndarray:
        try:
            pixels = self._file.rows(top, bottom)
        except pyvips.Error as error:
            raise DataError(f"{self.path}: {cause(self.path, error)}") from error
        return (
            pixels[:, :, :3] if pixels.shape[2] >= 3 else pixels[:, :, :1]
        )  # alpha is dropped, grey is spread


class _Decoder:
    """A file that gives its rows in order, read as the decoder asks for bytes: left to itself it maps the file, and
    what was read of it stays in memory.

    Raises:
        pyvips.Error: the file is no image that it can decode.
    """

    def __init__(self, path: Path) -> None:
        file, self.source = (
            path.open("rb"),
            pyvips.SourceCustom(),
        )  # kept: the region calls it, but does not hold it
        weakref.finalize(self, file.close)
        self.source.on_read(file.read)
        self.source.on_seek(file.seek)
        self.image = pyvips.Image.new_from_source(
            self.source, "", access="sequential", fail_on="truncated"
        )
        self.region = pyvips.Region.new(self.image)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """(bottom - top, w, channels) uint8."""
        pixels = self.region.fetch(0, top, self.image.width, bottom - top)
        return np.frombuffer(pixels, np.uint8).reshape(bottom - top, self.image.width, -1)


def _in_strips(path: Path) -> _Decoder | None:
    """The file, opened for reading in strips; None where only a reading at once gives the pixels of `read_image`."""
    try:
        decoder = _Decoder(path)
    except pyvips.Error:
        return None
    image = decoder.image
    plain = (
        image.format == "uchar"
        and image.interpretation in ("srgb", "b-w")
        and (image.height, image.width)
    )
    return decoder if plain == image_size(path) else None
