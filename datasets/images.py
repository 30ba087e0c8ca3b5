"""Images as arrays, whatever way they come in: files of any common format, PIL images, arrays. What cannot be read, or
cannot be meant, is a DataError that names it.

Annotations refer to the stored pixels, so EXIF orientation is applied nowhere; see `datasets.orientation` for masks
that were drawn on the turned image.
"""

from __future__ import annotations

import io
import logging
import os
import stat
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from datasets.image_faults import DECODER_ERRORS, named_errors, shown
from utils.errors import DataError
from utils.warn_once import warn_once

Picture = str | os.PathLike | Image.Image | np.ndarray
# Not all that Pillow knows: some of its formats start other programs.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
ROWS = 256  # converted at once
_PIXELS = (
    np.bool_,
    np.uint8,
    np.uint16,
    np.int32,
)  # of arrays; int32 is what Pillow makes of 32-bit files
_HOT = 1e-4  # share of the pixels of a camera that may be stuck, but one at least
_MARKED = 0.05  # share that a mark burnt into the image at 65535 may take
_FULL_RANGE = 1 << 14  # 16-bit images without any value from here on leave two bits or more unused
_TIFF_ORIENTATION = 274
_LOG = logging.getLogger(__name__)
_most_pixels = 500_000_000
Image.MAX_IMAGE_PIXELS = (
    None  # Pillow's own bound warns of what inspection cameras deliver; `limit_pixels` sets ours
)


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
        raise DataError(f"{where}: {size[0]} x {size[1]} pixels (h x w); expected at least 1 x 1")
    if size[0] * size[1] > _most_pixels:
        raise DataError(
            f"{where}: {size[0]} x {size[1]} pixels (h x w) are more than DATASET.max_pixels, {_most_pixels}; "
            "cut the image into parts, or raise DATASET.max_pixels where the memory suffices"
        )


def read_image(picture: Picture, name: str = "") -> np.ndarray:
    """Pixels of an image, uint8 (h, w, 3) RGB, contiguous; of an animation or of several pages the first.

    Grey, palette and alpha images become RGB (alpha is dropped). Grey 16-bit values v become v / 257, rounded; of
    16-bit colours the upper 8 bits are taken. Arrays are (h, w) grey or (h, w, channels) of bool, uint8, uint16 or
    int32; uint8 RGB is returned as it is. An image all of one value, and 16-bit values that leave two bits or more
    unused, are named in a warning.
    name: what a picture that is no file is called in messages.
    Raises DataError for what is missing, truncated, larger than DATASET.max_pixels, or has no 8-bit meaning.
    """
    where = shown(picture, name)
    if isinstance(picture, np.ndarray):
        pixels = _rgb_of_array(picture, where)
    else:
        with opened(picture, where) as image:
            pixels = _rgb_of_image(image, where)
    if pixels[:, :, 0].size > 1 and all(
        (rows == pixels[0, 0]).all() for rows in np.array_split(pixels, len(pixels))
    ):
        tell_constant(where, pixels[0, 0])
    return pixels


def tell_constant(where: str, colour: np.ndarray) -> None:
    """Warn of an image all of one colour, (3,) or (1,) uint8."""
    warn_once(
        _LOG, f"{where}: every pixel is {' '.join(map(str, colour.tolist()))}; is this the image?"
    )


def image_size(picture: Picture) -> tuple[int, int]:
    """Size (h, w) in pixels; of a file its header is all that is read. Raises DataError as read_image."""
    if isinstance(picture, np.ndarray):
        return checked_array(picture, shown(picture)).shape[:2]
    with opened(picture, shown(picture)) as image:
        return image.height, image.width


def exif_orientation(picture: Picture, *, search: bool = False) -> int:
    """How a viewer turns the stored pixels, 1 (not at all) to 8, as EXIF numbers it; 1 where nothing is said.

    search: also behind the pixels of a PNG file, through which it takes a walk. Raises DataError as read_image does.
    """
    if isinstance(picture, np.ndarray):
        return 1
    with named_errors(picture, shown(picture)), _pillow(picture, shown(picture)) as image:
        if (
            image.format == "PNG"
            and "exif" not in image.info
            and not (search and _may_tell_exif(picture))
        ):
            return 1
        try:
            turned = (
                image.format == "TIFF" and image is not picture
            )  # one that Pillow has opened is turned already
            found = (
                _tiff_orientation(image) if turned else image.getexif().get(_TIFF_ORIENTATION, 1)
            )
        except DECODER_ERRORS:  # broken EXIF says nothing; the pixels may be whole
            return 1
    return found if found in range(1, 9) else 1


