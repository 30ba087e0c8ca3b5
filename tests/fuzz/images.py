"""Invented image files: valid ones of many formats, broken in many ways."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pyvips
from hypothesis import strategies as st
from PIL import Image

H, W = 13, 17
_NUMBERS = [0, 1, 2, 127, 128, 255, 256, 5000, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1]


def _exif(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def _encoded(image, form, **options):
    file = io.BytesIO()
    image.copy().save(file, form, **options)  # a copy: encoders leave settings behind in an image
    return file.getvalue()


def _tiled(image):
    return pyvips.Image.new_from_array(np.array(image)).tiffsave_buffer(
        tile=True, tile_width=16, tile_height=16
    )


def _valid_files():
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
    grey, deep = (
        colour.convert("L"),
        Image.fromarray(rng.integers(0, 65536, (H, W), dtype=np.uint16)),
    )
    frames = [colour.rotate(90 * n) for n in range(3)]

    def several():
        return {"save_all": True, "append_images": [frame.copy() for frame in frames[1:]]}

    files = [_encoded(colour.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    files += [
        _encoded(deep, "PNG"),
        _encoded(colour, "PNG", exif=_exif(6)),
        _encoded(frames[0], "PNG", **several()),
    ]
    files += [
        _encoded(colour.convert(mode), "JPEG", exif=_exif(8)) for mode in ("L", "RGB", "CMYK")
    ]
    files += [_encoded(colour, "JPEG", progressive=True), _encoded(frames[0], "MPO", **several())]
    files += [_encoded(colour.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")]
    ways = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4")
    files += [
        _encoded(grey.convert("1") if way == "group4" else colour, "TIFF", compression=way)
        for way in ways
    ]
    files += [
        _encoded(deep, "TIFF"),
        _encoded(deep.convert("F"), "TIFF"),
        _encoded(colour, "TIFF", exif=_exif(6)),
    ]
    files += [_encoded(colour.convert("CMYK"), "TIFF"), _encoded(colour.convert("LAB"), "TIFF")]
    files += [_tiled(colour), _encoded(frames[0], "TIFF", **several())]
    files += [_encoded(colour, "TIFF", big_tiff=True), _encoded(colour.convert("YCbCr"), "TIFF")]
    files += [
        _encoded(colour.convert("P"), "GIF"),
        _encoded(frames[0].convert("P"), "GIF", **several()),
    ]
    files += [_encoded(colour, form) for form in ("WEBP", "PPM", "JPEG2000", "DIB")]
    return [
        *files,
        b"",
        b"no image",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    ]


VALID = _valid_files()


@st.composite
def broken_files(draw):
    """Content of an image file, most often broken: flipped, cut, spliced or with odd numbers in its header."""
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 6))):
        if not content:
            break
        place = draw(
            st.one_of(st.integers(0, len(content) - 1), st.integers(0, min(99, len(content) - 1)))
        )
        kind = draw(st.sampled_from(["flip", "number", "cut", "copy", "insert", "other", "drop"]))
        if kind == "flip":
            content[place] = draw(st.integers(0, 255))
        elif kind == "number":
            form = draw(st.sampled_from(["<I", ">I", "<H", ">H"]))
            value = struct.pack(
                form, draw(st.sampled_from(_NUMBERS)) % (1 << 8 * struct.calcsize(form))
            )
            content[place : place + len(value)] = value
        elif kind == "cut":
            del content[place:]
        elif kind == "copy":
            length = draw(st.integers(1, 64))
            target = draw(st.integers(0, len(content)))
            content[target:target] = content[place : place + length]
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=16))
        elif kind == "other":
            other = draw(st.sampled_from(VALID))
            content[place:] = other[draw(st.integers(0, len(other))) :]
        else:
            del content[place : place + draw(st.integers(1, 64))]
    return bytes(_with_checksums(content) if draw(st.booleans()) else content)


def _with_checksums(content):
    """PNG whose chunks have the checksums that they need to be looked into."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    place = 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return content
