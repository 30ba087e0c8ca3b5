"""Images as arrays, whatever way they come in: files of the common formats, PIL images, arrays.

Annotations refer to the pixels as stored, so EXIF orientation is applied nowhere here;
`orientation.py` brings masks that were drawn on the turned image back to the stored pixels.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from utils.errors import DataError, UserError
from utils.warn_once import warn_once

Picture = str | os.PathLike | Image.Image | np.ndarray
# Not all that Pillow knows: some of its formats start other programs.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_ROWS = 256  # converted at once
# dtypes of image arrays; int32 is what Pillow makes of 32-bit files
_PIXELS = (np.bool_, np.uint8, np.uint16, np.int32)
_ORIENTATION = 274  # the tag of EXIF and TIFF
_FULL_RANGE = 1 << 14  # 16-bit images without a value from here on leave two or more bits unused
_STUCK, _MARK = 1e-4, 0.05  # shares that stuck pixels, and a burnt-in mark of 65535, may take
_SAVE = "save it as PNG, JPEG, BMP or TIFF, 8- or 16-bit grey or 8-bit RGB"
# What may stand under an image's name: its first bytes in lower case, what it is, the remedy.
_FOREIGN = (
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    (b"<!doctype", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"%pdf", "a PDF document", _SAVE),
    (b"8bps", "a Photoshop file", _SAVE),
    (b"\x93numpy", "a NumPy array", _SAVE),
    (b"\x76\x2f\x31\x01", "an OpenEXR file", _SAVE),
    (b"pk\x03\x04", "a ZIP archive", "unpack it"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
)
_FAULTS = {
    FileNotFoundError: "no such file; check the data set's path and whether it was copied whole",
    PermissionError: "may not be read; see to the permissions of the file and its folders",
    MemoryError: "does not fit into the memory; cut the image into parts, or lower "
    "DATASET.max_pixels to have it refused",
}
_BROKEN_TAGS = (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error)
_PHONES = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}
_LOG = logging.getLogger(__name__)
_most_pixels = 500_000_000
# Pillow's own bound warns of what inspection cameras deliver; `limit_pixels` sets ours.
Image.MAX_IMAGE_PIXELS = None


def limit_pixels(count: int) -> None:
    """Refuse images of more than `count` pixels, in this process and those forked from it."""
    global _most_pixels
    _most_pixels = count


def check_pixels(where: object, size: tuple[int, int]) -> None:
    """Raises DataError for a size (h, w) without pixels, or above what `limit_pixels` set."""
    text = f"{where}: {size[0]} x {size[1]} pixels (h x w)"
    if min(size) < 1:
        raise DataError(f"{text}; expected at least 1 x 1")
    if size[0] * size[1] > _most_pixels:
        remedy = "cut the image into parts, or raise it where the memory suffices"
        raise DataError(f"{text} are more than DATASET.max_pixels, {_most_pixels}; {remedy}")


def read_image(picture: Picture, name: str = "") -> np.ndarray:
    """Pixels of an image, uint8 (h, w, 3) RGB, contiguous; of several pages or frames the first.

    Grey, palette and alpha images become RGB (alpha is dropped). Grey 16-bit values v become
    v / 257, rounded; of 16-bit colours the upper 8 bits are taken. Arrays are (h, w) grey or
    (h, w, channels) of bool, uint8, uint16 or int32; uint8 RGB is returned as it is. A warning
    names an image all of one value, and 16-bit values that leave two or more bits unused.
    name: what messages call a picture that is no file. Raises DataError for what is missing,
    truncated, above DATASET.max_pixels, or without a meaning in 8 bits.
    """
    where = shown(picture, name)
    if isinstance(picture, np.ndarray):
        pixels = _rgb_of_array(picture, where)
    else:
        with opened(picture, where) as (image, turn):
            has_16_bits = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
            image = loaded(image)
            is_number = image.mode[0] in "IF"
            pixels = _rgb_of_array(np.asarray(image), where) if is_number else rgb_pixels(image)
            if has_16_bits and not is_number:  # of which Pillow takes the upper 8
                _warn_unused_bits(where, pixels.astype(np.uint16) << 8)
            pixels = np.ascontiguousarray(turned(pixels, turn, undo=True))
    if pixels.size > 3 and all((row == pixels[0, 0]).all() for row in pixels):
        warn_constant(where, pixels[0, 0])
    return pixels


def warn_constant(where: str, colour: np.ndarray) -> None:
    """Warn of an image all of one colour, (3,) or (1,) uint8."""
    warn_once(_LOG, f"{where}: every pixel is {' '.join(map(str, colour))}; is this the image?")


def image_size(picture: Picture) -> tuple[int, int]:
    """Stored size (h, w) in pixels, from the header of a file. Raises DataError as read_image."""
    if isinstance(picture, np.ndarray):
        return checked_array(picture, shown(picture)).shape[:2]
    with opened(picture, shown(picture)) as (image, turn):
        return (image.width, image.height) if turn > 4 else (image.height, image.width)


def exif_orientation(picture: Picture) -> int:
    """How viewers turn the pixels, EXIF 1 (not at all) to 8. Raises DataError as read_image."""
    if isinstance(picture, np.ndarray):
        return 1
    with opened(picture, shown(picture)) as (image, turn):
        if image.format == "TIFF":
            return turn  # Pillow has turned a TIFF that comes as a PIL image
        if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
            return 1  # getexif would decode all pixels, to look behind them
        try:
            turn = image.getexif().get(_ORIENTATION, 1)
        except _BROKEN_TAGS:
            return 1  # the pixels may be whole
    return turn if turn in range(1, 9) else 1


def turned(pixels: np.ndarray, orientation: int, *, undo: bool = False) -> np.ndarray:
    """A view of stored pixels (h, w, ...) as viewers show them (EXIF 2.32, 4.6.4); undo: back."""
    if undo:  # all but these two undo themselves
        orientation = {6: 8, 8: 6}.get(orientation, orientation)
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    down, right = (-1 if orientation in flips else 1 for flips in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return pixels[::down, ::right]


@contextmanager
def opened(picture: object, where: str) -> Iterator[tuple[Image.Image, int]]:
    """A file opened by Pillow, or a PIL image, with the EXIF orientation that its loading applies.

    Pillow turns the pixels of TIFF files alone; the orientation is 1 for all others. An error of
    the decoder within the block becomes a DataError with the remedy, which says `where`.
    """
    try:
        if isinstance(picture, Image.Image):
            _check(picture, where)
            yield picture, 1
            return
        if not isinstance(picture, str | os.PathLike):
            raise DataError(
                f"{where}: expected a path, a PIL image, or an array (h, w) or (h, w, 3)"
            )
        if not stat.S_ISREG(os.stat(picture).st_mode):  # a pipe would be waited for
            raise DataError(f"{where}: not a file; put the image itself there")
        # not by its path: Pillow maps such files into memory, and gets turned TIFFs wrong then
        with open(picture, "rb") as file, Image.open(file, formats=FORMATS) as image:
            _check(image, where)
            turn = image.tag_v2.get(_ORIENTATION, 1) if image.format == "TIFF" else 1
            yield image, turn if turn in range(1, 9) else 1
    except UserError:
        raise
    except Exception as error:  # decoders raise of every kind
        fault = next((text for kind, text in _FAULTS.items() if isinstance(error, kind)), "")
        raise DataError(f"{where}: {fault or unreadable(picture, error)}") from error


def shown(picture: object, name: str = "") -> str:
    """What messages call a picture: the path of a file; else its name, if any, type and shape."""
    if isinstance(picture, str | os.PathLike):
        return str(picture)
    shape = f", shape {tuple(picture.shape)}" if hasattr(picture, "shape") else ""
    kind = f"a value of type {type(picture).__name__}{shape}"
    if isinstance(picture, np.ndarray):
        kind = f"an array of {picture.dtype}{shape}"
    elif isinstance(picture, Image.Image):
        kind = f"a PIL image of mode {picture.mode}, {picture.height} x {picture.width} pixels"
    return f"{name}, {kind}" if name else kind


def unreadable(picture: object, error: Exception) -> str:
    """Why a picture cannot be read, and the remedy, by its first bytes and the decoder's error."""
    unknown = isinstance(error, UnidentifiedImageError)
    detail = "" if unknown else f" ({' '.join(str(error).split()) or type(error).__name__:.300})"
    message = f"cannot be read as an image{detail}"
    if isinstance(picture, Image.Image):
        return f"{message}; load() it while its file is open, in a mode that becomes RGB"
    try:
        with open(picture, "rb") as file:
            head = file.read(64)
    except OSError:
        return f"{message}; put an image there"
    if not head:
        return f"{message}; the file is empty, copy it again"
    if other := foreign(head):
        return f"not an image but {other}"
    if kind := head[4:8] == b"ftyp" and _PHONES.get(head[8:12]):
        return f"an image in the format {kind}, which is not read; {_SAVE}"
    if unknown and head[:4] in (b"II*\0", b"MM\0*") and (kind := _kind_of_tiff(picture)):
        return f"a TIFF of {kind}, which the decoder does not know; {_SAVE}"
    lost = "copy it again where it is cut off or damaged"
    return f"{message}; {lost}; where other programs open it, {_SAVE}"