@contextmanager
def opened(picture: str | os.PathLike | Image.Image, where: str) -> Iterator[Image.Image]:
    """A file opened by Pillow, or a PIL image as it is, whose pixels come as they are stored. Raises DataError as
    read_image does, also for what the decoder stumbles over within the block. where: the picture, for messages."""
    with named_errors(picture, where):
        with _pillow(picture, where) as image:
            turned = (
                image is not picture and image.format == "TIFF" and _tiff_orientation(image) != 1
            )
            if not turned:
                _check(image, where)
                yield image
        if turned:  # Pillow would turn the pixels, for TIFF alone
            with Image.open(io.BytesIO(_without_orientation(picture)), formats=("TIFF",)) as image:
                _check(image, where)
                yield image


def checked_array(array: np.ndarray, where: str) -> np.ndarray:
    """An array that has the shape of a picture: (h, w), or (h, w, channels) with 1 to 4 channels.

    Raises DataError for any other shape, for masked arrays, and as check_pixels. where: the array, for messages.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise DataError(
            f"{where}: a masked array; give one of plain values, array.filled(0) for instance"
        )
    array = np.asarray(array)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        turned = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        advice = "; channels come last here: array.transpose(1, 2, 0)" if turned else ""
        raise DataError(f"{where}: expected (h, w) grey or (h, w, 3) RGB{advice}")
    check_pixels(where, array.shape[:2])
    return array


@contextmanager
def _pillow(picture: object, where: str) -> Iterator[Image.Image]:
    if isinstance(picture, Image.Image):
        yield picture
        return
    if not isinstance(picture, str | os.PathLike):
        raise DataError(f"{where}: expected a path, a PIL image, or an array (h, w) or (h, w, 3)")
    if not stat.S_ISREG(os.stat(picture).st_mode):  # a pipe would be waited for
        raise DataError(f"{picture}: not a file; put the image itself there")
    with Image.open(picture, formats=FORMATS) as image:
        yield image


def _check(image: Image.Image, where: str) -> None:
    check_pixels(where, (image.height, image.width))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.tell() == 0:
        warn_once(_LOG, f"{where}: holds {frames} frames or pages, of which the first is used")
    kind = _odd_tiff(image.tag_v2) if image.format == "TIFF" else ""
    if (
        image.format == "BMP"
        and image.mode == "1"
        and image.tile
        and image.tile[0].args[1] != (image.width + 31) // 32 * 4
    ):
        kind = "a black and a white palette entry, but more than one bit a pixel"
    if kind:
        raise DataError(
            f"{where}: a {image.format} of {kind}, which the decoder gets wrong; save it as PNG"
        )


def _odd_tiff(tags: Mapping[int, Any]) -> str:
    """A kind of TIFF that Pillow reads without a word, but not as it is meant; "" for any other."""
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if 2 in tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)) and bits == 8:
        return "signed 8-bit numbers"
    if bits == 16 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        return "16 bits in which 0 is white"
    planes = (
        tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2
        and tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1) > 1
    )
    if bits == 16 and planes:
        return "16-bit channels in separate planes"
    return ""


def _rgb_of_array(array: np.ndarray, where: str) -> np.ndarray:
    array = checked_array(array, where)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype not in _PIXELS:
        raise DataError(
            f"{where}: expected uint8 (0 to 255) or uint16 (0 to 65535); bring floats and other integers to "
            "one of these, all images by the same factor"
        )
    channels = array.reshape(*array.shape[:2], -1)
    colour = channels.shape[2] >= 3
    channels = channels[:, :, : 3 if colour else 1]  # what follows is alpha
    if array.dtype == np.bool_:
        channels = channels * np.uint8(255)
    elif array.dtype == np.uint16 and colour:
        _tell_range(where, channels)
        channels = (channels >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        channels = np.dstack(
            [_eight_bits(channels[:, :, i], where) for i in range(channels.shape[2])]
        )
    return np.ascontiguousarray(channels if colour else np.repeat(channels, 3, axis=2))


def _rgb_of_image(image: Image.Image, where: str) -> np.ndarray:
    upper_bits = loses_lower_bits(image)
    pixels = loaded(image)
    if pixels.mode.startswith("I"):
        return np.repeat(_eight_bits(np.asarray(pixels), where)[:, :, None], 3, axis=2)
    if pixels.mode == "F":
        raise DataError(
            f"{where}: floating point pixels have no fixed range; save the image with 8 or 16 bits"
        )
    rgb = rgb_pixels(pixels)
    if upper_bits:  # of 16, which Pillow has taken
        _tell_range(where, rgb.astype(np.uint16) << 8)
    return rgb


def loses_lower_bits(image: Image.Image) -> bool:
    """Whether Pillow takes the upper 8 of 16 bits of an image that is not loaded yet."""
    return image.mode[0] != "I" and any(
        ";16" in str(tile.args) for tile in getattr(image, "tile", ())
    )


def loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory, as they are stored, and without what Pillow would blend or warn about."""
    image.load()
    if "transparency" in image.info:
        image = image.copy()
        image.info.pop("transparency")
    return image


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Pixels as uint8 (h, w, 3), converted in parts: Pillow's copies of a large image would take twice its memory."""
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, ROWS):
        rgb[top : top + ROWS] = image.crop((0, top, width, min(top + ROWS, height))).convert("RGB")
    return rgb


