from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from datasets.folders import (
    ListedFiles,
    list_images,
    match_masks,
    missing_object,
    pair_masks,
    some_images,
    subfolders,
    warn_unread,
)
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
    assert [path.name for path in list_images(tmp_path)] == [
        "a.jpeg",
        "b.JPG",
        "c.png",
        "d.BMP",
        "e.tif",
        "f.TIFF",
    ]


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
    message = str(
        missing_object(
            tmp_path, [tmp_path / "Lens", tmp_path / "group" / "Lens"], "A.key", ("", "group")
        )
    )
    assert str(tmp_path / "Lens") in message and "A.key" in message
    assert "holds: Wood, group, group/Ring, group/deep)" in message
    assert "A.key" in str(missing_object(tmp_path / "gone", [tmp_path / "gone" / "Lens"], "A.key"))
    assert "no folders" in str(
        missing_object(tmp_path / "Wood", [tmp_path / "Wood" / "Lens"], "A.key")
    )


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("Pr\u00fcf.png", "Pru\u0308f.png"),
        ("A.PNG", "a_mask.png"),
        ("a b.png", "a%20b.png"),
        ("x.png", "X_MASK.PNG"),
    ],
)
def test_a_mask_whose_name_is_spelt_differently_is_found(tmp_path, image, mask):
    image, mask = write(tmp_path / "image" / image), write(tmp_path / "mask" / mask)
    assert match_masks([image], tmp_path / "mask") == {image: mask}


def test_a_mask_of_the_very_name_comes_before_one_that_is_like_it(tmp_path):
    images = [write(tmp_path / "image" / name) for name in ("a.png", "A.png")]
    masks = [write(tmp_path / "mask" / name) for name in ("a.png", "A.png")]
    assert match_masks(images, tmp_path / "mask") == dict(zip(images, masks, strict=True))


@pytest.mark.parametrize("other", ["x.bmp", "X.png"])
def test_one_mask_for_two_images_is_refused(tmp_path, other):
    images = [write(tmp_path / "image" / name) for name in ("x.png", other)]
    write(tmp_path / "mask" / "x.png")
    with pytest.raises(
        DataError,
        match=rf"mask/x\.png is the mask of two images, .*image/x\.png and .*image/{other}",
    ):
        match_masks(images, tmp_path / "mask")


def test_a_folder_with_a_name_in_the_plural_or_in_capitals_is_named(tmp_path):
    for there in ("images", "Image"):
        write(tmp_path / there / there / "x.png")
        with pytest.raises(
            DataError, match=rf"image: no images; .*; {there}/ is there, rename it to image/"
        ):
            some_images(tmp_path / there / "image")


def test_an_object_in_another_spelling_is_named(tmp_path):
    (tmp_path / "Pru\u0308f").mkdir()
    error = missing_object(tmp_path, [tmp_path / "Pr\u00fcf"], "A.key")
    assert "'Pru\u0308f' is there in another spelling" in str(error)


def test_folders_that_systems_make_are_no_data(tmp_path):
    for name in ("@eaDir", "__MACOSX", ".git", "#recycle", "scratch"):
        write(tmp_path / name / "x.png")
    assert [path.name for path in subfolders(tmp_path)] == ["scratch"]
    assert subfolders(tmp_path / "gone") == []


def test_what_is_not_read_is_told_once_by_folder_and_reason(tmp_path, caplog):
    """Of a suffix that is not listed, masks of no image, and images in folders that are not looked into; nothing of
    hidden files, folders of the system and those that are to be silent."""
    read = [write(tmp_path / "image" / "x.png"), write(tmp_path / "mask" / "x.png")]
    for name in (
        "image/b.webp",
        "image/c.GIF",
        "notes.txt",
        "image/.d.gif",
        "mask/y_mask.png",
        "image/day1/y.png",
    ):
        write(tmp_path / name) if name.endswith("png") else (tmp_path / name).touch()
    for name in (
        "z.JPG",
        "@eaDir/z.png",
        "__MACOSX/z.png",
        ".git/z.png",
        "inference/z.png",
        "image/inference/z.png",
    ):
        write(tmp_path / name)
    for _ in range(2):
        warn_unread(tmp_path, read, "they go into image/", masks=["mask"], silent=["inference"])
    beside, suffix, deep, stray = (record.getMessage() for record in caplog.records)
    assert beside == f"{tmp_path}: 1 files, such as z.JPG, are not read; they go into image/"
    assert f"{tmp_path}/image: 2 files, such as b.webp, are left out for their suffix" in suffix
    assert (
        f"{tmp_path}/image/day1: 1 files, such as y.png, are not read; they go into image/" in deep
    )
    assert f"{tmp_path}/mask: 1 files, such as y_mask.png, are masks of no image" in stray


@pytest.mark.parametrize(
    "name", ["../x.png", "..\\x.png", "a/../../x.png", "", ".", "x" * 300, "a\0.png"]
)
def test_no_spelling_of_a_name_leads_out_of_the_folder(tmp_path, name):
    write(tmp_path / "x.png")
    (tmp_path / "data").mkdir()
    files = ListedFiles(tmp_path / "data")
    assert files.find(name) == tmp_path / "data" / name and files.respelt == []


def test_a_shorter_name_is_not_that_of_another_listed_file(tmp_path):
    """day1/a.png is missing, and a.png is another image; of names that are nobody's any ending is looked for."""
    for name in ("a.png", "x/b.png"):
        write(tmp_path / name)
    files = ListedFiles(tmp_path, ["a.png", "day1/a.png", "D:\\data\\x\\b.png"])
    assert files.find("day1/a.png") == tmp_path / "day1/a.png" and files.respelt == []
    assert files.find("D:\\data\\x\\b.png") == tmp_path / "x" / "b.png"


def test_masks_among_images_are_told(tmp_path, caplog):
    for name in ("a.png", "a_mask.png", "b_mask.png", "c.png"):
        write(tmp_path / name)
    assert len(list_images(tmp_path)) == 4
    (record,) = caplog.records
    assert (
        f"{tmp_path}: 1 files, such as a_mask.png, have the names of masks" in record.getMessage()
    )


def test_what_links_lead_to_is_looked_through_once(tmp_path, caplog):
    """A folder that is read by a link, one that is not read, and one that leads round in a circle."""
    read = write(tmp_path / "disk" / "a.png")
    write(tmp_path / "other" / "b.png")
    (tmp_path / "object").mkdir()
    for name, place in (
        ("image", "disk"),
        ("again", "disk"),
        ("more", "other"),
        ("round", "object"),
    ):
        (tmp_path / "object" / name).symlink_to(tmp_path / place)
    warn_unread(
        tmp_path / "object", [tmp_path / "object" / "image" / read.name], "they go into image/"
    )
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{tmp_path}/object/more: 1 files, such as b.png, are not read"
    )


def test_a_mask_of_another_suffix_is_named(tmp_path):
    image = write(tmp_path / "image" / "a.png")
    (tmp_path / "mask").mkdir()
    (tmp_path / "mask" / "a.webp").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"a\.png has no mask; .* \(a\.webp is there: save it as PNG\)"
    ):
        pair_masks([image], tmp_path / "mask")
