from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips
import torch
from PIL import Image

from datasets.images import image_size, limit_pixels, read_image
from datasets.large_images import ImageStrips
from datasets.masks import read_labels, read_mask
from tests.datasets.bad_files import GREY, REFUSED, RGB, saved, warnings_about
from utils.errors import DataError

REPO = Path(__file__).parents[2]
DEEP = np.random.default_rng(1).integers(0, 65536, (12, 18), dtype=np.uint16)


@pytest.mark.parametrize("name", ["a.PNG", "a.bmp", "a.tif", "a.webp", "a.JPG", "cmyk.jpg"])
def test_colours_come_back_exactly_or_from_a_jpeg_nearly(tmp_path, name):
    lossy = name.lower().endswith("jpg")
    pixels = np.full_like(RGB, (200, 90, 20)) if lossy else RGB
    options = {"quality": 100} if lossy else {"lossless": True} if name == "a.webp" else {}
    mode = "CMYK" if name == "cmyk.jpg" else None
    image = read_image(saved(tmp_path / name, pixels, mode, **options))
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    assert np.abs(image.astype(int) - pixels).max() <= (12 if lossy else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_becomes_rgb_without_alpha_as_file_pil_image_and_array(tmp_path, mode):
    image = Image.fromarray(DEEP if mode == "I;16" else RGB)
    image = image if mode == "I;16" else image.convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(GREY))
    path = tmp_path / "a.png"
    expected = np.array(image.convert("RGB"))
    image.save(path, transparency=bytes([0, 128, 255]) if mode == "P" else None)
    if mode == "I;16":
        expected = np.repeat(np.rint(DEEP / 257).astype(np.uint8)[..., None], 3, axis=2)
    read = read_image(path)
    np.testing.assert_array_equal(read, expected)
    assert np.shares_memory(read_image(read), read), "RGB arrays are not copied"
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_image(opened), read)
        if mode != "P":
            np.testing.assert_array_equal(read_image(np.array(opened)), read)
    assert image_size(np.array(image)) == image_size(path) == (12, 18)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_divided_by_257_and_colours_cut(tmp_path, name):
    path, colours = tmp_path / name, np.dstack([DEEP, DEEP[::-1], DEEP // 2])
    grey = np.dstack([np.rint(DEEP / 257)] * 3)
    for values, expected in ((DEEP, grey), (colours[:, :, ::-1], colours >> 8)):
        cv2.imwrite(str(path), values)
        np.testing.assert_array_equal(read_image(path), expected)
    np.testing.assert_array_equal(read_image(colours), colours >> 8)
    for kind in (np.int32, ">u2"):
        np.testing.assert_array_equal(read_image(DEEP.astype(kind)), grey)


@pytest.mark.parametrize(
    ("bands", "kind", "words"),
    [
        (5, np.uint8, "a TIFF of 5 bands of 8-bit whole numbers, which .*; save it"),
        (1, np.float64, "a TIFF of 1 band of 64-bit floating point, which .*; save it"),
        (1, np.int16, "its values go from -100 to 115; expected 8 bits"),
    ],
)
def test_whole_tiffs_of_rare_kinds_are_named_and_not_called_broken(tmp_path, bands, kind, words):
    values = np.arange(-100, 116).reshape(12, 18, 1).repeat(bands, axis=2).astype(kind)
    pyvips.Image.new_from_array(values).tiffsave(str(tmp_path / "b.tif"))
    with pytest.raises(DataError, match=rf"b\.tif: {words}") as error:
        read_image(tmp_path / "b.tif")
    assert "copy" not in str(error.value)


FOREIGN = {
    b"\n <!DOCTYPE html><title>": "not an image but a web page; download the file itself",
    b"version https://git-lfs.github.com/spec/v1\noid": "a pointer of Git LFS; .* git lfs pull",
    b"%PDF-1.7 ": "a PDF document; save it as PNG",
    b"\0\0\0\x18ftypheic\0\0\0\0": "the format HEIC, which is not read; save it as PNG",
    b"PK\x03\x04aaaa": "a ZIP archive; unpack it",
    b"": "the file is empty, copy it again",
    b"whatever it is": "cannot be read .*copy it again where it is cut off or damaged",
}


@pytest.mark.parametrize("content", FOREIGN)
def test_what_was_saved_in_place_of_an_image_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, image_size, read_mask):
        with pytest.raises(DataError, match=rf"a\.png: .*{FOREIGN[content]}"):
            read(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_by_name(tmp_path, kind, name):
    REFUSED[kind](tmp_path / name)
    for read in (read_image, read_mask, read_labels, ImageStrips):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, request, name):
    request.addfinalizer(lambda: limit_pixels(500_000_000))
    path = saved(tmp_path / name, RGB)
    limit_pixels(12 * 18)
    assert read_image(path).shape == (12, 18, 3)
    limit_pixels(12 * 18 - 1)
    path.write_bytes(path.read_bytes()[: 600 if name == "a.bmp" else None])
    for read in (read_image, read_mask, image_size, ImageStrips):
        with pytest.raises(DataError, match=rf"{name}: 12 x 18 pixels .*DATASET\.max_pixels, 215"):
            read(path)


READ = r"""
import re, resource, sys
from datasets.images import read_image
used = 1024 * int(re.search(r"VmSize:\s+(\d+)", open("/proc/self/status").read())[1])
for more in (180_000_000, 40_000_000):
    resource.setrlimit(resource.RLIMIT_AS, (used + more, -1))
    try: print(read_image(sys.argv[1]).shape)
    except Exception as error: print(type(error).__name__, error)
"""


def test_reading_takes_eight_bytes_a_pixel_and_refuses_what_does_not_fit(tmp_path):
    Image.new("RGB", (5000, 4000)).save(tmp_path / "a.png")
    command = [sys.executable, "-c", READ, tmp_path / "a.png"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    fits, refused = result.stdout.splitlines()
    assert fits == "(4000, 5000, 3)", result
    assert "DataError" in refused and "a.png: does not fit into the memory" in refused


@pytest.mark.parametrize("name", ["b.tif", "c.gif"])
def test_of_frames_and_pages_the_first_is_read_and_named_once(tmp_path, caplog, name):
    first, *rest = (Image.fromarray(np.roll(RGB, n, axis=0)) for n in range(3))
    first.save(tmp_path / name, save_all=True, append_images=rest)
    for _ in range(2):
        near = 70 if name == "c.gif" else 0  # a palette for three pictures
        assert np.abs(read_image(tmp_path / name).astype(int) - RGB).max() <= near
    (message,) = warnings_about(caplog, tmp_path / name)
    assert "holds 3 frames or pages, of which the first is used" in message


def test_a_bmp_that_the_decoder_gets_wrong_is_refused(tmp_path):
    image, path = Image.fromarray((GREY > 99).astype(np.uint8), "P"), tmp_path / "m.bmp"
    image.putpalette([0, 0, 0, 255, 255, 255])
    image.save(path)
    with pytest.raises(DataError, match=r"m\.bmp: a BMP of a black and a white palette entry"):
        read_image(path)
    image.convert("1").save(path)
    np.testing.assert_array_equal(read_mask(path), GREY > 99)


@pytest.mark.parametrize(("bits", "bright"), [(10, "pixel"), (12, "mark"), (14, "colour")])
def test_unused_bits_are_named_once_for_a_folder(tmp_path, caplog, bits, bright):
    """A stuck pixel, or a mark of 65535 burnt into the image, does not hide them."""
    values = np.linspace(0, 2**bits - 1, 128 * 128).astype(np.uint16).reshape(128, 128)
    values[:1, :1] = 60000
    values[5:15, 5:35] = 65535 if bright == "mark" else values[5:15, 5:35]
    for name in ("0.png", "1.png"):
        cv2.imwrite(str(tmp_path / name), np.dstack([values] * 3) if bright == "colour" else values)
        read_image(tmp_path / name)
    (message,) = warnings_about(caplog, tmp_path)
    assert "of 256 grey levels are left; scale it to the full range, all images by" in message


def test_one_value_is_named_once_and_the_full_range_is_not(tmp_path, caplog):
    dark, almost = np.random.default_rng(0).integers(0, 3000, (96, 96), np.uint16), GREY * 0
    dark[40:44, 40:60], almost[-1, -1] = np.linspace(20000, 65535, 20), 9
    for pixels in (DEEP, DEEP & 0xFFF0, np.dstack([DEEP] * 3), RGB, GREY, dark, almost):
        read_image(pixels)
    assert not caplog.records
    path = saved(tmp_path / "a.png", np.full((24, 36), 2, np.uint8))
    read_image(path), read_image(path)
    (record,) = caplog.records
    assert f"{path}: every pixel is 2 2 2; is this the image?" in record.getMessage()


NO_PICTURES = {
    r"\(3, 24, 36\): .*array\.transpose\(1, 2, 0\)": np.zeros((3, 24, 36), np.uint8),
    "0 x 36 pixels": np.zeros((0, 36, 3), np.uint8),
    "type NoneType: expected a path, a PIL image, or an array": None,
    r"type Tensor, shape \(24, 36\)": torch.zeros(24, 36),
    "an array of <U1": np.full((24, 36), "a"),
}
NO_IMAGES = {
    r"float64, shape \(12, 18, 3\): expected uint8 .* or uint16": RGB / 255,
    r"PIL image of mode F.*: expected uint8 .*floats": Image.new("F", (4, 4)),
    "go from 65400 to 656..; expected 8 bits": GREY.astype(np.int32) + 65400,
}
NO_MASKS = {
    "float64, .*whole numbers": GREY / 510,
    "int8, .*whole numbers, 0 for background": -(GREY > 9).astype(np.int8),
}


@pytest.mark.parametrize("words", [*NO_PICTURES, *NO_IMAGES, *NO_MASKS])
def test_what_cannot_be_meant_is_refused_by_type_and_shape(words):
    calls = [read_image] if words not in NO_MASKS else []
    for read in calls if words in NO_IMAGES else [*calls, read_mask, read_labels]:
        with pytest.raises(DataError, match=words):
            read((NO_PICTURES | NO_IMAGES | NO_MASKS)[words])
