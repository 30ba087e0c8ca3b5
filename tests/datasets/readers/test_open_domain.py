from __future__ import annotations

import json
import os

import numpy as np
import pytest

from datasets.readers.open_domain import category_mask, read_open_domain, support_mask
from tests.datasets.bad_files import saved, warnings_about
from utils.errors import ConfigError, DataError


def write(path, size=(8, 10)):
    return saved(path, np.full(size, 255, np.uint8))


def add_type(folder, name, labelled=()):
    """A type of defect with one support; paths of its image and mask."""
    image = write(folder / "support" / name / "image" / "s.png")
    for query in labelled:
        write(folder / "query" / "true_label" / name / f"{query}.png", (6, 7))
    return image, write(folder / "support" / name / "mask" / "s.png")


@pytest.fixture
def typed(tmp_path):
    """An object with two queries, without supports."""
    for name in ("q2.tif", "q1.jpeg"):
        write(tmp_path / "steel" / "query" / "image" / name, (6, 7))
    return tmp_path / "steel"


@pytest.fixture
def steel(typed):
    """An object with two queries and two supports."""
    for name in ("b.JPG", "a.png"):
        write(typed / "support" / "image" / name)
    write(typed / "support" / "mask" / "b_mask.png")
    write(typed / "support" / "mask" / "a.bmp")
    return typed


def read(folder):
    return read_open_domain(folder.parent, folder.name, "TEST.dataset_path")


def test_files_are_found_and_matched(steel):
    support, query = steel / "support", steel / "query"
    label = write(query / "true_label" / "q2_mask.PNG", (6, 7))
    found = read(steel)
    assert found.supports[""] == [
        (support / "image" / "a.png", support / "mask" / "a.bmp"),
        (support / "image" / "b.JPG", support / "mask" / "b_mask.png"),
    ]
    assert found.queries == [query / "image" / "q1.jpeg", query / "image" / "q2.tif"]
    assert found.name == "steel" and found.normal == [] and found.class_name("") == "steel"
    assert found.true_labels == {"": {"q2.tif": label}}


def test_what_is_missing_is_named(steel):
    with pytest.raises(DataError, match=r"stele.*open_domain_test_object.*dataset_path.*steel"):
        read_open_domain(steel.parent, "stele", "TEST.dataset_path")
    os.remove(steel / "support" / "mask" / "a.bmp")
    with pytest.raises(DataError, match=r"support/image/a\.png.*support/mask/a_mask\.png"):
        read(steel)
    write(steel / "support" / "mask" / "a.bmp")
    (steel / "query" / "image").rename(steel / "query" / "images")
    with pytest.raises(DataError, match=r"query/image: no images.*query holds: images"):
        read(steel)


def test_types_are_the_folders_of_the_supports(typed):
    names = ("Dent ü", "s.png")
    pairs = {name: [add_type(typed, name)] for name in reversed(names)}
    add_type(typed, names[0], labelled=("q1",))
    item, label = read(typed), typed / "query" / "true_label" / names[0] / "q1.png"
    assert list(item.supports) == sorted(names) and item.supports == pairs
    assert item.true_labels == {names[0]: {"q1.jpeg": label}, names[1]: {}}
    assert item.class_name(names[1]) == f"steel/{names[1]}"


@pytest.mark.parametrize("folders", ["good", "good/image", "good good/image"])
def test_images_without_defect_and_other_folders_are_no_types(typed, caplog, folders):
    add_type(typed, "dent")
    for name in ("notes", ".cache"):
        (typed / "support" / name).mkdir()
    places = [typed / "support" / folder for folder in folders.split()]
    images = [write(place / name) for place in places for name in ("b.png", "a.JPG")]
    item = read(typed)
    assert sorted(item.normal) == sorted(images) and list(item.supports) == ["dent"]
    (message,) = warnings_about(caplog, typed)
    assert "support/notes is no type of defect: it has no image/ and mask/" in message


def test_types_that_are_not_whole_are_refused(typed):
    add_type(typed, "dent", labelled=["q1"])
    add_type(typed, "spot")
    label = write(typed / "query" / "true_label" / "q1.png", (6, 7))
    with pytest.raises(DataError, match=r"q1\.png tells no type.*/TYPE, one of dent, spot"):
        read(typed)
    label.unlink()
    write(typed / "support" / "image" / "x.png")
    with pytest.raises(DataError, match="support has image/ and the types dent, spot; keep"):
        read(typed)


