from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from datasets.readers.open_domain import category_mask, read_open_domain
from utils.errors import ConfigError, DataError


def write(path, size=(8, 10), value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)
    return path


@pytest.fixture
def steel(tmp_path):
    folder = tmp_path / "steel"
    for name in ("b.JPG", "a.png"):
        write(folder / "support" / "image" / name)
    write(folder / "support" / "mask" / "b_mask.png", value=255)
    write(folder / "support" / "mask" / "a.bmp", value=255)
    for name in ("q2.tif", "q1.jpeg"):
        write(folder / "query" / "image" / name, (6, 7))
    return folder


def test_files_are_found_and_matched(steel):
    found = read_open_domain(steel.parent, "steel")
    support, query = steel / "support", steel / "query"
    assert found.name == "steel"
    assert found.supports[""] == [
        (support / "image" / "a.png", support / "mask" / "a.bmp"),
        (support / "image" / "b.JPG", support / "mask" / "b_mask.png"),
    ]
    assert found.queries == [query / "image" / "q1.jpeg", query / "image" / "q2.tif"]
    assert found.true_labels == {"": {}} and found.normal == []


def test_true_labels_go_by_the_name_of_the_query(steel):
    label = write(steel / "query" / "true_label" / "q2_mask.PNG", (6, 7))
    assert read_open_domain(steel.parent, "steel").true_labels == {"": {"q2.tif": label}}
    write(steel / "query" / "true_label" / "q1.png", (7, 6))
    with pytest.raises(DataError, match=r"true_label/q1\.png.*image/q1\.jpeg"):
        read_open_domain(steel.parent, "steel")


def test_pixels_are_not_read(steel):
    for path in (steel / "support" / "mask" / "a.bmp", steel / "query" / "image" / "q2.tif"):
        path.write_bytes(path.read_bytes()[:-20])
    found = read_open_domain(steel.parent, "steel")
    with pytest.raises(DataError, match=r"a\.bmp"):
        category_mask(found.supports[""][0][1], 0, 1)


@pytest.mark.parametrize("remove", ["support/mask/a.bmp", "support/mask"])
def test_a_support_without_a_mask_names_both(steel, remove):
    path = steel / remove
    path.rename(steel / "elsewhere") if path.is_dir() else os.remove(path)
    with pytest.raises(DataError, match=r"support/image/a\.png.*support/mask/a_mask\.png"):
        read_open_domain(steel.parent, "steel")


def test_a_support_mask_of_another_size_names_both(steel):
    write(steel / "support" / "mask" / "a.bmp", (10, 8))
    with pytest.raises(DataError, match=r"support/mask/a\.bmp.*support/image/a\.png"):
        read_open_domain(steel.parent, "steel")


@pytest.mark.parametrize("folder", ["support/image", "query/image"])
def test_folders_without_images(steel, folder):
    for path in (steel / folder).iterdir():
        os.remove(path)
    with pytest.raises(DataError, match=f"{folder}: no images"):
        read_open_domain(steel.parent, "steel")
    os.rmdir(steel / folder)
    with pytest.raises(DataError, match=f"{folder}: no images"):
        read_open_domain(steel.parent, "steel")


def test_a_missing_object_lists_those_that_are_there(steel):
    with pytest.raises(
        DataError, match=r"stele.*open_domain_test_object.*TEST\.dataset_path.*steel"
    ):
        read_open_domain(steel.parent, "stele", "TEST.dataset_path")
    with pytest.raises(DataError, match=r"gone.*TEST\.dataset_path"):
        read_open_domain(steel.parent / "gone", "steel")


def test_one_category_is_whatever_is_not_zero(tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 127]], np.uint8)).save(tmp_path / "m.png")
    mask = category_mask(tmp_path / "m.png", 0, 1)
    assert mask.tolist() == [[0, 1, 1, 1]] and mask.dtype == np.uint8


def test_several_categories_are_values_from_one(tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 2, 3]], np.uint8)).save(tmp_path / "m.png")
    masks = [category_mask(tmp_path / "m.png", category, 3) for category in range(3)]
    assert [mask.tolist() for mask in masks] == [
        [[0, 1, 0, 0, 0]],
        [[0, 0, 1, 1, 0]],
        [[0, 0, 0, 0, 1]],
    ]
    assert masks[0].dtype == np.uint8


def test_black_masks_are_allowed(tmp_path):
    write(tmp_path / "m.png")
    assert (
        not category_mask(tmp_path / "m.png", 0, 1).any()
        and not category_mask(tmp_path / "m.png", 1, 2).any()
    )


def test_values_and_categories_out_of_range(tmp_path):
    write(tmp_path / "m.png", value=255)
    with pytest.raises(DataError, match=r"m\.png.*255.*open_domain_object_category_num is 3"):
        category_mask(tmp_path / "m.png", 0, 3)
    for category, count in ((1, 1), (-1, 2), (2, 2)):
        with pytest.raises(
            ConfigError, match=rf"specific_defect_category is {category}.*category_num is {count}"
        ):
            category_mask(tmp_path / "m.png", category, count)


def add_type(folder, name, labelled=()):
    """A type of defect with one support; paths of its image and mask."""
    image = write(folder / "support" / name / "image" / "s.png")
    for query in labelled:
        write(folder / "query" / "true_label" / name / f"{query}.png", (6, 7))
    return image, write(folder / "support" / name / "mask" / "s.png", value=255)


