"""What is told of files that are no image, or one that the decoder lacks: the remedy fits what is found."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from datasets.images import unreadable as cause
from datasets.images import image_size, read_image
from datasets.large_images import ImageStrips
from tests.datasets.bad_files import RGB, saved
from utils.errors import DataError

LOST = "copy it again where it is cut off or damaged"


def tiff(path, bands, bits, kind, compression=1, content=None):
    """Write a TIFF file of one strip: (number of bands, bits of each, kind of number as TIFF counts them)."""
    height, width = RGB.shape[:2]
    content = bytes(height * width * bands * bits // 8) if content is None else content
    per_band = (
        struct.pack(f"<{bands}H", *[bits] * bands),
        struct.pack(f"<{bands}H", *[kind] * bands),
    )
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, per_band[0]), (259, 3, 1, compression), (262, 3, 1, 1),
        (273, 4, 1, None), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, len(content)),
        (339, 3, bands, per_band[1]),
    ]  # fmt: skip
    after, data, entries = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, form, count, value in tags:
        if isinstance(value, bytes):
            inline = (
                value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", after + len(data))
            )
            data += b"" if len(value) <= 4 else value
        else:
            inline = struct.pack("<I", value or 0)
        entries += struct.pack("<HHI", tag, form, count) + inline
    start = after + len(data)
    entries = entries.replace(
        struct.pack("<HHII", 273, 4, 1, 0), struct.pack("<HHII", 273, 4, 1, start)
    )
    path.write_bytes(
        b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data + content
    )
    return path


@pytest.mark.parametrize(
    ("bands", "bits", "kind", "compression", "words"),
    [
        (5, 8, 1, 1, "a TIFF of 5 bands of 8-bit whole numbers"),
        (3, 32, 3, 1, "a TIFF of 3 bands of 32-bit floating point"),
        (1, 64, 3, 1, "a TIFF of 1 band of 64-bit floating point"),
        (2, 16, 2, 1, "a TIFF of 2 bands of 16-bit signed numbers"),
        (1, 8, 1, 34712, "a TIFF of 1 band of 8-bit whole numbers, compression 34712"),
    ],
)
def test_a_whole_tiff_of_a_rare_kind_is_told_as_that(
    tmp_path, bands, bits, kind, compression, words
):
    path = tiff(tmp_path / "a.tif", bands, bits, kind, compression)
    for read in (read_image, ImageStrips):
        with pytest.raises(
            DataError, match=rf"a\.tif: {words}.*, which the decoder does not know; save it"
        ) as error:
            read(path)
        assert "copy" not in str(error.value)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"a\.tif: cannot be read as an image.*{LOST}"):
        read_image(path)


def test_a_plain_tiff_is_read(tmp_path):
    """The files above are what they are meant to be."""
    pixels = RGB[:, :, 0].tobytes()
    np.testing.assert_array_equal(
        read_image(tiff(tmp_path / "a.tif", 1, 8, 1, 1, pixels))[:, :, 1], RGB[:, :, 0]
    )


def test_signed_values_below_zero_are_told_by_their_range(tmp_path):
    values = np.arange(-100, 116, dtype=np.int16).reshape(12, 18)
    path = tiff(tmp_path / "a.tif", 1, 16, 2, 1, values.tobytes())
    with pytest.raises(
        DataError, match=r"a\.tif: its values go from -100 to 115; expected 8 bits .* or 16 bits"
    ):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><title>Sign in", "not an image but a web page; download the file itself"),
        (b"\n  <HTML>", "not an image but a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "a pointer of Git LFS; .* git lfs pull",
        ),
        (b"%PDF-1.7 ", "a PDF document; save it as PNG"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0",
            "an image in the format HEIC, which is not read; save it as PNG",
        ),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "in the format AVIF"),
        (b"PK\x03\x04aaaa", "a ZIP archive; unpack it"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\x76\x2f\x31\x01\0\0", "an OpenEXR file"),
        (b"", "the file is empty, copy it again"),
        (b"whatever it is", LOST),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_what_was_saved_in_place_of_an_image_is_named(tmp_path, content, words, name):
    (tmp_path / name).write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=rf"{name}: .*{words}"):
            read(tmp_path / name)


def test_formats_that_are_read_name_what_the_decoder_told(tmp_path):
    path = saved(tmp_path / "a.png", RGB)
    path.write_bytes(path.read_bytes()[:120])
    with pytest.raises(
        DataError, match=rf"a\.png: cannot be read as an image \(.*truncated.*\); {LOST}"
    ):
        read_image(path)


def test_a_picture_that_is_no_file_gets_no_advice_about_files():
    image = Image.new("L", (4, 4))
    assert "copy" not in cause(image, ValueError("odd")) and "(odd)" in cause(
        image, ValueError("odd")
    )
