"""Why a file cannot be read as an image, and the remedy that fits: it is missing, none, of a rare kind, or damaged."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from utils.errors import DataError

DECODER_ERRORS = (
    *(
        OSError,
        SyntaxError,
        ValueError,
        LookupError,
        TypeError,
        EOFError,
        ArithmeticError,
        AttributeError,
    ),
    *(AssertionError, RuntimeError, struct.error, zlib.error),
)
_SAVE = "save it as PNG, JPEG, BMP or TIFF, 8- or 16-bit grey or 8-bit RGB"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
_USUAL = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)  # compressions of TIFF that are always decoded
# what stands under an image's name where something else was saved there: its first bytes, what it is, the remedy
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
_NUMBERS = {1: "whole numbers", 2: "signed numbers", 3: "floating point"}
_FAMILIES = {
    b"heic": "HEIC",
    b"heix": "HEIC",
    b"mif1": "HEIC",
    b"msf1": "HEIC",
    b"avif": "AVIF",
    b"avis": "AVIF",
}


def shown(picture: object, name: str = "") -> str:
    """What a picture is called in messages: the path of a file; else its name, where it has one, its type and shape."""
    if isinstance(picture, str | os.PathLike):
        return str(picture)
    if isinstance(picture, np.ndarray):
        kind = f"an array of {picture.dtype}, shape {picture.shape}"
    elif isinstance(picture, Image.Image):
        kind = (
            f"a PIL image of mode {picture.mode}, {picture.height} x {picture.width} pixels (h x w)"
        )
    else:
        shape = f", shape {tuple(picture.shape)}" if hasattr(picture, "shape") else ""
        kind = f"a value of type {type(picture).__name__}{shape}"
    return f"{name}, {kind}" if name else kind


@contextmanager
def named_errors(picture: object, where: str) -> Iterator[None]:
    """Turns what a decoder stumbles over into a DataError that names the picture, and the remedy."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            f"{where}: no such file; check the data set's path and whether it was copied whole"
        ) from error
    except PermissionError as error:
        raise DataError(
            f"{where}: may not be read; see to the permissions of the file and its folders"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{where}: does not fit into the memory; cut the image into parts, or lower DATASET.max_pixels to have "
            "such images refused"
        ) from error
    except DECODER_ERRORS as error:
        raise DataError(f"{where}: {cause(picture, error)}") from error


def cause(picture: object, error: Exception) -> str:
    """What keeps a file from being read as an image, and the remedy, by its first bytes and what the decoder told."""
    unknown = isinstance(error, UnidentifiedImageError)
    text = " ".join(str(error).split()) or type(error).__name__
    detail = "" if unknown else f" ({text:.300})"
    told = f"cannot be read as an image{detail}"
    if isinstance(picture, Image.Image):
        return f"{told}; give it while its file is open, or load() it before, and in a mode that becomes RGB"
    if not isinstance(picture, str | os.PathLike) or not os.path.isfile(picture):
        return f"{told}; put an image there"
    try:
        with open(picture, "rb") as file:
            head = file.read(64)
    except OSError:
        return f"{told}; see whether its disk can be read"
    if not head:
        return f"{told}; the file is empty, copy it again"
    if other := foreign(head):
        return f"not an image but {other}"
    if head[4:8] == b"ftyp" and head[8:12] in _FAMILIES:
        return f"an image in the format {_FAMILIES[head[8:12]]}, which is not read; {_SAVE}"
    if head[:4] in _TIFF and (kind := _whole_tiff(Path(picture), unknown)):
        return f"a TIFF of {kind}, which the decoder does not know; {_SAVE}"
    return f"{told}; copy it again where it is cut off or damaged; where other programs open it, {_SAVE}"


def foreign(head: bytes) -> str:
    """What a file is, and the remedy, that begins so and was saved in place of an image or a text; "" if not known."""
    start = head.lower().lstrip()
    return next(
        (f"{kind}; {remedy}" for known, kind, remedy in _FOREIGN if start.startswith(known)), ""
    )


def _whole_tiff(path: Path, unknown: bool) -> str:
    """The pixel type of a TIFF file that holds all the bytes that its first directory lists, but that the decoder
    lacks; "" for any other. unknown: it was refused by its header."""
    try:
        with path.open("rb") as file:
            head = file.read(8)
            head += file.read(8) if 43 in head[2:4] else b""  # BigTIFF
            directory = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(directory.next)
            directory.load(file)
        starts = (
            directory.get(TiffImagePlugin.STRIPOFFSETS)
            or directory.get(TiffImagePlugin.TILEOFFSETS)
            or ()
        )
        lengths = (
            directory.get(TiffImagePlugin.STRIPBYTECOUNTS)
            or directory.get(TiffImagePlugin.TILEBYTECOUNTS)
            or ()
        )
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        usual = directory.get(TiffImagePlugin.COMPRESSION, 1) in _USUAL
        if not ends or max(ends) > path.stat().st_size or (usual and not unknown):
            return ""
        bands = directory.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        bits = directory.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        numbers = _NUMBERS.get(directory.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "numbers")
        packed = directory.get(TiffImagePlugin.COMPRESSION, 1)
    except DECODER_ERRORS:
        return ""
    how = (
        ""
        if packed == 1
        else f", compression {TiffImagePlugin.COMPRESSION_INFO.get(packed, packed)}"
    )
    return f"{bands} band{'s' if bands > 1 else ''} of {bits[0]}-bit {numbers}{how}"