@pytest.fixture
def typed(tmp_path):
    """An object with two queries, without supports."""
    for name in ("q2.tif", "q1.jpeg"):
        write(tmp_path / "steel" / "query" / "image" / name, (6, 7))
    return tmp_path / "steel"


@pytest.mark.parametrize(
    "names",
    [("dent", "scratch"), ("a b", "Dent ü"), ("打痕", "划痕"), ("masks", "s.png"), ("one",)],
)
def test_types_are_the_folders_of_the_supports(typed, names):
    pairs = {
        name: add_type(typed, name, labelled=("q1",) if name == names[0] else ())
        for name in reversed(names)
    }
    found = read_open_domain(typed.parent, "steel")
    assert list(found.supports) == sorted(names)
    assert found.supports == {name: [pair] for name, pair in pairs.items()}
    label = typed / "query" / "true_label" / names[0] / "q1.png"
    assert found.true_labels == {name: {} for name in names} | {names[0]: {"q1.jpeg": label}}
    assert [found.class_name(name) for name in names] == [f"steel/{name}" for name in names]
    assert found.class_name("") == "steel" and found.normal == []


@pytest.mark.parametrize("folders", [["good"], ["good/image"], ["good", "good/image"]])
@pytest.mark.parametrize("by_type", [True, False])
def test_images_without_defect_are_no_type(typed, folders, by_type):
    add_type(typed, "dent" if by_type else "")
    images = [
        write(typed / "support" / folder / name)
        for folder in folders
        for name in ("b.png", "a.JPG")
    ]
    found = read_open_domain(typed.parent, "steel")
    assert sorted(found.normal) == sorted(images)
    assert list(found.supports) == (["dent"] if by_type else [""])


def test_an_empty_folder_of_images_without_defect_is_named(typed):
    add_type(typed, "dent")
    (typed / "support" / "good").mkdir()
    with pytest.raises(DataError, match="support/good: no images"):
        read_open_domain(typed.parent, "steel")


def test_supports_in_both_layouts_are_refused(steel):
    add_type(steel, "dent")
    with pytest.raises(
        DataError, match=r"support has image/ and the types dent; keep.*one of the two"
    ):
        read_open_domain(steel.parent, "steel")


@pytest.mark.parametrize(
    ("remove", "named"), [("mask/s.png", "mask/s_mask.png"), ("image/s.png", "image: no images")]
)
def test_a_type_that_lacks_masks_or_images_is_named(typed, remove, named):
    """Whether its file or its folder is missing, also beside a type that is whole."""
    add_type(typed, "dent")
    add_type(typed, "spot")
    path = typed / "support" / "dent" / remove
    for gone in (path, path.parent):
        os.remove(gone) if gone.is_file() else gone.rmdir()
        with pytest.raises(DataError, match=f"support/dent/{named}"):
            read_open_domain(typed.parent, "steel")


def test_files_and_hidden_folders_among_the_types_are_left_out(typed):
    add_type(typed, "dent")
    write(typed / "support" / "overview.png")
    (typed / "support" / "notes.txt").write_text("")
    (typed / "support" / ".cache").mkdir()
    assert list(read_open_domain(typed.parent, "steel").supports) == ["dent"]


def test_other_folders_beside_supports_of_one_type_are_left_out(steel):
    write(steel / "support" / "raw" / "c.png")
    assert list(read_open_domain(steel.parent, "steel").supports) == [""]


def test_true_labels_that_tell_no_type_are_refused(typed):
    for name in ("dent", "spot"):
        add_type(typed, name)
    write(typed / "query" / "true_label" / "q1.png", (6, 7))
    with pytest.raises(
        DataError, match=r"true_label/q1\.png tells no type.*true_label/TYPE, one of dent, spot"
    ):
        read_open_domain(typed.parent, "steel")


@pytest.mark.parametrize(
    ("given", "other"), [("query/true_label/dent", "query/true_label/Dent"), ("query", "Query")]
)
def test_folders_of_another_spelling_are_refused(tmp_path, given, other):
    """Labels would be left out, and no IoU given."""
    folder = tmp_path / "steel"
    for kind in ("dent", "hole"):
        write(folder / "support" / kind / "image" / "a.png")
        write(folder / "support" / kind / "mask" / "a.png", value=255)
        write(folder / "query" / "true_label" / kind / "q.png", value=255)
    write(folder / "query" / "image" / "q.png")
    assert read_open_domain(tmp_path, "steel").true_labels["dent"]
    (folder / given).rename(folder / "aside")
    (folder / "aside").rename(folder / other)
    with pytest.raises(
        DataError, match=rf"steel/{other}: expected {given.split('/')[-1]}/ in this spelling"
    ):
        read_open_domain(tmp_path, "steel")


def test_images_of_another_suffix_alone_are_named(steel, tmp_path):
    for path in (steel / "query" / "image").iterdir():
        path.rename(path.with_suffix(".webp"))
    with pytest.raises(
        DataError, match=r"query/image: no images; .*; q1\.webp is there: save it as PNG"
    ):
        read_open_domain(tmp_path, "steel")
