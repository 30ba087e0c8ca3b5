from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from utils import memory
from utils.errors import ConfigError
from utils.visualize import PANEL, PREDICTION, TRUTH, heat, outline, overlay, panels, write_image


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)


@pytest.fixture
def mask():
    mask = np.zeros((90, 120), np.uint8)
    mask[20:50, 30:80] = 1
    mask[30:35, 40:50] = 0
    return mask


@pytest.mark.parametrize("kind", [np.uint8, bool])
def test_overlay_tints_the_mask_and_nothing_else(image, mask, kind):
    before = image.copy()
    out = overlay(image, mask.astype(kind))
    assert np.array_equal(image, before) and out.dtype == np.uint8
    assert np.array_equal(out[mask == 0], image[mask == 0])
    inner = np.s_[23:28, 35:75]
    expected = 0.6 * image[inner] + 0.4 * np.array(PREDICTION)
    assert np.abs(out[inner] - expected).max() <= 1
    assert (out[20, 30:80] == PREDICTION).all(), "the border is drawn in full colour"


def test_overlay_of_nothing_is_the_image(image):
    assert np.array_equal(overlay(image, np.zeros((90, 120), np.uint8)), image)


def test_outline_leaves_the_inside(image, mask):
    out = outline(image, mask, TRUTH)
    assert (out[20:50, 30] == TRUTH).all() and (out[20:50, 79] == TRUTH).all()
    assert np.array_equal(out[22:28, 35:75], image[22:28, 35:75])
    assert np.array_equal(out[mask == 0], image[mask == 0])


def test_outline_of_a_large_image_is_wide_enough_to_be_shown_small():
    mask = np.zeros((2000, 2600), np.uint8)
    mask[900:1100, 900:1100] = 1
    line = outline(np.zeros((2000, 2600, 3), np.uint8), mask, TRUTH)[1000, 880:940].any(-1)
    assert 3 <= line.sum() <= 6


def test_heat_rises_in_brightness_and_bears_values_out_of_range():
    score = np.linspace(-0.5, 1.5, 400)[None]
    colours = heat(score)
    assert colours.shape == (1, 400, 3) and colours.dtype == np.uint8
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[0].astype(int)
    assert (np.diff(grey) >= -2).all() and grey[-1] - grey[0] > 150
    assert np.array_equal(colours[0, 0], colours[0, 99]) and np.array_equal(colours[0, -1], colours[0, 301])
    assert colours[0, 0, 2] > colours[0, 0, 1], "dark violet: RGB"


@pytest.mark.parametrize("size", [(90, 120), (2000, 300), (20, 3000), (1, 1), (1300, 1000)])
def test_panels_stand_side_by_side_at_one_height(size):
    tall = np.zeros((*size, 3), np.uint8)
    out = panels([("a", tall), ("b", np.full((64, 64, 3), 200, np.uint8))])
    assert out.shape[0] == PANEL + 28 and out.dtype == np.uint8
    second = out[28:, -(PANEL + 2) : -2]
    assert (second == 200).all(), "a square fills its panel"
    first = out[28:, 2 : -(PANEL + 6)]
    rows, columns = (int((first == 0).all(-1).any(axis).sum()) for axis in (1, 0))
    assert columns / rows == pytest.approx(size[1] / size[0], rel=0.2, abs=0.01) and max(rows, columns) >= PANEL
    assert (out[:28] < 100).any(), "a caption"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_images_come_back(tmp_path, kind):
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (5, 7), endpoint=True).astype(kind)
    write_image(tmp_path / "new" / "x.png", values)
    assert np.array_equal(cv2.imread(str(tmp_path / "new" / "x.png"), cv2.IMREAD_UNCHANGED), values)


def test_colours_come_back(tmp_path, image):
    write_image(tmp_path / "x.png", image)
    assert np.array_equal(np.array(Image.open(tmp_path / "x.png")), image)


def test_a_file_that_cannot_be_written(tmp_path, image):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ConfigError, match=rf"OUTPUT_DIR: {tmp_path}/x\.png cannot be written"):
        write_image(tmp_path / "x.png", image)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_what_lies_in_a_temporary_file_is_written_the_same(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(memory, "IN_MEMORY", 100)
    image = memory.allocate((600, 70), dtype)
    assert isinstance(image, np.memmap)
    image[:] = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, image.shape)
    write_image(tmp_path / "rows.png", image)
    write_image(tmp_path / "whole.png", np.array(image))
    rows, whole = (cv2.imread(str(tmp_path / f"{n}.png"), cv2.IMREAD_UNCHANGED) for n in ("rows", "whole"))
    assert rows.dtype == dtype and np.array_equal(rows, whole) and np.array_equal(rows, image)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_image(tmp_path / "folder.png", image)
