"""Images and mask files of any common format as arrays; whatever cannot be read is a DataError that names the file.

Annotations refer to the stored pixels, so EXIF orientation is applied nowhere; see `datasets.orientation` for masks
that were drawn on the turned image.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import DataError
from utils.notices import warn_once

# Not all that Pillow knows: some of its formats start other programs.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
MOST_CLASSES = 32  # distinct values of a mask of classes; more are shades
_GRADED_FROM = {8: 128, 16: 128 * 257}  # bits: greatest value from which on a mask is black and white, not labels
_TIFF_ORIENTATION = 274
_ROWS = 256  # converted at once
_DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, ArithmeticError, AttributeError),
    *(AssertionError, RuntimeError, struct.error, zlib.error),
)
_LOG = logging.getLogger(__name__)
_most_pixels = 500_000_000
Image.MAX_IMAGE_PIXELS = None  # Pillow's own bound warns of what inspection cameras deliver; `limit_pixels` sets ours


def limit_pixels(count: int) -> None:
    """From here on refuse images of more than `count` pixels, in this process and those forked from it."""
    global _most_pixels
    _most_pixels = count


def most_pixels() -> int:
    """The number of pixels above which an image is refused."""
    return _most_pixels


def check_pixels(where: object, size: tuple[int, int]) -> None:
    """Raises DataError for a size (h, w) without pixels, or of more than `limit_pixels` has set. where: it stands."""
    if min(size) < 1:
        raise DataError(f"{where}: {size[0]} x {size[1]} pixels (h x w); expected at least 1 x 1, copy the file again")
    if size[0] * size[1] > _most_pixels:
        raise DataError(
            f"{where}: {size[0]} x {size[1]} pixels (h x w) are more than DATASET.max_pixels, {_most_pixels}; "
            "cut the image into parts, or raise DATASET.max_pixels where the memory suffices"
        )


def read_image(path: str | Path) -> np.ndarray:
    """Pixels of an image file, uint8 (h, w, 3) RGB, contiguous; of an animation or of several pages the first.

    Grey, palette and alpha images become RGB (alpha is dropped); 16-bit values v become v / 257, rounded.
    Raises DataError for a file that is missing, truncated, larger than DATASET.max_pixels or of a pixel type that has
    no 8-bit meaning.
    """
    with _opened(path) as image:
        pixels = _loaded(image)
        if pixels.mode.startswith("I"):
            return np.repeat(_eight_bits(np.asarray(pixels), path)[:, :, None], 3, axis=2)
        if pixels.mode == "F":
            raise DataError(f"{path}: floating point pixels have no fixed range; save the image with 8 or 16 bits")
        return _rgb(pixels)


def read_mask(path: str | Path) -> np.ndarray:
    """Binary mask of a mask file, uint8 (h, w) in {0, 1}: 1 where any colour channel (or the palette index) is not 0.

    A mask that reaches the upper half of its range and has shades below its greatest value was smoothed, or compressed
    with losses: it is cut at half of that value, with a warning. Raises DataError as read_image does.
    """
    values, is_index = _read_values(path)
    shades = values.max(axis=2) if values.ndim == 3 else values
    most = int(shades.max())
    if is_index or most < _GRADED_FROM.get(8 * shades.itemsize, most + 1) or _holds_few_colours(values):
        return (shades != 0).astype(np.uint8)
    between = np.count_nonzero(shades) - np.count_nonzero(shades == most)
    if between:
        share = 100 * between / shades.size
        warn_once(
            _LOG,
            f"{path}: {share:.2g} % of the mask's pixels lie between 0 and {most} (smoothed, or saved with losses): "
            f"those from {-(-most // 2)} on are taken for marked; save masks as PNG with two values",
        )
    return (shades >= most / 2).astype(np.uint8)


def read_labels(path: str | Path) -> np.ndarray:
    """Class values of a mask file, integers (h, w): grey values as stored, or palette indices.

    Raises DataError as read_image does, and for masks of true colours or of more than 32 values, which are no classes.
    """
    values, _ = _read_values(path)
    if values.ndim == 3:
        if (values != values[:, :, :1]).any():
            raise DataError(f"{path}: a coloured mask; expected class values as grey values or palette indices")
        values = values[:, :, 0]
    count = len(np.unique(values))
    if count > MOST_CLASSES:
        raise DataError(
            f"{path}: {count} different values in a mask of classes, of which {MOST_CLASSES} are the most: it was "
            "smoothed, or saved with losses (JPEG); save the classes as PNG, without resizing them smoothly"
        )
    return values


def image_size(path: str | Path) -> tuple[int, int]:
    """Size (h, w) in pixels from the header of the file, which is all that is read. Raises DataError as read_image."""
    with _opened(path) as image:
        width, height = image.size
        return height, width


def exif_orientation(path: str | Path, *, search: bool = False) -> int:
    """How a viewer turns the stored pixels, 1 (not at all) to 8, as EXIF numbers it; 1 where the file says nothing.

    search: also behind the pixels of a PNG file, through which it takes a walk. Raises DataError as read_image does.
    """
    with named_errors(path), _file(path) as image:
        if image.format == "PNG" and "exif" not in image.info and not (search and _may_tell_exif(path)):
            return 1
        try:
            found = _tiff_orientation(image) if image.format == "TIFF" else image.getexif().get(_TIFF_ORIENTATION, 1)
        except _DECODER_ERRORS:  # broken EXIF says nothing; the pixels may be whole
            return 1
    return found if found in range(1, 9) else 1


@contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Turns what a decoder stumbles over into a DataError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the data set's path and whether it was copied whole") from error
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; see to the permissions of the file and its folders") from error
    except MemoryError as error:
        raise DataError(
            f"{path}: does not fit into the memory; cut the image into parts, or lower DATASET.max_pixels to have "
            "such images refused"
        ) from error
    except _DECODER_ERRORS as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error!s:.300}); the file is broken, copy it again"
        ) from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    with named_errors(path):
        with _file(path) as image:
            turned = image.format == "TIFF" and _tiff_orientation(image) != 1
            if not turned:
                _check(image, path)
                yield image
        if turned:  # Pillow would turn the pixels, for TIFF alone
            with Image.open(io.BytesIO(_without_orientation(path)), formats=("TIFF",)) as image:
                _check(image, path)
                yield image


def _file(path: str | Path) -> Image.Image:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise DataError(f"{path}: not a file; put the image itself there")
    return Image.open(path, formats=FORMATS)


def _check(image: Image.Image, path: str | Path) -> None:
    check_pixels(path, image.size[::-1])
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        warn_once(_LOG, f"{path}: holds {frames} frames or pages, of which the first is used")


def _may_tell_exif(path: str | Path) -> bool:
    """Whether a PNG file has a chunk that may hold EXIF, wherever it stands; without decoding the pixels."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # and the checksum
    return False


