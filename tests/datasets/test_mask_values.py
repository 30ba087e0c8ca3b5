"""Masks whose values a decoder, a palette or a format changes: read as they were drawn, or refused."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.images import read_image
from datasets.masks import read_labels, read_mask
from utils.errors import DataError

DRAWN = np.zeros((60, 80), np.uint8)
DRAWN[20:34, 10:50] = 1
RIM = cv2.dilate(DRAWN, np.ones((5, 5), np.uint8)) - DRAWN


def packed_png(path, values, bits):
    """A grey PNG of 2 or 4 bits a pixel, as programs that make PNGs small write them."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    per = 8 // bits
    shifts = np.arange(per)[::-1] * bits
    rows = (values.reshape(len(values), -1, per).astype(np.int64) << shifts).sum(2).astype(np.uint8)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )
    return path


def save(path, values, palette=None, **options):
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    image.save(path, **options)
    return path


@pytest.mark.parametrize("bits", [2, 4])
def test_class_values_of_few_bits_are_those_of_the_file(tmp_path, bits):
    file = packed_png(tmp_path / "a.png", 3 * DRAWN + RIM, bits)
    assert np.array_equal(read_labels(file), 3 * DRAWN + RIM)
    assert np.array_equal(read_mask(file), DRAWN | RIM)


def test_class_values_of_a_pgm_with_a_greatest_value_are_those_of_the_file(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 80 60 3\n" + (2 * DRAWN + RIM).tobytes())
    (tmp_path / "b.pgm").write_bytes(
        b"P2 80 60 3\n" + " ".join(map(str, (2 * DRAWN + RIM).ravel())).encode()
    )
    for name in ("a.pgm", "b.pgm"):
        assert np.array_equal(read_labels(tmp_path / name), 2 * DRAWN + RIM)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("value", [1, 200, 65535])
def test_masks_of_16_bit_colours_keep_all_bits(tmp_path, suffix, channels, value):
    values = np.dstack(
        [DRAWN.astype(np.uint16) * value] * 3
        + [np.full(DRAWN.shape, 65535, np.uint16)] * (channels == 4)
    )
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), values)
    assert np.array_equal(read_mask(tmp_path / f"a.{suffix}"), DRAWN)
    assert np.array_equal(read_labels(tmp_path / f"a.{suffix}"), DRAWN.astype(np.uint16) * value)
    with (
        Image.open(tmp_path / f"a.{suffix}") as image,
        pytest.raises(DataError, match="a mask of 16-bit colours"),
    ):
        read_mask(image)


def test_the_border_of_a_coloured_palette_is_refused_as_that_of_greys(tmp_path):
    """Palettes as PASCAL VOC has them: 255 stands for "not sure"."""
    palette = np.zeros((256, 3), np.uint8)
    palette[1], palette[255] = (128, 0, 0), (224, 224, 192)
    file = save(tmp_path / "a.png", DRAWN + 255 * RIM, palette.tobytes())
    for read in (read_mask, read_labels):
        with pytest.raises(DataError, match="holds 1 and 255, which stands for 'not sure'"):
            read(file)
    assert np.array_equal(read_mask(save(tmp_path / "b.png", DRAWN, palette.tobytes())), DRAWN)


def test_the_greatest_of_16_bits_beside_small_values_is_refused(tmp_path):
    file = save(tmp_path / "a.png", DRAWN.astype(np.uint16) + RIM.astype(np.uint16) * 65535)
    with pytest.raises(DataError, match="holds 1 and 65535"):
        read_mask(file)


@pytest.mark.parametrize(("value", "quality"), [(20, 75), (100, 95), (255, 75)])
def test_a_jpeg_is_cut_at_half_and_holds_no_classes(tmp_path, caplog, value, quality):
    file = save(tmp_path / "a.jpg", DRAWN * value, quality=quality)
    found = read_mask(file)
    assert np.count_nonzero(found != DRAWN) <= 4 and "saved with losses" in caplog.text
    with pytest.raises(DataError, match="saved with losses"):
        read_labels(file)


def test_of_a_photograph_with_alpha_the_alpha_channel_is_the_mask(tmp_path, caplog):
    photo = np.random.default_rng(0).integers(0, 256, (*DRAWN.shape, 3), np.uint8)
    file = save(tmp_path / "a.png", np.dstack([photo, 255 * DRAWN]))
    assert np.array_equal(read_mask(file), DRAWN) and "a photograph" in caplog.text


@pytest.mark.parametrize("bright", ["a pixel", "a mark"])
def test_few_bright_pixels_do_not_hide_that_bits_are_unused(tmp_path, caplog, bright):
    values = np.random.default_rng(0).integers(0, 4096, (96, 96), np.uint16)
    values[:1, :1] = 60000
    if bright == "a mark":
        values[5:15, 5:35] = 65535
    read_image(save(tmp_path / "a.png", values))
    assert "of 256 grey levels are left" in caplog.text


def test_a_dark_field_of_full_range_is_no_matter_of_bits(tmp_path, caplog):
    values = np.random.default_rng(0).integers(0, 3000, (96, 96), np.uint16)
    values[40:44, 40:60] = np.linspace(20000, 65535, 20)
    read_image(save(tmp_path / "a.png", values))
    read_image(save(tmp_path / "b.png", np.where(DRAWN, 65535, 0).astype(np.uint16)))
    assert not caplog.records