def _eight_bits(values: np.ndarray, where: str) -> np.ndarray:
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > 65535:
        raise DataError(
            f"{where}: its values go from {least} to {most}; expected 8 bits (0 to 255) or 16 bits (0 to 65535): bring "
            "them into one of these ranges, all images by the same factor"
        )
    _tell_range(where, values)
    grey = np.empty(values.shape, np.uint8)
    for top in range(
        0, len(values), ROWS
    ):  # in parts: four bytes a pixel are much for a large image
        grey[top : top + ROWS] = (values[top : top + ROWS].astype(np.uint32) + 128) // 257
    return grey


def _tell_range(where: str, values: np.ndarray) -> None:
    """Warn of 10, 12 or 14 bits in a container of 16, of which most grey levels would be lost; once for a folder. A few
    pixels that are always bright do not count, nor a mark at 65535."""
    full = np.count_nonzero(values == 65535)
    beyond = np.count_nonzero(values >= _FULL_RANGE) - (
        full if full <= _MARKED * values.size else 0
    )
    stuck = max(_HOT * values.size, 1 if values.size > 1000 else 0)
    if beyond <= stuck:
        most = int(values[values < _FULL_RANGE].max(initial=0))
        warn_once(
            _LOG,
            f"{where}: uses 0 to {most} of the 16-bit range 0 to 65535, so that {(most + 128) // 257 + 1} of 256 grey "
            "levels are left; scale it to the full range, all images by the same factor (12-bit images by 16)",
            key=f"range {os.path.dirname(where) or where}",
        )


def _may_tell_exif(path: str | os.PathLike) -> bool:
    """Whether a PNG file has a chunk that may hold EXIF, wherever it stands; without decoding the pixels."""
    if isinstance(path, Image.Image):
        return False
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            if head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # and the checksum
    return False


def _tiff_orientation(image: Image.Image) -> int:
    return image.tag_v2.get(_TIFF_ORIENTATION, 1)


def _without_orientation(path: str | os.PathLike) -> bytearray:
    """Content of a TIFF file whose orientation tag is set to 1, none."""
    content = bytearray(Path(path).read_bytes())
    order = "<" if content[:2] == b"II" else ">"
    magic, offset = struct.unpack_from(f"{order}HI", content, 2)
    if magic != 42:
        raise DataError(
            f"{path}: a BigTIFF with an orientation tag; save the image without the tag"
        )
    (count,) = struct.unpack_from(f"{order}H", content, offset)
    for entry in range(offset + 2, offset + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}H", content, entry) == (_TIFF_ORIENTATION,):
            struct.pack_into(f"{order}H", content, entry + 8, 1)
    return content
