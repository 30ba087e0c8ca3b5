from __future__ import annotations

import resource

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.errors import OutputError
from utils.visualize import (
    PANEL,
    PREDICTION,
    TRUTH,
    TYPES,
    colour_of,
    heat,
    legend,
    outline,
    overlay,
    overlay_labels,
    panels,
    write_image,
)  # fmt: skip

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
MASK = np.zeros((90, 120), np.uint8)
MASK[20:50, 30:80] = 1
MASK[30:35, 40:50] = 0


def test_overlay_tints_the_mask_and_nothing_else():
    before = IMAGE.copy()
    out = overlay(IMAGE, MASK)
    assert np.array_equal(IMAGE, before) and out.dtype == np.uint8
    assert np.array_equal(out[MASK == 0], IMAGE[MASK == 0])
    inner = np.s_[23:28, 35:75]
    expected = 0.6 * IMAGE[inner] + 0.4 * np.array(PREDICTION)
    assert np.abs(out[inner] - expected).max() <= 1
    assert np.array_equal(out, overlay(IMAGE, MASK > 0))
    assert (out[20, 30:80] == PREDICTION).all(), "the border is drawn in full colour"


def test_overlay_of_labels_tints_each_type_in_its_colour_above_a_legend():
    """The outlines of types that touch do not run into each other."""
    labels, names = np.zeros((90, 120), np.uint8), ["dent", "rust"]
    labels[20:50, 20:100] = np.repeat([[1, 2]], 40, 1)
    out = overlay_labels(IMAGE, labels, names)
    upper, bar = out[:90], out[90:]
    assert np.array_equal(upper[labels == 0], IMAGE[labels == 0])
    assert np.array_equal(bar, legend(names, 120))
    for number in (1, 2):
        alone = overlay(IMAGE, labels == number, colour_of(number))
        assert np.array_equal(upper[labels == number], alone[labels == number])


@pytest.mark.parametrize("width", [14, 120, 4096])
@pytest.mark.parametrize("names", [[f"type {i}" for i in range(20)], ["x" * 200, "打痕"], []])
def test_the_legend_shows_the_colour_of_every_name_at_any_width(names, width):
    """The eight colours repeat after the last."""
    bar, squares = legend(names, width), 0
    assert bar.shape[1:] == (width, 3) and bar.dtype == np.uint8 and len(bar) >= 14
    for number in range(1, min(len(names), len(TYPES)) + 1):
        square = (bar == colour_of(number)).all(-1).astype(np.uint8)
        *_, stats, _ = cv2.connectedComponentsWithStats(square)
        # smaller ones are edges of letters, for grey
        squares += int((stats[1:, cv2.CC_STAT_AREA] > 60).sum())
    assert squares == len(names)
    assert not names or (bar < 100).all(-1).any() or width == 14, "names are written in black"
    assert len(legend(["hole"] * 4, 60)) == 4 * len(legend(["hole"] * 4, 400)), "rows as needed"


def test_outline_leaves_the_inside_and_is_wide_enough_to_be_shown_small():
    out = outline(IMAGE, MASK, TRUTH)
    assert (out[20:50, 30] == TRUTH).all() and (out[20:50, 79] == TRUTH).all()
    assert np.array_equal(out[22:28, 35:75], IMAGE[22:28, 35:75])
    large = np.zeros((2000, 2600), np.uint8)
    large[900:1100, 900:1100] = 1
    line = outline(np.zeros((2000, 2600, 3), np.uint8), large, TRUTH)[1000, 880:940].any(-1)
    assert 3 <= line.sum() <= 6


def test_heat_rises_in_brightness_and_bears_values_out_of_range():
    colours = heat(np.linspace(-0.5, 1.5, 400)[None])
    grey = cv2.cvtColor(colours, cv2.COLOR_RGB2GRAY)[0].astype(int)
    assert (np.diff(grey) >= -2).all() and grey[-1] - grey[0] > 150
    assert (colours[0, :100] == colours[0, 0]).all() and (colours[0, 301:] == colours[0, -1]).all()
    assert colours[0, 0, 2] > colours[0, 0, 1], "dark violet: RGB"


@pytest.mark.parametrize("size", [(2000, 300), (20, 3000), (1, 1)])
def test_panels_stand_side_by_side_at_one_height(size):
    out = panels(
        [("a", np.zeros((*size, 3), np.uint8)), ("b", np.full((64, 64, 3), 200, np.uint8))]
    )
    assert out.shape[0] == PANEL + 28 and out.dtype == np.uint8
    assert (out[28:, -(PANEL + 2) : -2] == 200).all(), "a square fills its panel"
    first = (out[28:, 2 : -(PANEL + 6)] == 0).all(-1)
    rows, columns = (int(first.any(axis).sum()) for axis in (1, 0))
    assert columns / rows == pytest.approx(size[1] / size[0], rel=0.2, abs=0.01)
    assert max(rows, columns) >= PANEL and (out[:28] < 100).any(), "a caption"


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("in_file", [False, True])
def test_images_come_back(tmp_path, kind, in_file):
    values = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (600, 70), endpoint=True)
    grey = values.astype(kind)
    if in_file:
        grey = np.memmap(tmp_path / "map", kind, "w+", shape=values.shape)
        grey[:] = values
    write_image(tmp_path / "new" / "x.png", grey)
    read = cv2.imread(str(tmp_path / "new" / "x.png"), cv2.IMREAD_UNCHANGED)
    assert read.dtype == kind and np.array_equal(read, values)
    write_image(tmp_path / "colour.png", IMAGE)
    assert np.array_equal(np.array(Image.open(tmp_path / "colour.png")), IMAGE)


def test_a_full_disk_is_an_error_also_for_a_map_in_a_file(tmp_path):
    image = np.memmap(tmp_path / "map", np.uint16, "w+", shape=(600, 700))
    image[:] = np.random.default_rng(0).integers(0, 65536, image.shape)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"x\.png cannot be written \(File too large\)"):
            write_image(tmp_path / "x.png", image)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name for file in tmp_path.iterdir()} == {"map"}
