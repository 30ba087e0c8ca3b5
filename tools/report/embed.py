"""Files as data URIs, and the gallery's pictures made small enough for a page of bounded size."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tools.report.files import reading

GALLERY_BYTES = 12 << 20  # of the pictures of a page together; a third more as base64
SIDES = (
    360,
    270,
    200,
    150,
    110,
)  # pixels, longer side, tried in turn for a picture above its share of that
QUALITY = 80


@dataclass(frozen=True)
class Embedded:
    """A picture as data URI and its size in pixels."""

    uri: str
    width: int
    height: int


def data_uri(data: bytes, mime: str) -> str:
    """data:...;base64,..."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def embed_image(file: Path, most: int) -> Embedded:
    """A JPEG or PNG file as it is, or, where it has over `most` bytes, as a smaller JPEG.

    The smallest has a longer side of 110 pixels, even if that takes more bytes.

    Raises:
        DataError: the file is no such picture.
    """
    with reading(file):
        data = file.read_bytes()
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            size, mime = image.size, Image.MIME[image.format]
            for side in SIDES:
                if len(data) <= most:
                    break
                data, size, mime = *_shrunk(image, side), "image/jpeg"
        return Embedded(data_uri(data, mime), *size)


def _shrunk(image: Image.Image, side: int) -> tuple[bytes, tuple[int, int]]:
    small = image.convert("RGB")
    small.thumbnail((side, side))
    target = io.BytesIO()
    small.save(target, "JPEG", quality=QUALITY)
    return target.getvalue(), small.size