def foreign(head: bytes) -> str:
    """What a file is that begins so and is no image or text, and the remedy; "" if unknown."""
    start = head.lower().lstrip()
    kinds = (f"{kind}; {cure}" for first, kind, cure in _FOREIGN if start.startswith(first))
    return next(kinds, "")


def _kind_of_tiff(path: str | os.PathLike) -> str:
    """The pixel type of a TIFF, by its header; "" where that is cut off or broken."""
    tags = TiffImagePlugin
    try:
        with open(path, "rb") as file:
            directory = tags.ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
        bands, bits = directory.get(tags.SAMPLESPERPIXEL, 1), directory[tags.BITSPERSAMPLE][0]
        form = directory.get(tags.SAMPLEFORMAT, (1,))[0]
    except _BROKEN_TAGS:
        return ""
    numbers = {1: "whole numbers", 2: "signed numbers", 3: "floating point"}.get(form, "numbers")
    return f"{bands} band{'s' if bands > 1 else ''} of {bits}-bit {numbers}"


def _check(image: Image.Image, where: str) -> None:
    """Refuse what is too large, and what Pillow reads without a word but not as it is meant."""
    check_pixels(where, (image.height, image.width))
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.tell() == 0:
        warn_once(_LOG, f"{where}: holds {frames} frames or pages, of which the first is used")
    kind = ""
    if image.format == "TIFF" and max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) == 16:
        tags = image.tag_v2
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
            kind = "16 bits in which 0 is white"
        elif tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 and len(image.getbands()) > 1:
            kind = "16-bit channels in separate planes"
    if image.format == "BMP" and image.mode == "1" and image.tile:
        one_bit = image.tile[0].args[1] == (image.width + 31) // 32 * 4  # bytes a row
        kind = "" if one_bit else "a black and a white palette entry, but more than one bit a pixel"
    if kind:
        remedy = "which the decoder gets wrong; save it as PNG"
        raise DataError(f"{where}: a {image.format} of {kind}, {remedy}")


