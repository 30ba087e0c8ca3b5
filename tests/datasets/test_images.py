from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from datasets.images import image_size, read_image
from datasets.masks import read_labels, read_mask
from utils.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (11, 17, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()


def save(path, array, mode=None, **options):
    Image.fromarray(array).convert(mode).save(path, **options) if mode else Image.fromarray(
        array
    ).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.tif", "a.TIFF"])
def test_lossless_rgb_comes_back_exactly(tmp_path, name):
    image = read_image(save(tmp_path / name, RGB))
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, RGB)
    assert image_size(tmp_path / name) == (11, 17)


def test_jpeg_is_close_in_channel_order_and_shape(tmp_path):
    colour = np.zeros((20, 30, 3), np.uint8) + np.array([200, 90, 20], np.uint8)
    image = read_image(save(tmp_path / "a.JPG", colour, quality=95)).astype(int)
    assert image.shape == (20, 30, 3) and np.abs(image - colour).max() <= 6


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_grey_forms_repeat_one_channel(tmp_path, mode):
    source = np.where(GREY > 127, 255, 0).astype(np.uint8)
    image = read_image(save(tmp_path / "a.png", source, mode))
    np.testing.assert_array_equal(image, np.repeat(source[:, :, None], 3, axis=2))


def test_alpha_is_dropped_and_not_blended(tmp_path):
    rgba = np.dstack([RGB, np.zeros((11, 17), np.uint8)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", rgba)), RGB)


def test_palette_with_transparency_gives_its_colours_without_a_warning(tmp_path):
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    indices.putdata([0, 1, 2, 1])
    indices.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    indices.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(tmp_path / "a.png")
    assert image.tolist() == [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_scale_by_257(tmp_path, name):
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    image = read_image(save(tmp_path / name, deep))
    np.testing.assert_array_equal(image[:, :, 1], np.arange(256, dtype=np.uint8).reshape(16, 16))


def test_float_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", np.ones((4, 4), np.float32))
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="floating point"):
            read(path)


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {}), ("a.png", {}), ("a.tif", {}), ("lzw.tif", {"compression": "tiff_lzw"})],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_nowhere(tmp_path, name, options, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    grey = np.repeat(np.linspace(0, 250, 40, dtype=np.uint8)[None], 24, axis=0)
    plain, turned = tmp_path / f"plain_{name}", tmp_path / name
    save(plain, grey, **options)
    save(turned, grey, exif=exif, **options)
    np.testing.assert_array_equal(read_image(turned), read_image(plain))
    assert image_size(turned) == (24, 40)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9])
def test_truncated_files_are_errors_that_name_the_file(tmp_path, name, share):
    noise = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    path = save(tmp_path / name, noise)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    for read in (read_image, read_mask, read_labels):
        with pytest.raises(DataError, match=name):
            read(path)


def test_missing_and_foreign_files_are_errors_that_name_the_file(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    for name in ("gone.png", "text.png"):
        for read in (read_image, read_mask, read_labels, image_size):
            with pytest.raises(DataError, match=name):
                read(tmp_path / name)


def test_a_hundred_megapixels_open_without_a_warning(tmp_path):
    Image.new("1", (12500, 8000)).save(tmp_path / "big.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(tmp_path / "big.png") == (8000, 12500)
        assert not read_mask(tmp_path / "big.png").any()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_masks_mark_whatever_is_not_zero(tmp_path, mode):
    values = np.array([[0, 1, 2], [127, 0, 64]], np.uint8)
    path = save(tmp_path / "m.png", values, mode)
    assert read_mask(path).tolist() == [[0, 1, 1], [1, 0, 1]] and read_mask(path).dtype == np.uint8
    np.testing.assert_array_equal(read_labels(path), values)


def test_bit_and_sixteen_bit_masks(tmp_path):
    bits = save(tmp_path / "bits.png", np.array([[0, 255]], np.uint8), "1")
    deep = save(tmp_path / "deep.png", np.array([[0, 1, 300]], np.uint16))
    assert read_mask(bits).tolist() == [[0, 1]] and read_labels(bits).tolist() == [[0, 1]]
    assert read_mask(deep).tolist() == [[0, 1, 1]] and read_labels(deep).tolist() == [[0, 1, 300]]


def test_palette_masks_are_indices_not_colours(tmp_path):
    mask = Image.new("P", (3, 1))
    mask.putdata([0, 1, 2])
    mask.putpalette([255, 255, 255, 1, 0, 0, 9, 9, 9])
    mask.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 1, 1]]
    assert read_labels(tmp_path / "m.png").tolist() == [[0, 1, 2]]


def test_a_coloured_mask_is_binary_but_holds_no_classes(tmp_path):
    path = save(tmp_path / "m.png", np.array([[[0, 0, 0], [0, 0, 7]]], np.uint8))
    assert read_mask(path).tolist() == [[0, 1]]
    with pytest.raises(DataError, match=r"m\.png.*coloured"):
        read_labels(path)
