"""A picture says the same whatever way it comes in: as a file, as the PIL image opened from it, or as an array."""

from __future__ import annotations

import io
import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from datasets.images import exif_orientation, image_size, read_image
from datasets.masks import read_labels, read_mask
from datasets.orientation import turned_back
from tests.datasets.bad_files import saved, with_orientation
from utils.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()
DEEP = np.random.default_rng(1).integers(0, 65536, (24, 36), dtype=np.uint16)
DEFECT = np.zeros((24, 36), np.uint8)
DEFECT[5:12, 9:20] = 255
SMOOTH = np.array(Image.fromarray(DEFECT).filter(ImageFilter.GaussianBlur(1.5)))
ALPHA = np.dstack([np.full((24, 36, 3), 255, np.uint8), DEFECT])
CLASSES = np.zeros((24, 36), np.uint8)
CLASSES[2:8, 2:9], CLASSES[10:15, 12:20], CLASSES[18:23, 22:33] = 80, 160, 240
COLOURS = np.zeros((24, 36, 3), np.uint8)
COLOURS[2:8, 2:9], COLOURS[10:15, 12:20] = (64, 0, 0), (0, 0, 255)


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def jpeg(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return np.array(Image.open(file))


@pytest.mark.parametrize(
    ("name", "pixels", "mode"),
    [
        ("a.png", RGB, None), ("a.png", RGB, "RGBA"), ("a.png", GREY, None), ("a.png", GREY, "LA"),
        ("a.png", DEEP, None), ("a.tif", DEEP, None), ("a.png", DEFECT, "1"), ("a.bmp", RGB, None),
        ("a.tif", DEEP.astype(np.int32), None), ("a.jpg", RGB, None), ("a.png", np.dstack([RGB, GREY]), None),
        ("a.png", np.dstack([GREY, GREY[::-1]]), None),
    ],
)  # fmt: skip
def test_an_image_as_file_pil_image_and_array(tmp_path, name, pixels, mode):
    path = saved(tmp_path / name, pixels, mode)
    expected = read_image(path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(image), expected)
        array = np.array(image)
    before = array.copy()
    np.testing.assert_array_equal(read_image(array), expected)
    np.testing.assert_array_equal(array, before)
    assert image_size(array) == image_size(path) == (24, 36)


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV", "I;16", "I"])
def test_an_image_of_a_mode_that_no_array_tells(tmp_path, mode):
    """Palette indices and other colour spaces have a meaning that Pillow knows."""
    source = Image.fromarray(DEEP if mode.startswith("I") else RGB)
    image = source if source.mode == mode else source.convert(mode)
    path = tmp_path / "a.tif"
    image.convert("RGB" if mode in ("YCbCr", "HSV") else image.mode).save(path)
    np.testing.assert_array_equal(read_image(image), read_image(path))


@pytest.mark.parametrize("shape", [(24, 36), (24, 36, 3)])
def test_sixteen_bit_arrays_as_the_files_that_opencv_makes_of_them(tmp_path, shape):
    deep = np.random.default_rng(1).integers(0, 65536, shape, dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), deep if len(shape) == 2 else deep[:, :, ::-1])
    np.testing.assert_array_equal(read_image(deep), read_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(read_image(deep.astype(">u2")), read_image(deep))


def test_a_picture_is_not_changed_and_rgb_pixels_are_not_copied():
    image = Image.fromarray(RGB).convert("P")
    image.info["transparency"] = bytes(range(256))
    read_image(image)
    assert image.info["transparency"] == bytes(range(256)) and image.mode == "P"
    assert np.shares_memory(read_image(RGB), RGB)


@pytest.mark.parametrize(
    ("name", "values", "mode"),
    [
        ("m.png", DEFECT, None), ("m.png", DEFECT, "1"), ("m.png", DEFECT, "RGBA"), ("m.png", DEFECT, "LA"),
        ("m.png", DEFECT // 255, None), ("m.png", SMOOTH, None), ("m.png", jpeg(DEFECT), "RGB"), ("m.png", ALPHA, None),
        ("m.png", CLASSES, None), ("m.png", COLOURS, None), ("m.png", DEFECT.astype(np.uint16) * 257, None),
        ("m.tif", DEFECT.astype(np.int32), None), ("m.png", CLASSES, "P"),
        ("m.png", SMOOTH.astype(np.uint16) * 257, None),
    ],
)  # fmt: skip
def test_a_mask_as_file_pil_image_and_array(tmp_path, name, values, mode):
    path = saved(tmp_path / name, values, mode)
    expected = read_mask(path)
    assert 0 < expected.mean() < 0.5
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_mask(image), expected)
        array = np.array(image)
    for same in (array, array.astype(np.int64), array.astype(np.float32)):
        np.testing.assert_array_equal(read_mask(same), expected)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float64])
def test_a_binary_mask_of_any_kind_of_number(kind):
    np.testing.assert_array_equal(read_mask((DEFECT > 0).astype(kind)), DEFECT > 0)


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_orientations_hold_for_pil_images_too(tmp_path, orientation):
    """A mask with an orientation of its own on an upright image, and one drawn on the turned picture."""
    upright, turned = (
        saved(tmp_path / "u.png", RGB),
        with_orientation(tmp_path / "t.jpg", RGB, orientation),
    )
    rotated = DEFECT if orientation < 5 else np.rot90(DEFECT)
    mask = with_orientation(tmp_path / "m.png", np.ascontiguousarray(rotated), orientation)
    expected = turned_back(read_mask(mask), upright, mask)
    with Image.open(upright) as image, Image.open(mask) as marks:
        assert exif_orientation(marks) == orientation
        np.testing.assert_array_equal(turned_back(read_mask(marks), image, marks), expected)
        np.testing.assert_array_equal(turned_back(read_mask(marks), RGB, marks), expected)
    drawn = (DEFECT if orientation < 5 else np.rot90(DEFECT)) // 255
    expected = turned_back(drawn, turned)
    with Image.open(turned) as image:
        np.testing.assert_array_equal(turned_back(read_mask(drawn), image, drawn), expected)
        np.testing.assert_array_equal(read_image(image), read_image(turned))


