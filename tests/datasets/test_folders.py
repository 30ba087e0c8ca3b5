from __future__ import annotations

import numpy as np
import pytest

from datasets.folders import (
    find_listed,
    list_images,
    match_masks,
    missing_object,
    named_files,
    pair_masks,
    some_images,
    warn_unread,
)
from tests.datasets.bad_files import saved, warnings_about
from utils.errors import DataError


def write(path, size=(8, 10)):
    return saved(path, np.zeros(size, np.uint8))


def test_images_are_listed_by_suffix_in_any_case_and_sorted(tmp_path, caplog):
    names = ["a.jpeg", "b.JPG", "c.png", "d.BMP", "e.tif", "f.TIFF"]
    for name in [*names[::-1], "._a.png", "notes.txt", "a.json", "a.webp"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == names
    assert not caplog.records
    (tmp_path / "c_mask.png").touch()
    assert len(list_images(tmp_path)) == 7
    (message,) = warnings_about(caplog, tmp_path)
    assert "1 files, such as c_mask.png, have the names of masks" in message


FOUND = [("x.jpg", mask) for mask in ("x.png", "x_mask.tif", "x.BMP")]
FOUND += [("Pr\u00fcf.png", "Pru\u0308f.png"), ("A.PNG", "a_mask.png"), ("a b.png", "a%20b.png")]


@pytest.mark.parametrize(("image", "mask"), FOUND)
def test_masks_are_found_by_name_with_any_suffix_and_spelling(tmp_path, image, mask):
    image, mask = write(tmp_path / "image" / image), write(tmp_path / "mask" / mask)
    write(tmp_path / "mask" / "xy.png")
    assert match_masks([image], tmp_path / "mask") == {image: mask}
    assert pair_masks([image], tmp_path / "mask") == [(image, mask)]


def test_masks_of_the_very_name_come_first_and_those_that_do_not_fit_are_named(tmp_path):
    images = [write(tmp_path / "image" / name) for name in ("x.png", "X.png", "x.bmp")]
    folder = tmp_path / "mask"
    with pytest.raises(DataError, match=r"image/x\.png has no mask.*mask/x_mask\.png or x\.png"):
        pair_masks(images, folder)
    lower = write(folder / "x.png")
    for twin in images[1:]:
        words = rf"{lower} is the mask of two images, .*image/x\.png and {twin}"
        with pytest.raises(DataError, match=words):
            match_masks([images[0], twin], folder)
    pairs = {images[0]: lower, images[1]: write(folder / "X.png", (10, 8))}
    with pytest.raises(DataError, match=r"mask/X\.png is 10 x 8.*image/X\.png is 8 x 10"):
        match_masks(images[:2], folder)
    write(folder / "X.png")
    assert match_masks(images[:2], folder) == pairs
    write(folder / "x_mask.png")
    with pytest.raises(DataError, match=r"image/x\.png has two masks, .*x_mask\.png.*x\.png"):
        match_masks(images[:1], folder)


def test_an_empty_or_missing_folder_of_images_is_named_with_what_is_there(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "q.webp").touch()
    with pytest.raises(DataError, match=r"image: no images; put .*\.jpg, .* holds: q\.webp"):
        some_images(tmp_path / "image")
    with pytest.raises(DataError, match=rf"mask: no images; .*; {tmp_path} holds: image"):
        some_images(tmp_path / "mask")


def test_a_missing_object_lists_what_is_there_and_a_missing_file_is_named(tmp_path):
    for folder in ("Wood", "group/Ring", "group/deep/no", "Pru\u0308f"):
        (tmp_path / folder).mkdir(parents=True)
    tried = [tmp_path / "Lens", tmp_path / "group" / "Lens"]
    message = str(missing_object(tmp_path, tried, "A.key", ("", "group")))
    assert str(tmp_path / "Lens") in message and "A.key" in message
    assert "holds: Pru\u0308f, Wood, group, group/Ring, group/deep)" in message
    message = str(missing_object(tmp_path, [tmp_path / "Pr\u00fcf"], "A.key"))
    assert "'Pru\u0308f' is there in another spelling" in message
    with pytest.raises(DataError, match=r"gone: cannot be read \(No such"), named_files():
        list_images(tmp_path / "gone")


def test_what_is_not_read_is_named_once_by_folder_and_reason(tmp_path, caplog):
    """Each folder once by whatever links; not hidden ones, those of systems, and silent ones."""
    read = [write(tmp_path / "image" / "x.png"), write(tmp_path / "mask" / "x.png")]
    unread = "mask/y_mask.png image/day1/y.png z.JPG @eaDir/z.png __MACOSX/z.png .git/z.png"
    for name in (*unread.split(), "inference/z.png", "image/inference/z.png"):
        write(tmp_path / name)
    for name in ("image/b.webp", "image/c.GIF", "notes.txt", "image/.d.gif"):
        (tmp_path / name).touch()
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "image" / "more").symlink_to(tmp_path / "image" / "day1")
    for _ in range(2):
        warn_unread(tmp_path, read, "they go into image/", masks=["mask"], silent=["inference"])
    beside, suffix, deep, stray = warnings_about(caplog, tmp_path)
    assert beside == f"{tmp_path}: 1 files, such as z.JPG, are not read; they go into image/"
    assert f"{tmp_path}/image: 2 files, such as b.webp, are left out for their suffix" in suffix
    assert f"{tmp_path}/image/day1: 1 files, such as y.png, are not read" in deep
    assert f"{tmp_path}/mask: 1 files, such as y_mask.png, are masks of no image" in stray


LISTED = {
    "images\\a.png": "images/a.png",
    "images/a.png": "a.png",
    "a.png": "images/a.png",
    "a%20b.png": "a b.png",
    "Pru\u0308f.PNG": "Pr\u00fcf.png",
    "C:\\data\\a.png": "a.png",
}


@pytest.mark.parametrize("name", LISTED)
def test_a_listed_file_is_found_under_another_spelling_of_its_name(tmp_path, caplog, name):
    there = write(tmp_path / LISTED[name])
    assert find_listed(tmp_path, [name], "table.csv") == {name: there}
    (message,) = warnings_about(caplog, there)
    assert "table.csv: 1 files are there under another spelling than listed" in message


def test_the_file_of_the_very_name_is_the_one(tmp_path, caplog):
    for name in ("a.png", "A.png"):
        write(tmp_path / name)
    # of a.PNG it is unknown which one is meant, and a.png is another listed image than day1/a.png
    names = ["a.png", "A.png", "a.PNG", "day1/a.png"]
    assert find_listed(tmp_path, names, "t") == {name: tmp_path / name for name in names}
    assert not caplog.records


@pytest.mark.parametrize("name", ["..\\x.png", "a/../../x.png", "", "."])
def test_no_spelling_of_a_name_leads_out_of_the_folder(tmp_path, name):
    write(tmp_path / "x.png")
    (tmp_path / "data").mkdir()
    assert find_listed(tmp_path / "data", [name], "t") == {name: tmp_path / "data" / name}
