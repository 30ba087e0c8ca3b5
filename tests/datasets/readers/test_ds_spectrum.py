from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from datasets.readers.ds_spectrum import normal_images, read_object, source_files
from datasets.samples import load_or_build
from utils.errors import DataError

LABELS = np.zeros((12, 16), np.uint8)
LABELS[2:4, 3:6] = 1
LABELS[8:10, 1:9] = 3


def write(image, mask, labels=LABELS):
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", labels.shape[::-1]).save(image)
    (labels if isinstance(labels, Image.Image) else Image.fromarray(labels)).save(mask)


def nested(folder, labels=LABELS):
    write(
        folder / "image" / "crack" / "001.png", folder / "mask" / "crack" / "001_mask.png", labels
    )
    write(
        folder / "image" / "cut" / "000.png", folder / "mask" / "cut" / "000_mask.png", LABELS // 3
    )


def flat(folder, labels=LABELS):
    write(folder / "image" / "000.png", folder / "mask" / "000_mask.png", labels)
    write(folder / "image" / "001.PNG", folder / "mask" / "001.png", LABELS // 3)


def test_nested_layout(tmp_path):
    nested(tmp_path / "bottle")
    samples, notes = read_object(tmp_path, "bottle")
    assert [(s.image, s.object, s.category, s.category_name) for s in samples] == [
        ("bottle/image/crack/001.png", "bottle", 1, "1"),
        ("bottle/image/crack/001.png", "bottle", 3, "3"),
        ("bottle/image/cut/000.png", "bottle", 1, "1"),
    ]
    for sample, expected in zip(samples, (LABELS == 1, LABELS == 3, LABELS == 3), strict=True):
        np.testing.assert_array_equal(sample.decode_mask(), expected)
    assert notes == []


def test_good_folders_are_skipped(tmp_path):
    nested(tmp_path / "bottle")
    good = tmp_path / "bottle" / "image" / "good"
    good.mkdir()
    Image.new("RGB", (5, 5)).save(good / "000.png")
    samples, notes = read_object(tmp_path, "bottle")
    assert len(samples) == 3 and notes == []
    assert not any("good" in path.parts for path in source_files(tmp_path, "bottle"))


@pytest.mark.parametrize("folder", ["bottle", "DS-MVTec/bottle"])
def test_normal_images_are_those_in_good(tmp_path, folder):
    nested(tmp_path / folder)
    assert normal_images(tmp_path, "bottle") == []
    good = tmp_path / folder / "image" / "good"
    good.mkdir()
    for name in ("001.PNG", "000.png", "readme.txt"):
        Image.new("RGB", (5, 5)).save(good / name, "PNG")
    assert normal_images(tmp_path, "bottle") == [good / "000.png", good / "001.PNG"]
    with pytest.raises(DataError, match=r"pill.*TEST\.dataset_path.*bottle"):
        normal_images(tmp_path, "pill", "TEST.dataset_path")


def test_flat_layout_with_both_names_of_masks(tmp_path):
    flat(tmp_path / "DS-DAGM")
    samples, _ = read_object(tmp_path, "DS-DAGM")
    assert [(s.image, s.category) for s in samples] == [
        ("DS-DAGM/image/000.png", 1),
        ("DS-DAGM/image/000.png", 3),
        ("DS-DAGM/image/001.PNG", 1),
    ]


@pytest.mark.parametrize(
    ("object", "folder"),
    [
        ("bottle", "bottle"),
        ("bottle", "DS-MVTec/bottle"),
        ("Ring_VISION", "Ring_VISION"),
        ("Ring_VISION", "DS-VISION/Ring"),
        ("DS-DAGM", "DS-DAGM"),
        ("DS-Cotton-Fabric", "DS-Cotton-Fabric"),
    ],
)
def test_objects_of_both_trees_keep_their_published_name(tmp_path, object, folder):
    flat(tmp_path / folder)
    samples, _ = read_object(tmp_path, object)
    assert {s.object for s in samples} == {object}
    assert {s.image for s in samples} == {f"{folder}/image/000.png", f"{folder}/image/001.PNG"}


def palette():
    image = Image.fromarray(LABELS, "L").convert("P")
    image.putdata(LABELS.flatten().tolist())
    image.putpalette([9, 9, 9, 0, 0, 0, 5, 5, 5, 255, 0, 0])
    return image


FORMS = {"rgb": np.repeat(LABELS[:, :, None], 3, axis=2), "sixteen bits": LABELS.astype(np.uint16)}


@pytest.mark.parametrize("form", [*FORMS, "palette"])
def test_other_forms_of_masks_hold_the_same_classes(tmp_path, form):
    folder = tmp_path / "a"
    flat(folder)
    expected = read_object(tmp_path, "a")
    mask = palette() if form == "palette" else Image.fromarray(FORMS[form])
    mask.save(folder / "mask" / "000_mask.png")
    assert read_object(tmp_path, "a") == expected


def test_black_masks_are_left_out_with_a_note(tmp_path):
    flat(tmp_path / "a", LABELS * 0)
    samples, notes = read_object(tmp_path, "a")
    assert [s.image for s in samples] == ["a/image/001.PNG"]
    assert len(notes) == 1 and "1 of 2 masks are black" in notes[0]


def test_an_image_without_a_mask_names_both(tmp_path):
    nested(tmp_path / "a")
    os.remove(tmp_path / "a" / "mask" / "crack" / "001_mask.png")
    with pytest.raises(DataError, match=r"a/image/crack/001\.png.*a/mask/crack/001_mask\.png"):
        read_object(tmp_path, "a")


def test_a_mask_of_another_size_names_both(tmp_path):
    flat(tmp_path / "a")
    Image.fromarray(LABELS.T).save(tmp_path / "a" / "mask" / "000_mask.png")
    with pytest.raises(DataError, match=r"a/mask/000_mask\.png.*a/image/000\.png"):
        read_object(tmp_path, "a")


def test_missing_objects_and_folders(tmp_path):
    for folder in ("DS-MVTec/bottle", "DS-VISION/Ring", "DS-DAGM"):
        flat(tmp_path / folder)
    listed = r"DS-DAGM, DS-MVTec, DS-MVTec/bottle, DS-VISION, DS-VISION/Ring"
    for name in ("Wood_VISION", "pill"):
        with pytest.raises(DataError, match=rf"{name}.*TEST\.dataset_path.*{listed}"):
            read_object(tmp_path, name, "TEST.dataset_path")
    with pytest.raises(DataError, match=r"TRAIN\.dataset_path or TEST\.dataset_path"):
        read_object(tmp_path / "gone", "pill")
    for name in ("image", "mask"):
        flat(tmp_path / "a")
        (tmp_path / "a" / name).rename(tmp_path / f"{name}_gone")
        with pytest.raises(DataError, match=rf"a/{name}: no such folder"):
            read_object(tmp_path, "a")


def test_a_changed_mask_makes_the_saved_index_stale(tmp_path):
    from datasets import ds_spectrum

    flat(tmp_path / "a")
    arguments = (ds_spectrum, "DS_Spectrum", tmp_path, ["a"], tmp_path / "cache", True, True)
    first = load_or_build(*arguments)
    assert load_or_build(*arguments) == first
    mask = tmp_path / "a" / "mask" / "000_mask.png"
    Image.fromarray(LABELS // 3).save(mask)
    os.utime(mask, ns=(5, 5))
    assert [s.category for s in load_or_build(*arguments).samples] == [1, 1]
