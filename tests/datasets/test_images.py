from __future__ import annotations

import struct
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets.images import exif_orientation, image_size, limit_pixels, read_image
from datasets.large_images import ImageStrips
from datasets.masks import read_labels, read_mask
from tests.datasets.bad_files import GREY, REFUSED, RGB, saved, warnings_about, with_orientation
from utils.errors import DataError

REPO = Path(__file__).parents[2]
DEEP = np.random.default_rng(1).integers(0, 65536, (12, 18), dtype=np.uint16)
LOST = "copy it again where it is cut off or damaged"


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.webp"])
def test_lossless_rgb_comes_back_exactly(tmp_path, name):
    options = {"lossless": True} if name == "a.webp" else {}
    image = read_image(saved(tmp_path / name, RGB, **options))
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, RGB)
    assert image_size(tmp_path / name) == (12, 18)


def test_jpeg_and_cmyk_are_close_in_channel_order_and_shape(tmp_path):
    colour = np.zeros((20, 30, 3), np.uint8) + np.array([200, 90, 20], np.uint8)

    for mode in ("RGB", "CMYK"):
        image = read_image(saved(tmp_path / f"{mode}.JPG", colour, mode, quality=100)).astype(int)
        assert image.shape == (20, 30, 3) and np.abs(image - colour).max() <= 12


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_other_modes_become_rgb_and_alpha_is_dropped(tmp_path, mode):
    image = Image.fromarray(RGB).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(GREY))
    image.save(tmp_path / "a.png")
    expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


def test_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path):
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    indices.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / "a.png")
    assert image.tolist() == [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_divided_by_257_and_colours_cut(tmp_path, name):
    path = saved(tmp_path / name, DEEP)
    np.testing.assert_array_equal(read_image(path)[:, :, 1], np.rint(DEEP / 257))
    np.testing.assert_array_equal(read_image(DEEP.astype(np.int32)), read_image(path))
    np.testing.assert_array_equal(read_image(DEEP.astype(">u2")), read_image(path))
    colours = np.dstack([DEEP, DEEP[::-1], DEEP // 2])
    cv2.imwrite(str(path), colours[:, :, ::-1])
    np.testing.assert_array_equal(read_image(path), colours >> 8)
    np.testing.assert_array_equal(read_image(colours), colours >> 8)


def signed(path):
    """A grey TIFF of signed 16-bit values below zero."""
    return tiff(path, 1, 16, 2, np.arange(-100, 116, dtype=np.int16).tobytes())


def tiff(path, bands, bits, kind, content=None):
    """Write a TIFF of one strip: number of bands, bits of each, kind of number as TIFF counts."""
    height, width = RGB.shape[:2]
    content = bytes(height * width * bands * bits // 8) if content is None else content
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, bits), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 1), (273, 4, 1, None), (277, 3, 1, bands), (278, 4, 1, height)]
    tags += [(279, 4, 1, len(content)), (339, 3, bands, kind)]
    after, data, entries = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, form, count, value in tags:
        if form == 3 and count > 2:
            value, data = after + len(data), data + struct.pack(f"<{count}H", *[value] * count)
        elif value is None:
            value = after + 4 * bands * (bands > 2)
        entries += struct.pack("<HHII", tag, form, count, value)
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags))
    path.write_bytes(head + entries + bytes(4) + data + content)
    return path


def test_whole_tiffs_of_rare_kinds_are_named_and_not_called_broken(tmp_path):
    plain = tiff(tmp_path / "a.tif", 1, 8, 1, GREY.tobytes())
    np.testing.assert_array_equal(read_image(plain)[:, :, 0], GREY)
    kinds = {"5 bands of 8-bit whole numbers": (5, 8, 1)}
    kinds |= {"1 band of 64-bit floating point": (1, 64, 3)}
    kinds |= {"3 bands of 32-bit floating point": (3, 32, 3)}
    for words, kind in kinds.items():
        path = tiff(tmp_path / "b.tif", *kind)
        with pytest.raises(DataError, match=rf"b\.tif: a TIFF of {words}, .*; save it") as error:
            read_image(path)
        assert "copy" not in str(error.value)
    with pytest.raises(DataError, match=r"its values go from -100 to 115; expected 8 bits"):
        read_image(signed(path))
    with pytest.raises(DataError, match="floating point pixels have no fixed range"):
        read_image(saved(path, np.ones((4, 4), np.float32)))


