from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from datasets import large_images as strips
from datasets.images import read_image
from datasets.large_images import ImageStrips
from utils.errors import DataError


@pytest.fixture(autouse=True)
def _all_files_are_large(monkeypatch):
    monkeypatch.setattr(strips, "AT_ONCE", 100)


def write(path, mode, size=(37, 53)):
    rng = np.random.default_rng(0)
    channels = {"RGB": (3,), "RGBA": (4,), "LA": (2,)}.get(mode, ())
    values = rng.integers(0, 256, (*size, *channels)).astype(np.uint8)
    image = Image.fromarray(values * 200 if mode == "I;16" else values.astype(np.uint8))
    image.convert("1" if mode == "1" else image.mode).save(path)
    return path


def rows(image):
    """The image, read in strips of which some overlap."""
    parts = [(0, 10), (5, 15), (15, 20), (20, 37)]
    got = {}
    for top, bottom in parts:
        for number, row in enumerate(image.strip(top, bottom)):
            known = got.setdefault(top + number, row)
            assert np.array_equal(known, row)
    return np.stack([got[i] for i in range(37)])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_strips_are_the_rows_of_the_image(tmp_path, name, mode):
    path = write(tmp_path / name, mode)
    image = ImageStrips(path)
    assert image.pixels is None or name == "a.bmp"
    assert image.size == (37, 53)
    read = rows(image)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, read_image(path))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1"])
def test_other_kinds_of_pixels_give_what_reading_at_once_gives(tmp_path, mode):
    path = write(tmp_path / "a.png", mode)
    np.testing.assert_array_equal(rows(ImageStrips(path)), read_image(path))


def test_palette_and_sixteen_bits_give_what_reading_at_once_gives(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)).quantize(
        8
    ).save(tmp_path / "p.png")
    deep = np.random.default_rng(0).integers(0, 65536, (37, 53)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "d.png")
    for name in ("p.png", "d.png"):
        np.testing.assert_array_equal(
            rows(ImageStrips(tmp_path / name)), read_image(tmp_path / name)
        )


def test_jpeg_strips_are_nearly_those_of_the_other_decoder(tmp_path):
    smooth = np.linspace(0, 255, 37 * 53).reshape(37, 53).astype(np.uint8)
    Image.fromarray(np.stack([smooth, smooth.T.reshape(37, 53), 255 - smooth], axis=2)).save(
        tmp_path / "a.jpg"
    )
    image = ImageStrips(tmp_path / "a.jpg")
    assert image.pixels is None
    difference = np.abs(rows(image).astype(int) - read_image(tmp_path / "a.jpg").astype(int))
    assert difference.max() <= 3


def test_exif_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)).save(
        tmp_path / "a.png", exif=exif
    )
    image = ImageStrips(tmp_path / "a.png")
    assert image.size == (37, 53) and image.thumbnail(20).shape == (13, 18, 3)
    np.testing.assert_array_equal(rows(image), read_image(tmp_path / "a.png"))


def test_a_file_cut_off_is_reported(tmp_path):
    path = write(tmp_path / "a.png", "RGB")
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        rows(ImageStrips(path))


def test_small_files_and_arrays_are_held_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(strips, "AT_ONCE", 10**6)
    path = write(tmp_path / "a.png", "RGB")
    whole = ImageStrips(path)
    assert np.array_equal(whole.pixels, read_image(path))
    assert np.array_equal(rows(ImageStrips(whole.pixels)), whole.pixels)


def test_thumbnail_shows_the_image(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = (250, 100, 10)
    Image.fromarray(picture).save(tmp_path / "a.png")
    for image in (ImageStrips(tmp_path / "a.png"), ImageStrips(picture)):
        small = image.thumbnail(16)
        assert small.shape == (8, 16, 3)
        assert not small[:, :8].any() and (small[:, 8:] == (250, 100, 10)).all()