CANNOT_BE_MEANT = {
    "channels first": (
        np.zeros((3, 24, 36), np.uint8),
        r"uint8, shape \(3, 24, 36\): .*array\.transpose\(1, 2, 0\)",
    ),
    "a batch": (
        np.zeros((2, 24, 36, 3), np.uint8),
        r"shape \(2, 24, 36, 3\): expected \(h, w\) grey or \(h, w, 3\)",
    ),
    "a row": (np.zeros(36, np.uint8), r"shape \(36,\)"),
    "five channels": (np.zeros((24, 36, 5), np.uint8), r"shape \(24, 36, 5\)"),
    "no rows": (np.zeros((0, 36, 3), np.uint8), r"0 x 36 pixels"),
    "no columns": (np.zeros((24, 0), np.uint8), r"24 x 0 pixels"),
    "nothing": (None, "a value of type NoneType: expected a path, a PIL image, or an array"),
    "a number": (3, "a value of type int"),
    "a list": ([[0, 1], [1, 0]], "a value of type list"),
    "bytes": (b"\x89PNG", "a value of type bytes"),
    "a tensor": (torch.zeros(24, 36), "a value of type Tensor"),
    "texts": (np.full((24, 36), "a"), "an array of <U1"),
}
IMAGES_ALONE = {
    "floats": (RGB / 255, r"float64, shape \(24, 36, 3\): expected uint8 .* or uint16"),
    "many bits": (GREY.astype(np.int64), "int64"),
    "signed": (GREY.astype(np.int8), "int8"),
    "too much": (GREY.astype(np.int32) + 65400, "go from 65400 to 65655; expected 8 bits"),
    "negative": (GREY.astype(np.int32) - 1, "go from -1 to"),
}
MASKS_ALONE = {
    "fractions": (DEFECT / 510, r"float64, .*whole numbers"),
    "no number": (np.full((24, 36), np.nan), "whole numbers"),
    "negative": (-(DEFECT > 0).astype(np.int8), "int8, .*whole numbers, 0 for background"),
    "far too large": (DEFECT.astype(np.int64) << 40, "whole numbers"),
}


@pytest.mark.parametrize("kind", [*CANNOT_BE_MEANT, *IMAGES_ALONE])
def test_an_image_that_cannot_be_meant_is_refused_by_type_and_shape(kind):
    picture, words = (CANNOT_BE_MEANT | IMAGES_ALONE)[kind]
    with pytest.raises(DataError, match=words):
        read_image(picture)


@pytest.mark.parametrize("kind", [*CANNOT_BE_MEANT, *MASKS_ALONE])
def test_a_mask_that_cannot_be_meant_is_refused_by_type_and_shape(kind):
    picture, words = (CANNOT_BE_MEANT | MASKS_ALONE)[kind]
    for read in (read_mask, read_labels):
        with pytest.raises(DataError, match=words.replace("go from", "")):
            read(picture)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("colour", [False, True])
def test_bits_that_leave_most_of_sixteen_unused_are_told_once_for_a_folder(
    tmp_path, caplog, bits, name, colour
):
    values = np.linspace(0, 2**bits - 1, 24 * 36).astype(np.uint16).reshape(24, 36)
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        for number in range(2):
            pixels = np.dstack([values] * 3) if colour else values
            cv2.imwrite(str(tmp_path / place / f"{number}{name}"), pixels)
            read_image(tmp_path / place / f"{number}{name}")
    messages = [text for text in told(caplog) if "of the 16-bit range" in text]
    assert all(
        text.startswith(str(tmp_path / p)) for p, text in zip(("one", "two"), messages, strict=True)
    )
    assert "scale it to the full range, all images by the same factor" in messages[0]


@pytest.mark.parametrize(
    "array", [DEEP >> 4, np.dstack([DEEP >> 4] * 3), (DEEP >> 4).astype(np.int32)]
)
def test_bits_of_arrays_and_pil_images_are_told_as_well(caplog, array):
    read_image(array)
    assert f"uses 0 to {array.max()} of the 16-bit range" in told(caplog)[0]


def test_the_full_range_is_not_told(tmp_path, caplog):
    for depth in (DEEP, DEEP & 0xFFF0, np.dstack([DEEP] * 3), RGB, GREY):
        read_image(depth)
    assert told(caplog) == []


@pytest.mark.parametrize("value", [0, 2, 255])
def test_an_image_all_of_one_value_is_told(tmp_path, caplog, value):
    path = saved(tmp_path / "a.png", np.full((24, 36), value, np.uint8))
    almost = np.full((24, 36, 3), value, np.uint8)
    almost[-1, -1] = 9
    for _ in range(2):
        read_image(path)
        read_image(almost)
    (message,) = told(caplog)
    assert f"{path}: every pixel is {value} {value} {value}; is this the image?" in message
