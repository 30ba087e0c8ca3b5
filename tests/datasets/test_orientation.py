from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets.images import exif_orientation, image_size, read_image, turned
from datasets.masks import read_mask
from datasets.orientation import check_same_size, turned_back
from tests.datasets.bad_files import RGB, saved, warnings_about, with_orientation
from utils.errors import DataError

MARKS = np.zeros((12, 18), np.uint8)
MARKS[1:4, 2:9] = 1


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "lzw.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_reported_and_turns_masks_but_not_pixels(tmp_path, name, orientation):
    options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
    path = with_orientation(tmp_path / name, RGB, orientation, **options)
    plain = saved(tmp_path / "plain" / name, RGB, **options)
    assert exif_orientation(path) == orientation and image_size(path) == (12, 18)
    np.testing.assert_array_equal(read_image(path), read_image(plain))
    marks = Image.fromarray(MARKS)
    marks.getexif()[274] = orientation
    shown = np.array(ImageOps.exif_transpose(marks))  # Pillow's own turning
    np.testing.assert_array_equal(turned(MARKS, orientation), shown)
    np.testing.assert_array_equal(turned(shown, orientation, undo=True), MARKS)
    for mask in (MARKS, shown) if orientation > 4 else ():
        np.testing.assert_array_equal(turned_back(mask, path), MARKS)


@pytest.mark.parametrize(
    ("orientation", "side", "warns"), [(1, 12, 0), (3, 12, 1), (6, 12, 0), (6, 18, 1)]
)
def test_where_sizes_are_ambiguous_a_warning_names_the_image_once(
    tmp_path, orientation, side, warns, caplog
):
    pixels, mask = np.zeros((side, 18, 3), np.uint8), np.eye(side, 18, dtype=np.uint8)
    image = with_orientation(tmp_path / "i.png", pixels, orientation)
    for _ in range(2):
        np.testing.assert_array_equal(turned_back(mask, image), mask)
    messages = warnings_about(caplog, image)
    assert len(messages) == warns and all("as they are stored" in text for text in messages)


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
@pytest.mark.parametrize("own", [2, 3, 6])
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("side", [12, 18])
def test_a_mask_with_an_orientation_of_its_own_lies_on_its_image_as_shown(
    tmp_path, orientation, own, name, side
):
    marks = np.zeros((side, 18), np.uint8)
    marks[1:4, 2:9] = 255
    image = with_orientation(tmp_path / "i.jpg", np.zeros((side, 18, 3), np.uint8), orientation)
    stored = np.ascontiguousarray(turned(turned(marks, orientation), own, undo=True))
    mask = with_orientation(tmp_path / name, stored, own)
    check_same_size(image, mask)
    np.testing.assert_array_equal(turned_back(read_mask(mask), image, mask), marks > 0)
    with Image.open(image) as opened, Image.open(mask) as drawn:
        if name == "m.png":  # Pillow turns a TIFF by itself, and forgets that it did
            back = turned_back(read_mask(drawn), opened, drawn)
            np.testing.assert_array_equal(back, marks > 0)


@pytest.mark.parametrize(("orientation", "own"), [(1, 6), (6, 3)])
def test_where_only_the_stored_sizes_fit_the_orientation_of_a_mask_is_left_aside(
    tmp_path, orientation, own, caplog
):
    image = with_orientation(tmp_path / "i.png", RGB, orientation)
    mask = with_orientation(tmp_path / "m.png", MARKS, own)
    check_same_size(image, mask)
    np.testing.assert_array_equal(turned_back(read_mask(mask), image, mask), MARKS)
    message = warnings_about(caplog, mask)[0]
    assert f"its mask by {own}" in message and "as they are stored" in message


@pytest.mark.parametrize(("orientation", "own", "width"), [(1, 3, 12), (6, 6, 12), (6, 8, 13)])
def test_a_mask_that_fits_no_way_is_refused_with_both_sizes(tmp_path, orientation, own, width):
    image = with_orientation(tmp_path / "i.png", RGB, orientation)
    mask = with_orientation(tmp_path / "m.png", np.zeros((18, width), np.uint8), own)
    words = rf"m\.png is 18 x 1\d .*EXIF orientation {own}, but its image .*i\.png is 12"
    with pytest.raises(DataError, match=words):
        check_same_size(image, mask)
    image.write_text("no image")  # what cannot be read contradicts nothing
    check_same_size(image, mask)
    with pytest.raises(DataError, match=r"i\.png"):
        check_same_size(mask, image)
