from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from datasets.files import list_images, match_masks, missing_object, pair_masks
from utils.errors import DataError


def write(path, size=(8, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(size, np.uint8)).save(path)
    return path


def test_images_are_listed_by_suffix_in_any_case_and_sorted(tmp_path):
    names = ["b.JPG", "a.jpeg", "c.png", "d.BMP", "e.tif", "f.TIFF"]
    for name in [*names, "._a.png", "notes.txt", "a.json"]:
        (tmp_path / name).touch()
    for name in ("folder", "folder.png"):
        (tmp_path / name).mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpeg", "b.JPG", "c.png", "d.BMP", "e.tif", "f.TIFF"]


@pytest.mark.parametrize("mask", ["x.png", "x_mask.png", "x.BMP", "x_mask.tif"])
def test_masks_are_found_by_name_with_any_suffix(tmp_path, mask):
    image, expected = write(tmp_path / "image" / "x.jpg"), write(tmp_path / "mask" / mask)
    write(tmp_path / "mask" / "xy.png")
    assert match_masks([image], tmp_path / "mask") == {image: expected}
    assert pair_masks([image], tmp_path / "mask") == [(image, expected)]


def test_images_without_mask(tmp_path):
    images = [write(tmp_path / "image" / name) for name in ("x.png", "y.png")]
    assert match_masks(images, tmp_path / "mask") == {}
    mask = write(tmp_path / "mask" / "x.png")
    assert match_masks(images, tmp_path / "mask") == {images[0]: mask}
    with pytest.raises(DataError, match=r"image/y\.png.*mask/y_mask\.png"):
        pair_masks(images, tmp_path / "mask")


def test_two_masks_for_one_image(tmp_path):
    image = write(tmp_path / "image" / "x.png")
    write(tmp_path / "mask" / "x.png")
    write(tmp_path / "mask" / "x_mask.png")
    with pytest.raises(DataError, match=r"image/x\.png.*mask/x_mask\.png.*mask/x\.png"):
        match_masks([image], tmp_path / "mask")


def test_a_mask_of_another_size_names_both(tmp_path):
    image = write(tmp_path / "image" / "x.png", (8, 10))
    write(tmp_path / "mask" / "x.png", (10, 8))
    with pytest.raises(DataError, match=r"mask/x\.png is 10 x 8.*image/x\.png is 8 x 10"):
        match_masks([image], tmp_path / "mask")


def test_a_missing_object_lists_what_is_there(tmp_path):
    for folder in ("Wood", "group/Ring", "group/deep/no"):
        (tmp_path / folder).mkdir(parents=True)
    message = str(missing_object(tmp_path, [tmp_path / "Lens", tmp_path / "group" / "Lens"], "A.key", ("", "group")))
    assert str(tmp_path / "Lens") in message and "A.key" in message
    assert "holds: Wood, group, group/Ring, group/deep)" in message
    assert "A.key" in str(missing_object(tmp_path / "gone", [tmp_path / "gone" / "Lens"], "A.key"))
    assert "no folders" in str(missing_object(tmp_path / "Wood", [tmp_path / "Wood" / "Lens"], "A.key"))


def test_images_that_are_not_listed_and_masks_of_no_image_are_told_once(tmp_path, caplog):
    image, mask = write(tmp_path / "image" / "x.png"), write(tmp_path / "mask" / "x.png")
    for name in ("b.webp", "c.GIF", "notes.txt", ".d.gif"):
        (tmp_path / "image" / name).touch()
    write(tmp_path / "mask" / "y_mask.png")
    for _ in range(2):
        assert match_masks(list_images(tmp_path / "image"), tmp_path / "mask") == {image: mask}
    suffix, stray = (record.message for record in caplog.records)
    assert f"{tmp_path}/image: 2 files, such as b.webp" in suffix
    assert f"{tmp_path}/mask: 1 files, such as y_mask.png, are masks of no image" in stray