def checked_array(array: np.ndarray, where: str) -> np.ndarray:
    """The array, (h, w) or (h, w, 1 to 4 channels); raises DataError for others, or no pixels."""
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        advice = "; channels come last here: array.transpose(1, 2, 0)" if first else ""
        raise DataError(f"{where}: expected (h, w) grey or (h, w, 3) RGB{advice}")
    check_pixels(where, array.shape[:2])
    return array


def _rgb_of_array(array: np.ndarray, where: str) -> np.ndarray:
    array = checked_array(array, where)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    remedy = "all images by the same factor"
    if array.dtype not in _PIXELS:
        expected = "expected uint8 (0 to 255) or uint16 (0 to 65535)"
        raise DataError(f"{where}: {expected}; bring floats and other integers to one, {remedy}")
    channels = array.reshape(*array.shape[:2], -1)
    is_colour = channels.shape[2] >= 3
    channels = channels[:, :, : 3 if is_colour else 1]  # what follows is alpha
    if array.dtype == np.bool_:
        channels = channels * np.uint8(255)
    elif array.dtype != np.uint8:
        least, most = int(channels.min()), int(channels.max())
        if least < 0 or most > 65535:
            expected = "expected 8 bits (0 to 255) or 16 bits (0 to 65535): bring them there"
            raise DataError(f"{where}: its values go from {least} to {most}; {expected}, {remedy}")
        _warn_unused_bits(where, channels)
        shorter = np.empty(channels.shape, np.uint8)
        upper = is_colour and array.dtype == np.uint16  # as Pillow reads files of 16-bit colours
        for top in range(0, len(channels), _ROWS):
            rows = channels[top : top + _ROWS].astype(np.uint32)
            shorter[top : top + _ROWS] = rows >> 8 if upper else (rows + 128) // 257
        channels = shorter
    return np.ascontiguousarray(channels if is_colour else np.repeat(channels, 3, axis=2))


def _warn_unused_bits(where: str, values: np.ndarray) -> None:
    """Warn, once for a folder, of 10 to 14 bits in 16, of which most grey levels are lost; a few
    stuck pixels do not count, nor a mark of 65535 burnt into the image."""
    full = np.count_nonzero(values == 65535)
    beyond = np.count_nonzero(values >= _FULL_RANGE) - (full if full <= _MARK * values.size else 0)
    if beyond > max(_STUCK * values.size, 1 if values.size > 1000 else 0):
        return
    most = int(values[values < _FULL_RANGE].max(initial=0))
    left = f"{(most + 128) // 257 + 1} of 256 grey levels are left"
    text = f"{where}: uses 0 to {most} of the 16-bit range 0 to 65535, so that {left}; scale it to "
    text += "the full range, all images by the same factor (12-bit images by 16)"
    warn_once(_LOG, text, key=f"range {os.path.dirname(where) or where}")


def loaded(image: Image.Image) -> Image.Image:
    """The image with its pixels in memory, without the transparency that Pillow would blend in."""
    image.load()
    if "transparency" in image.info:
        image = image.copy()
        image.info.pop("transparency")
    return image


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Pixels as uint8 (h, w, 3), converted in parts to save memory."""
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        rgb[top:bottom] = image.crop((0, top, width, bottom)).convert("RGB")
    return rgb
