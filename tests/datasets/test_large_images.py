from __future__ import annotations

import numpy as np
import pytest

from datasets import large_images
from datasets.images import read_image
from datasets.large_images import ImageStrips
from tests.datasets.bad_files import saved, warnings_about, with_orientation
from utils.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)


@pytest.fixture(autouse=True)
def _all_files_are_large(monkeypatch):
    monkeypatch.setattr(large_images, "AT_ONCE", 100)


def rows(image):
    """The image, read in strips of which some overlap."""
    found = {}
    for top, bottom in ((0, 10), (5, 15), (15, 20), (20, 37)):
        for number, row in enumerate(image.strip(top, bottom)):
            assert np.array_equal(found.setdefault(top + number, row), row)
    return np.stack([found[number] for number in range(37)])


@pytest.mark.parametrize(
    ("name", "mode"),
    [(f"a.{kind}", mode) for kind in ("png", "tif", "bmp") for mode in ("RGB", "L")]
    + [("a.jpg", "RGB")]
    + [("a.png", mode) for mode in ("RGBA", "LA", "1", "P", "I;16")],
)
def test_strips_are_the_rows_of_the_image(tmp_path, name, mode):
    """Those of a JPEG nearly, as another decoder reads it."""
    pixels, lossy = PIXELS, name == "a.jpg"
    if lossy or mode == "I;16":
        smooth = np.linspace(0, 255, 37 * 53).reshape(37, 53)
        pixels = smooth.astype(np.uint8) if lossy else (smooth * 200).astype(np.uint16)
    image = ImageStrips(saved(tmp_path / name, pixels, None if mode == "I;16" else mode))
    if mode in ("RGB", "L"):
        assert image.pixels is None or name == "a.bmp"
    read = rows(image)
    assert image.size == (37, 53) and read.dtype == np.uint8
    assert np.abs(read.astype(int) - read_image(tmp_path / name)).max() <= 3 * lossy


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_exif_turns_nothing(tmp_path, name):
    image = ImageStrips(with_orientation(tmp_path / name, PIXELS[:, :, :3], 6))
    assert image.size == (37, 53) and image.thumbnail(20).shape == (13, 18, 3)
    np.testing.assert_array_equal(rows(image), PIXELS[:, :, :3])


def test_a_file_cut_off_is_refused_by_name_and_one_value_is_named(tmp_path, caplog):
    rows(ImageStrips(saved(tmp_path / "a.png", np.full((37, 53, 3), 7, np.uint8))))
    (message,) = warnings_about(caplog, tmp_path)
    assert "every pixel is 7 7 7" in message
    path = saved(tmp_path / "a.png", PIXELS)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"a\.png: cannot be read as an image"):
        rows(ImageStrips(path))


def test_small_files_and_arrays_are_held_whole_and_extreme_shapes_are_read(tmp_path, monkeypatch):
    for size in [(1, 1), (3, 5000), (5000, 3)]:
        pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = ImageStrips(saved(tmp_path / "a.png", pixels))
        read = [image.strip(top, min(top + 999, size[0])) for top in range(0, size[0], 999)]
        np.testing.assert_array_equal(np.concatenate(read), pixels)
    monkeypatch.setattr(large_images, "AT_ONCE", 10**6)
    np.testing.assert_array_equal(ImageStrips(tmp_path / "a.png").pixels, pixels)
    np.testing.assert_array_equal(ImageStrips(pixels).strip(3, 9), pixels[3:9])


def test_thumbnail_shows_the_image(tmp_path):
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 40:] = (250, 100, 10)
    for image in (ImageStrips(saved(tmp_path / "a.png", picture)), ImageStrips(picture)):
        small = image.thumbnail(16)
        assert small.shape == (8, 16, 3)
        assert not small[:, :8].any() and (small[:, 8:] == (250, 100, 10)).all()


def test_a_file_is_read_once_for_equal_thumbnails_and_pixels_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(large_images, "AT_ONCE", 100)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    file = saved(tmp_path / "a.png", pixels)
    image = ImageStrips(file)
    small = image.thumbnail(30)
    file.unlink()
    assert image.thumbnail(30) is small and small.shape == (20, 30, 3)
    assert ImageStrips(pixels).thumbnail(60) is pixels
