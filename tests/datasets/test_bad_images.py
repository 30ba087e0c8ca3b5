from __future__ import annotations

import logging
import multiprocessing
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import large_images as strips
from datasets.images import exif_orientation, image_size, limit_pixels, most_pixels, read_image
from datasets.masks import read_labels, read_mask
from tests.datasets.bad_files import (
    GREY,
    REFUSED,
    RGB,
    exif_behind_the_pixels,
    saved,
    with_orientation,
)
from utils.errors import DataError

REPO = Path(__file__).parents[2]


@pytest.fixture
def limit():
    """Bound the pixels; afterwards the bound is what it was."""
    before = most_pixels()
    yield limit_pixels
    limit_pixels(before)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_by_name(tmp_path, kind, name):
    REFUSED[kind](tmp_path / name)
    for read in (read_image, read_mask, read_labels, strips.ImageStrips):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_animations_and_pages_give_the_first_and_a_warning(tmp_path, caplog):
    frames = [Image.fromarray(np.roll(RGB, n, axis=0)) for n in range(3)]
    for name, form in (("a.png", "PNG"), ("b.tif", "TIFF"), ("gif.png", "GIF"), ("c.jpg", "MPO")):
        options = {"quality": 100, "subsampling": 0} if form == "MPO" else {}
        rest = [frame.copy() for frame in frames[1:]]
        frames[0].copy().save(tmp_path / name, form, save_all=True, append_images=rest, **options)
        close = (
            70 if form == "GIF" else 6 if form == "MPO" else 0
        )  # a palette for three pictures, JPEG
        for _ in range(2):
            assert np.abs(read_image(tmp_path / name).astype(int) - RGB).max() <= close
    told = [
        record.getMessage() for record in caplog.records if "holds 3 frames" in record.getMessage()
    ]
    assert [Path(text.partition(":")[0]).name for text in told] == [
        "a.png",
        "b.tif",
        "gif.png",
        "c.jpg",
    ]


def test_the_alpha_of_cmyk_and_the_depth_of_others_become_rgb(tmp_path):
    cmyk = Image.fromarray(RGB).convert("CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=100)
    assert (
        np.abs(read_image(tmp_path / "a.jpg").astype(int) - np.array(cmyk.convert("RGB"))).max()
        < 12
    )
    for mode in ("1", "L", "P", "RGBA"):
        image = Image.fromarray(RGB).convert(mode)
        image.save(tmp_path / f"{mode}.png")
        np.testing.assert_array_equal(
            read_image(tmp_path / f"{mode}.png"), np.array(image.convert("RGB"))
        )
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    saved(tmp_path / "deep.png", deep)
    np.testing.assert_array_equal(
        read_image(tmp_path / "deep.png")[:, :, 2], np.rint(deep / 257).astype(np.uint8)
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3)])
@pytest.mark.parametrize("at_once", [1 << 24, 0])
def test_extreme_shapes_are_read(tmp_path, size, at_once, monkeypatch):
    monkeypatch.setattr(strips, "AT_ONCE", at_once)
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = strips.ImageStrips(saved(tmp_path / "a.png", pixels))
    assert image.size == size
    rows = [image.strip(top, min(top + 999, size[0])) for top in range(0, size[0], 999)]
    np.testing.assert_array_equal(np.concatenate(rows), pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, limit, name):
    saved(tmp_path / name, RGB)
    limit(12 * 18)
    assert read_image(tmp_path / name).shape == (12, 18, 3)
    limit(12 * 18 - 1)
    (tmp_path / name).write_bytes(
        (tmp_path / name).read_bytes()[: 600 if name == "a.bmp" else None]
    )
    for read in (read_image, read_mask, read_labels, image_size, strips.ImageStrips):
        with pytest.raises(DataError, match=rf"{name}: 12 x 18 pixels .*DATASET\.max_pixels, 215"):
            read(tmp_path / name)


def test_the_bound_holds_in_forked_processes(tmp_path, limit):
    limit(5)
    path = saved(tmp_path / "a.png", RGB)
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(DataError, match="max_pixels, 5"),
    ):
        pool.apply(read_image, (path,))


def test_a_hundred_thousand_by_a_hundred_thousand_is_refused_by_its_header(tmp_path):
    path = saved(tmp_path / "a.bmp", RGB)
    content = bytearray(path.read_bytes())
    content[18:26] = (100_000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(DataError, match="100000 x 100000"):
        read_image(path)


def read_with(path, memory):
    """What reading tells in a process of its own, which may have so many bytes more than it has."""
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


def test_what_does_not_fit_into_the_memory_is_refused_by_name(tmp_path):
    Image.new("RGB", (9000, 9000)).save(tmp_path / "a.png")
    told = read_with(tmp_path / "a.png", 200_000_000)
    assert told.startswith("DataError") and "a.png: does not fit into the memory" in told, told


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_reading_takes_at_most_eight_bytes_a_pixel(tmp_path, mode):
    Image.new(mode, (5000, 4000)).save(tmp_path / "a.png")
    assert read_with(tmp_path / "a.png", 8 * 5000 * 4000 + 20_000_000).strip() == "(4000, 5000, 3)"


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_told_but_not_applied(tmp_path, name, orientation):
    path = with_orientation(tmp_path / name, RGB, orientation)
    assert exif_orientation(path) == orientation and image_size(path) == (12, 18)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_is_none_counts_as_upright(tmp_path, value):
    for name in ("a.jpg", "a.tif"):
        path = with_orientation(tmp_path / name, RGB, value)
        assert exif_orientation(path) == 1
        assert read_image(path).shape == RGB.shape


def test_an_orientation_after_the_pixels_is_found_where_it_is_searched(tmp_path):
    path = with_orientation(tmp_path / "a.png", GREY, 6)
    exif_behind_the_pixels(path)
    assert (exif_orientation(path), exif_orientation(path, search=True)) == (1, 6)


def test_ordinary_images_are_read_without_a_warning(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.png", "a.jpg", "a.bmp", "a.tif"):
            read_image(saved(tmp_path / name, RGB))
            read_mask(saved(tmp_path / name, np.uint8(255) * (GREY > 99)))
    assert [
        r for r in caplog.records if r.levelno >= logging.WARNING and not r.message.count("a.jpg")
    ] == []
