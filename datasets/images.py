"""Images and mask files of any common format as arrays; whatever cannot be read is a DataError that names the file.

Annotations refer to the stored pixels, so EXIF orientation is applied nowhere.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import DataError

_MAX_PIXELS = 1_000_000_000  # inspection cameras deliver 100 megapixels and more, which Pillow takes for an attack
_TIFF_ORIENTATION = 274
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, TypeError, EOFError, OverflowError, struct.error)
Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, _MAX_PIXELS)


def read_image(path: str | Path) -> np.ndarray:
    """Pixels of an image file, uint8 (h, w, 3) RGB, contiguous.

    Grey, palette and alpha images become RGB (alpha is dropped); 16-bit values v become v / 257, rounded.
    Raises DataError for a file that is missing, truncated or of a pixel type that has no 8-bit meaning.
    """
    pixels = _load(path)
    if pixels.mode.startswith("I"):
        return np.repeat(_eight_bits(np.array(pixels), path)[:, :, None], 3, axis=2)
    if pixels.mode == "F":
        raise DataError(f"{path}: floating point pixels have no fixed range; save the image with 8 or 16 bits")
    return np.array(pixels.convert("RGB"))


def read_mask(path: str | Path) -> np.ndarray:
    """Binary mask of a mask file, uint8 (h, w) in {0, 1}: 1 where any colour channel (or the palette index) is not 0.

    Raises DataError as read_image does.
    """
    marked = _read_values(path) != 0
    return (marked.any(axis=2) if marked.ndim == 3 else marked).astype(np.uint8)


def read_labels(path: str | Path) -> np.ndarray:
    """Class values of a mask file, integers (h, w): grey values as stored, or palette indices.

    Raises DataError as read_image does, and for a mask of true colours, which are no class values.
    """
    values = _read_values(path)
    if values.ndim == 2:
        return values
    if (values != values[:, :, :1]).any():
        raise DataError(f"{path}: a coloured mask; expected class values as grey values or palette indices")
    return values[:, :, 0]


def image_size(path: str | Path) -> tuple[int, int]:
    """Size (h, w) in pixels from the header of the file, which is all that is read. Raises DataError as read_image."""
    with _opened(path) as image:
        width, height = image.size
        return height, width


def contradicts(path: str | Path, size: tuple[int, int]) -> bool:
    """Whether an image's header says another size (h, w). A file that cannot be read contradicts nothing: whoever
    needs its pixels reports it, so that one broken image does not stop the reading of an index."""
    try:
        return image_size(path) != size
    except DataError:
        return False


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            turned = image.format == "TIFF" and image.tag_v2.get(_TIFF_ORIENTATION, 1) != 1
            if not turned:
                yield image
        if turned:  # Pillow would turn the pixels, for TIFF alone
            with Image.open(io.BytesIO(_without_orientation(path))) as image:
                yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the data set's path and whether it was copied whole") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; cut the image into parts of at most {_MAX_PIXELS} pixels") from error
    except _DECODER_ERRORS as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); the file is broken, copy it again") from error


def _without_orientation(path: str | Path) -> bytearray:
    """Content of a TIFF file whose orientation tag is set to 1, none."""
    content = bytearray(Path(path).read_bytes())
    order = "<" if content[:2] == b"II" else ">"
    magic, offset = struct.unpack_from(f"{order}HI", content, 2)
    if magic != 42:
        raise DataError(f"{path}: a BigTIFF with an orientation tag; save the image without the tag")
    (count,) = struct.unpack_from(f"{order}H", content, offset)
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}H", content, entry) == (_TIFF_ORIENTATION,):
            struct.pack_into(f"{order}H", content, entry + 8, 1)
    return content


def _load(path: str | Path) -> Image.Image:
    """The image with its pixels in memory, as they are stored."""
    with _opened(path) as image:
        image.load()
        image.info.pop("transparency", None)  # alpha is dropped; Pillow would warn about some of its forms
        return image


def _read_values(path: str | Path) -> np.ndarray:
    """Stored values: (h, w) for grey, palette and bit images, (h, w, 3) for colour; alpha is dropped."""
    pixels = _load(path)
    if pixels.mode == "F":
        raise DataError(f"{path}: a mask of floating point values; expected 8-bit grey values")
    if pixels.mode in ("LA", "PA"):
        return np.array(pixels)[:, :, 0]
    if pixels.mode in ("1", "L", "P") or pixels.mode.startswith("I"):
        values = np.array(pixels)
        return values.astype(np.uint8) if values.dtype == bool else values
    return np.array(pixels.convert("RGB"))


def _eight_bits(values: np.ndarray, path: str | Path) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path}: 32-bit pixels outside 0..65535; save the image with 8 or 16 bits")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
