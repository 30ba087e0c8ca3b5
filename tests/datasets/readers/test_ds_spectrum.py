from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from datasets.readers import ds_spectrum
from datasets.readers.ds_spectrum import normal_images, read_object, source_files
from tests.datasets.bad_files import saved
from utils.errors import DataError

LABELS = np.zeros((12, 16), np.uint8)
LABELS[2:4, 3:6] = 1
LABELS[8:10, 1:9] = 3
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def write(folder, image, mask, labels=LABELS):
    saved(folder / "image" / image, PIXELS)
    saved(folder / "mask" / mask, labels)


def nested(folder):
    write(folder, "crack/001.png", "crack/001_mask.png")
    write(folder, "cut/000.png", "cut/000_mask.png", LABELS // 3)


def flat(folder, labels=LABELS):
    write(folder, "000.png", "000_mask.png", labels)
    write(folder, "001.PNG", "001.png", LABELS // 3)


def test_every_value_is_a_sample_in_the_nested_layout(tmp_path):
    nested(tmp_path / "bottle")
    saved(tmp_path / "bottle" / "image" / "good" / "000.png", PIXELS)
    samples, notes = read_object(tmp_path, "bottle")
    assert [(s.image, s.object, s.category, s.category_name) for s in samples] == [
        ("bottle/image/crack/001.png", "bottle", 1, "1"),
        ("bottle/image/crack/001.png", "bottle", 3, "3"),
        ("bottle/image/cut/000.png", "bottle", 1, "1"),
    ]
    files = {path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path, "bottle")}
    masks = {"bottle/mask/crack/001_mask.png", "bottle/mask/cut/000_mask.png"}
    assert files == masks | {sample.image for sample in samples}
    for sample, expected in zip(samples, (LABELS == 1, LABELS == 3, LABELS == 3), strict=True):
        np.testing.assert_array_equal(sample.decode_mask(), expected)
    assert notes == []


TREES = [("bottle", "bottle"), ("bottle", "DS-MVTec/bottle"), ("Ring_VISION", "Ring_VISION")]
TREES += [("Ring_VISION", "DS-VISION/Ring"), ("DS-DAGM", "DS-DAGM")]


@pytest.mark.parametrize(("object", "folder"), TREES)
def test_objects_of_both_trees_keep_their_published_name(tmp_path, object, folder):
    flat(tmp_path / folder)
    samples, _ = read_object(tmp_path, object)
    assert {sample.object for sample in samples} == {object}
    assert [(sample.image, sample.category) for sample in samples] == [
        (f"{folder}/image/000.png", 1),
        (f"{folder}/image/000.png", 3),
        (f"{folder}/image/001.PNG", 1),
    ]
    assert ds_spectrum.has_object(tmp_path, object) and not ds_spectrum.has_object(tmp_path, "pill")


def test_of_an_object_in_both_trees_that_of_the_published_name_is_read(tmp_path, caplog):
    flat(tmp_path / "cup")
    nested(tmp_path / "DS-MVTec" / "cup")
    assert read_object(tmp_path, "cup")[0][0].image == "cup/image/000.png"
    assert f"cup is read from {tmp_path}/cup; {tmp_path}/DS-MVTec/cup is there, too" in caplog.text


def test_normal_images_are_those_in_good(tmp_path):
    nested(tmp_path / "DS-MVTec" / "bottle")
    assert normal_images(tmp_path, "bottle") == []
    good = tmp_path / "DS-MVTec" / "bottle" / "image" / "good"
    for name in ("001.PNG", "000.png"):
        saved(good / name, PIXELS)
    (good / "readme.txt").touch()
    assert normal_images(tmp_path, "bottle") == [good / "000.png", good / "001.PNG"]
    with pytest.raises(DataError, match=r"pill.*TEST\.dataset_path.*bottle"):
        normal_images(tmp_path, "pill", "TEST.dataset_path")


def test_other_forms_of_masks_hold_the_same_classes(tmp_path):
    flat(tmp_path / "a")
    expected = read_object(tmp_path, "a")
    palette = Image.fromarray(LABELS, "P")
    palette.putpalette([9, 9, 9, 0, 0, 0, 5, 5, 5, 255, 0, 0])
    rgb, deep = np.repeat(LABELS[:, :, None], 3, axis=2), LABELS.astype(np.uint16)
    for mask in (palette, Image.fromarray(rgb), Image.fromarray(deep)):
        mask.save(tmp_path / "a" / "mask" / "000_mask.png")
        assert read_object(tmp_path, "a") == expected


def test_black_masks_are_left_out_and_255_beside_small_classes_is_named(tmp_path, caplog):
    flat(tmp_path / "a", LABELS * 0)
    samples, notes = read_object(tmp_path, "a")
    assert [s.image for s in samples] == ["a/image/001.PNG"]
    assert len(notes) == 1 and "1 of 2 masks are black" in notes[0]
    flat(tmp_path / "a")
    write(tmp_path / "a", "z.png", "z.png", np.where(LABELS > 0, 255, 0).astype(np.uint8))
    assert {sample.category for sample in read_object(tmp_path, "a")[0]} == {1, 3, 255}
    assert "its masks hold class 255 beside classes such as 1" in caplog.text


def test_missing_objects_folders_and_masks_are_named(tmp_path):
    for folder in ("DS-MVTec/bottle", "DS-VISION/Ring", "DS-DAGM"):
        flat(tmp_path / folder)
    listed = r"DS-DAGM, DS-MVTec, DS-MVTec/bottle, DS-VISION, DS-VISION/Ring"
    for name in ("Wood_VISION", "pill"):
        with pytest.raises(DataError, match=rf"{name}.*TEST\.dataset_path.*{listed}"):
            read_object(tmp_path, name, "TEST.dataset_path")
    saved(tmp_path / "DS-DAGM" / "mask" / "000_mask.png", LABELS.T.copy())
    with pytest.raises(
        DataError, match=r"mask/000_mask\.png is 16 x 12.*image/000\.png is 12 x 16"
    ):
        read_object(tmp_path, "DS-DAGM")
    os.remove(tmp_path / "DS-DAGM" / "mask" / "000_mask.png")
    with pytest.raises(DataError, match=r"image/000\.png has no mask.*mask/000_mask\.png"):
        read_object(tmp_path, "DS-DAGM")
    (tmp_path / "DS-DAGM" / "mask").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="DS-DAGM/mask: no such folder"):
        read_object(tmp_path, "DS-DAGM")
