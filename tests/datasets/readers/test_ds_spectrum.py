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


def flat(folder, labels=LABELS):
    write(folder, "000.png", "000_mask.png", labels)
    write(folder, "001.PNG", "001.png", LABELS // 3)


def test_every_value_is_a_sample_in_the_nested_layout(tmp_path):
    write(tmp_path / "bottle", "crack/001.png", "crack/001_mask.png")
    write(tmp_path / "bottle", "cut/000.png", "cut/000_mask.png", LABELS // 3)
    assert normal_images(tmp_path, "bottle") == []
    names = ("000.png", "001.PNG")
    good = [saved(tmp_path / "bottle" / "image" / "good" / name, PIXELS) for name in names]
    assert normal_images(tmp_path, "bottle") == good
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
    images = [(object, f"{folder}/image/{name}") for name in ("000.png", "000.png", "001.PNG")]
    assert [(sample.object, sample.image) for sample in samples] == images
    assert ds_spectrum.has_object(tmp_path, object) and not ds_spectrum.has_object(tmp_path, "pill")


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
    write(tmp_path / "a", "z.png", "z.png", np.where(LABELS > 0, 255, 0).astype(np.uint8))
    samples, (note,) = read_object(tmp_path, "a")
    assert [(s.image, s.category) for s in samples] == [
        ("a/image/001.PNG", 1),
        ("a/image/z.png", 255),
    ]
    assert "1 of 3 masks are black" in note
    assert "its masks hold class 255 beside classes such as 1" in caplog.text


def test_missing_objects_folders_and_masks_are_named(tmp_path):
    for folder in ("DS-MVTec/bottle", "DS-VISION/Ring", "DS-DAGM"):
        flat(tmp_path / folder)
    listed = r"DS-DAGM, DS-MVTec, DS-MVTec/bottle, DS-VISION, DS-VISION/Ring"
    with pytest.raises(DataError, match=rf"Wood_VISION.*TEST\.dataset_path.*{listed}"):
        read_object(tmp_path, "Wood_VISION", "TEST.dataset_path")
    mask = saved(tmp_path / "DS-DAGM" / "mask" / "000_mask.png", LABELS.T.copy())
    words = r"mask/000_mask\.png is 16 x 12.*image/000\.png is 12 x 16"
    with pytest.raises(DataError, match=words):
        read_object(tmp_path, "DS-DAGM")
    os.remove(mask)
    with pytest.raises(DataError, match=r"image/000\.png has no mask.*mask/000_mask\.png"):
        read_object(tmp_path, "DS-DAGM")
    mask.parent.rename(tmp_path / "gone")
    with pytest.raises(DataError, match="DS-DAGM/mask: no such folder"):
        read_object(tmp_path, "DS-DAGM")