FOREIGN = {
    b"<!DOCTYPE html><title>Sign in": "not an image but a web page; download the file itself",
    b"\n  <HTML>": "a web page",
    b"version https://git-lfs.github.com/spec/v1\noid": "a pointer of Git LFS; .* git lfs pull",
    b"%PDF-1.7 ": "a PDF document; save it as PNG",
    b"\0\0\0\x18ftypheic\0\0\0\0": "the format HEIC, which is not read; save it as PNG",
    b"PK\x03\x04aaaa": "a ZIP archive; unpack it",
    b"": "the file is empty, copy it again",
    b"whatever it is": LOST,
}


@pytest.mark.parametrize("content", FOREIGN)
def test_what_was_saved_in_place_of_an_image_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, image_size, read_mask):
        with pytest.raises(DataError, match=rf"a\.png: .*{FOREIGN[content]}"):
            read(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_by_name(tmp_path, kind, name):
    REFUSED[kind](tmp_path / name)
    for read in (read_image, read_mask, read_labels, ImageStrips):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files_are_refused_with_the_remedy(tmp_path, name, share):
    noise = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    path = saved(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for read in (read_image, read_labels):
        with pytest.raises(DataError, match=rf"{name}: cannot be read.*{LOST}"):
            read(path)


@pytest.fixture
def limit():
    """Bound the pixels; afterwards the bound is the default."""
    yield limit_pixels
    limit_pixels(500_000_000)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, limit, name):
    path = saved(tmp_path / name, RGB)
    limit(12 * 18)
    assert read_image(path).shape == (12, 18, 3)
    limit(12 * 18 - 1)
    path.write_bytes(path.read_bytes()[: 600 if name == "a.bmp" else None])
    for read in (read_image, read_mask, image_size, ImageStrips):
        with pytest.raises(DataError, match=rf"{name}: 12 x 18 pixels .*DATASET\.max_pixels, 215"):
            read(path)


def read_with(path, memory):
    """What reading prints in a process that may have so many bytes more than it has."""
    code = (
        "import re, resource, sys\n"
        "from datasets.images import read_image\n"
        "used = 1024 * int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]),) * 2)\n"
        "try:\n    print(read_image(sys.argv[1]).shape)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    command = [sys.executable, "-c", code, path, str(memory)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True).stdout


def test_reading_takes_at_most_eight_bytes_a_pixel_and_tells_what_does_not_fit(tmp_path):
    Image.new("RGB", (5000, 4000)).save(tmp_path / "a.png")
    enough = 8 * 5000 * 4000 + 20_000_000
    assert read_with(tmp_path / "a.png", enough).strip().endswith("(4000, 5000, 3)")
    told = read_with(tmp_path / "a.png", 40_000_000)
    assert told.startswith("DataError") and "a.png: does not fit into the memory" in told, told


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "lzw.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_told_but_not_applied(tmp_path, name, orientation):
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    path = with_orientation(tmp_path / name, RGB, orientation, **options)
    plain = saved(tmp_path / "plain" / name, RGB, **options)
    assert exif_orientation(path) == orientation and image_size(path) == (12, 18)
    np.testing.assert_array_equal(read_image(path), read_image(plain))


def test_of_frames_and_pages_the_first_is_read_and_named_once(tmp_path, caplog):
    frames = [Image.fromarray(np.roll(RGB, n, axis=0)) for n in range(3)]
    for name in ("a.png", "b.tif", "c.gif"):
        rest = [frame.copy() for frame in frames[1:]]
        frames[0].copy().save(tmp_path / name, save_all=True, append_images=rest)
        for _ in range(2):
            near = 70 if name == "c.gif" else 0  # a palette for three pictures
            assert np.abs(read_image(tmp_path / name).astype(int) - RGB).max() <= near
        (message,) = warnings_about(caplog, tmp_path / name)
        assert "holds 3 frames or pages, of which the first is used" in message


def test_a_bmp_that_the_decoder_gets_wrong_is_refused(tmp_path):
    image = Image.fromarray((GREY > 99).astype(np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(tmp_path / "m.bmp")
    with pytest.raises(DataError, match=r"m\.bmp: a BMP of a black and a white palette entry"):
        read_image(tmp_path / "m.bmp")
    image.convert("1").save(tmp_path / "m.bmp")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.bmp"), GREY > 99)


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("colour", [False, True])
def test_unused_bits_are_named_once_for_a_folder(tmp_path, caplog, bits, colour):
    values = np.linspace(0, 2**bits - 1, 24 * 36).astype(np.uint16).reshape(24, 36)
    for name in ("0.png", "1.png"):
        cv2.imwrite(str(tmp_path / name), np.dstack([values] * 3) if colour else values)
        read_image(tmp_path / name)
    messages = [text for text in warnings_about(caplog, tmp_path) if "16-bit range" in text]
    assert len(messages) == 1 and "scale it to the full range, all images by" in messages[0]


@pytest.mark.parametrize("bright", ["a pixel", "a mark"])
def test_few_bright_pixels_do_not_hide_that_bits_are_unused(tmp_path, caplog, bright):
    values = np.random.default_rng(0).integers(0, 4096, (96, 96), np.uint16)
    values[:1, :1] = 60000
    if bright == "a mark":
        values[5:15, 5:35] = 65535
    read_image(saved(tmp_path / "a.png", values))
    assert "of 256 grey levels are left" in caplog.text


def test_the_full_range_is_not_named_however_dark_the_image(caplog):
    dark = np.random.default_rng(0).integers(0, 3000, (96, 96), np.uint16)
    dark[40:44, 40:60] = np.linspace(20000, 65535, 20)
    for pixels in (DEEP, DEEP & 0xFFF0, np.dstack([DEEP] * 3), RGB, GREY, dark):
        read_image(pixels)
    assert not caplog.records


def test_an_image_all_of_one_value_is_named_once(tmp_path, caplog):
    path = saved(tmp_path / "a.png", np.full((24, 36), 2, np.uint8))
    almost = np.full((24, 36, 3), 2, np.uint8)
    almost[-1, -1] = 9
    for _ in range(2):
        read_image(path)
        read_image(almost)
    (record,) = caplog.records
    assert f"{path}: every pixel is 2 2 2; is this the image?" in record.getMessage()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16"])
def test_a_pil_image_and_an_array_are_read_as_their_file(tmp_path, mode):
    image = Image.fromarray(DEEP if mode == "I;16" else RGB)
    image = image if image.mode == mode else image.convert(mode)
    image.save(tmp_path / "a.png")
    expected = read_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(read_image(opened), expected)
        np.testing.assert_array_equal(read_image(np.array(opened)), expected)
    assert image_size(np.array(image)) == (12, 18)


def test_rgb_arrays_are_not_copied():
    assert np.shares_memory(read_image(RGB), RGB)


NO_PICTURES = {
    r"\(3, 24, 36\): .*array\.transpose\(1, 2, 0\)": np.zeros((3, 24, 36), np.uint8),
    r"\(2, 24, 36, 3\): expected \(h, w\) grey or": np.zeros((2, 24, 36, 3), np.uint8),
    r"shape \(36,\)": np.zeros(36, np.uint8),
    r"shape \(24, 36, 5\)": np.zeros((24, 36, 5), np.uint8),
    "0 x 36 pixels": np.zeros((0, 36, 3), np.uint8),
    "type NoneType: expected a path, a PIL image, or an array": None,
    "type list": [[0, 1], [1, 0]],
    r"type Tensor, shape \(24, 36\)": torch.zeros(24, 36),
    "an array of <U1": np.full((24, 36), "a"),
}
NO_IMAGES = {
    r"float64, shape \(12, 18, 3\): expected uint8 .* or uint16": RGB / 255,
    "int64": GREY.astype(np.int64),
    "go from 65400 to 656..; expected 8 bits": GREY.astype(np.int32) + 65400,
}
NO_MASKS = {
    "float64, .*whole numbers": GREY / 510,
    "int8, .*whole numbers, 0 for background": -(GREY > 9).astype(np.int8),
    "whole numbers": GREY.astype(np.int64) << 40,
}


@pytest.mark.parametrize("words", [*NO_PICTURES, *NO_IMAGES, *NO_MASKS])
def test_what_cannot_be_meant_is_refused_by_type_and_shape(words):
    calls = [read_image] if words in NO_IMAGES else [read_mask, read_labels]
    calls = [read_image, *calls] if words in NO_PICTURES else calls
    for read in calls:
        with pytest.raises(DataError, match=words):
            read((NO_PICTURES | NO_IMAGES | NO_MASKS)[words])
