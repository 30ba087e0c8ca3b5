"""Invented image files: valid ones of many formats, broken in many ways."""

from __future__ import annotations

import io

import numpy as np
from hypothesis import strategies as st
from PIL import Image

H, W = 13, 17
_NUMBERS = [0, 1, 2, 127, 255, 256, 5000, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1]


def _encoded(image, form, **options):
    file = io.BytesIO()
    image.copy().save(file, form, **options)  # a copy: encoders leave settings behind in an image
    return file.getvalue()


def _valid_files():
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (H, W), dtype=np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    pages = {"save_all": True, "append_images": [colour.rotate(90), colour.rotate(180)]}
    modes = {
        "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
        "JPEG": ("L", "RGB", "CMYK"),
        "BMP": ("1", "L", "P", "RGB", "RGBA"),
        "TIFF": ("1", "L", "RGB", "CMYK", "LAB", "YCbCr"),
    }
    files = [_encoded(colour.convert(m), form) for form, some in modes.items() for m in some]
    for form in ("PNG", "JPEG", "TIFF"):
        files.append(_encoded(colour, form, exif=exif))
    for form in ("PNG", "TIFF", "MPO", "GIF"):
        files.append(_encoded(colour, form, **pages))
    for packed in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        files.append(_encoded(colour, "TIFF", compression=packed))
    files += [_encoded(deep, "PNG"), _encoded(deep, "TIFF"), _encoded(deep.convert("F"), "TIFF")]
    files += [_encoded(colour, form) for form in ("WEBP", "PPM", "JPEG2000", "DIB")]
    return [*files, _encoded(colour, "TIFF", big_tiff=True), b"", b"no image", b"<svg width='9'/>"]


VALID = _valid_files()


@st.composite
def broken_files(draw):
    """Content of an image file, most often broken: cut, spliced, with odd numbers in its header."""
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 6))):
        if not content:
            break
        place = draw(st.integers(0, len(content) - 1) | st.integers(0, min(99, len(content) - 1)))
        length, order = draw(st.integers(1, 64)), draw(st.sampled_from(["little", "big"]))
        number = draw(st.sampled_from(_NUMBERS))
        changes = {
            "number": number.to_bytes(4, order) + content[place + 4 :],
            "short": (number % 65536).to_bytes(2, order) + content[place + 2 :],
            "flip": draw(st.binary(min_size=1, max_size=1)) + content[place + 1 :],
            "cut": b"",
            "double": content[place : place + length] + content[place:],
            "drop": content[place + length :],
            "insert": draw(st.binary(max_size=16)) + content[place:],
            "other": draw(st.sampled_from(VALID))[place:],
        }
        content[place:] = changes[draw(st.sampled_from(sorted(changes)))]
    return bytes(content)