def test_one_category_is_whatever_is_not_zero_and_several_are_values_from_one(tmp_path):
    path = saved(tmp_path / "m.png", np.array([[0, 1, 2, 2, 3]], np.uint8))
    assert category_mask(path, 0, 1).tolist() == [[0, 1, 1, 1, 1]]
    assert category_mask(path, 1, 3).tolist() == [[0, 0, 1, 1, 0]]
    assert category_mask(path, 2, 3).tolist() == [[0, 0, 0, 0, 1]]
    path = write(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png.*255.*open_domain_object_category_num is 3"):
        category_mask(path, 0, 3)
    with pytest.raises(ConfigError, match=r"specific_defect_category is 2.*category_num is 2"):
        category_mask(path, 2, 2)


def annotated(*labels, size=(8, 10), form="labelme"):
    """LabelMe content that marks columns of one pixel each, or a YOLO file of them."""
    columns = [[[i, 0], [i, 7]] for i in range(len(labels))]
    if form == "yolo":
        return "\n".join(f"{n} {(i + .5) / 10} 0 {(i + .5) / 10} 0.5 {(i + .5) / 10} 0.99"
                         for i, n in enumerate(labels))  # fmt: skip
    shapes = [{"label": n, "points": p} for n, p in zip(labels, columns, strict=True)]
    return json.dumps({"shapes": shapes, "imageHeight": size[0], "imageWidth": size[1]})


def test_annotation_files_stand_in_place_of_masks_and_their_labels_are_types(steel):
    """One of each image, a mask or labels, and an image in which nothing is marked is normal."""
    folder, image = steel / "support" / "mask", steel / "support" / "image"
    for path in list(folder.iterdir()):
        path.unlink()
    write(image / "c.png")
    (folder / "a.json").write_text(annotated("rust", "dent"))
    (folder / "b.txt").write_text(annotated(1, form="yolo"))
    (folder / "classes.txt").write_text("dent\nrust\n")
    (folder / "C.json").write_text(annotated())
    found = read(steel)
    assert found.supports == {
        "dent": [(image / "a.png", folder / "a.json")],
        "rust": [(image / "a.png", folder / "a.json"), (image / "b.JPG", folder / "b.txt")],
    }
    assert found.normal == [image / "c.png"] and list(found.true_labels) == ["dent", "rust"]
    for kind, column in (("rust", 0), ("dent", 1)):
        mask = support_mask(image / "a.png", folder / "a.json", kind, 0, 1)
        assert mask.sum() == 8 and mask[:, column].all()
    with pytest.raises(ConfigError, match=r"category_num is 2, but .*a\.json"):
        support_mask(image / "a.png", folder / "a.json", "rust", 0, 2)
    write(folder / "c.png")  # a mask goes first
    with pytest.raises(DataError, match=r"c\.png names no type of defect, but .*: dent, rust"):
        read(steel)
    (folder / "c.png").unlink()
    (folder / "c.txt").write_text("")
    with pytest.raises(DataError, match=r"c\.png: which annotation .*C\.json, c\.txt"):
        read(steel)


def test_one_file_annotates_all_supports_of_a_type(typed):
    """The folder names the type where there is one label; of several it names one."""
    write(typed / "support" / "dent" / "image" / "s.png")
    write(typed / "support" / "dent" / "image" / "t.png")
    images = [{"id": n, "file_name": f"{name}.png", "height": 8, "width": 10}
              for n, name in enumerate("st")]  # fmt: skip
    marks = [{"id": n, "image_id": n, "category_id": 0, "segmentation": [[n, 0, n, 7, n, 3]]}
             for n in range(2)]  # fmt: skip
    content = {"images": images, "annotations": marks, "categories": [{"id": 0, "name": "hole"}]}
    file = typed / "support" / "dent" / "mask" / "all.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    found = read(typed)
    assert [path.name for _, path in found.supports["dent"]] == ["all.json"] * 2
    for column, (image, path) in enumerate(found.supports["dent"]):
        assert support_mask(image, path, "dent", 0, 1)[:, column].all()
    content["categories"] += [{"id": 1, "name": "rust"}]
    content["annotations"] += [marks[0] | {"id": 2, "category_id": 1}]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"all\.json: which of hole, rust is 'dent'"):
        read(typed)