def _tiff_orientation(image: Image.Image) -> int:
    return image.tag_v2.get(_TIFF_ORIENTATION, 1)


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


def _loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory, as they are stored."""
    image.load()
    image.info.pop("transparency", None)  # alpha is dropped; Pillow would warn about some of its forms
    return image


def _read_values(path: str | Path) -> tuple[np.ndarray, bool]:
    """Stored values: (h, w) for grey, palette and bit images, (h, w, 3) for colour, alpha dropped; and whether they are
    palette indices."""
    with _opened(path) as image:
        pixels = _loaded(image)
        is_index = pixels.mode in ("P", "PA")
        if pixels.mode == "F":
            raise DataError(f"{path}: a mask of floating point values; expected 8-bit grey values")
        if pixels.mode in ("LA", "PA"):
            return np.array(pixels)[:, :, 0], is_index
        if pixels.mode in ("1", "L", "P") or pixels.mode.startswith("I"):
            values = np.array(pixels)
            return values.astype(np.uint8) if values.dtype == bool else values, is_index
        return _rgb(pixels), is_index


def _holds_few_colours(values: np.ndarray) -> bool:
    """Whether values (h, w, 3) are a mask whose colours stand for classes: true colours, but few of them."""
    if values.ndim == 2:
        return False
    colours: set[int] = set()
    for top in range(0, len(values), _ROWS):  # in parts: four bytes a value are much for a large mask
        packed = values[top : top + _ROWS].astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        colours.update(np.unique(packed).tolist())
        if len(colours) > MOST_CLASSES:
            return False
    return any(colour % 0x010101 for colour in colours)  # one is not grey


def _rgb(pixels: Image.Image) -> np.ndarray:
    """Pixels as uint8 (h, w, 3), converted in parts: Pillow's copies of a large image would take twice its memory."""
    width, height = pixels.size
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        rgb[top : top + _ROWS] = pixels.crop((0, top, width, min(top + _ROWS, height))).convert("RGB")
    return rgb


def _eight_bits(values: np.ndarray, path: str | Path) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"{path}: 32-bit pixels outside 0..65535; save the image with 8 or 16 bits")
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):  # in parts: four bytes a pixel are much for a large image
        grey[top : top + _ROWS] = (values[top : top + _ROWS].astype(np.uint32) + 128) // 257
    return grey
