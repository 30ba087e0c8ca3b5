from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from datasets.images import limit_pixels, most_pixels, read_image
from datasets.readers import vision_v1
from datasets.samples import SampleIndex
from tests.datasets.bad_files import REFUSED, RGB, saved, with_orientation
from utils.errors import DataError

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]


def content(**changes):
    """Annotations of two images of 12 x 18 pixels, one square on each; changes replace keys of the first annotation
    (segmentation, ...) or image (file_name, ...)."""
    names = ("a.png", "b.png")
    images = [
        {"id": i, "file_name": name, "height": 12, "width": 18} for i, name in enumerate(names)
    ]
    shapes = [
        {"id": i, "image_id": i, "category_id": 0, "segmentation": [SQUARE]} for i in range(2)
    ]
    for key, value in changes.items():
        (images if key in images[0] and key != "id" else shapes)[0][key] = value
    return {"images": images, "categories": [{"id": 0, "name": "spot"}], "annotations": shapes}


@pytest.fixture
def read(tmp_path):
    """Read an annotation file of a product whose images are there."""
    folder = tmp_path / "Plate" / "train"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        saved(folder / name, RGB)

    def read(text):
        text = text if isinstance(text, str | bytes) else json.dumps(text)
        (folder / vision_v1.ANNOTATIONS).write_bytes(
            text if isinstance(text, bytes) else text.encode()
        )
        return vision_v1.read_object(tmp_path, "Plate")[0]

    read.folder = folder
    return read


def test_the_good_one_is_read(read):
    assert [sample.image for sample in read(content())] == [
        "Plate/train/a.png",
        "Plate/train/b.png",
    ]


TEXTS = {
    "truncated": json.dumps(content())[:-9],
    "empty": "",
    "no object": "[]",
    "no keys": "{}",
    "one key": '{"images": []}',
    "deep": "[" * 100_000,
    "deep value": '{"images": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "not UTF-8": b'{"images": "\xff"}',
    "long number": '{"images": [{"id": ' + "9" * 5000 + "}]}",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_no_annotation_file_is_refused_by_name(read, kind):
    with pytest.raises(DataError, match=vision_v1.ANNOTATIONS) as error:
        read(TEXTS[kind])
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../a.png",
        "x/../../a.png",
        "x/../a.png",
        "..",
        "",
        ".",
        "a\0.png",
        "\ud800.png",
        "a\udc80.png",
    ],
)
def test_names_that_lead_out_or_are_none_are_refused(read, name):
    with pytest.raises(DataError, match=rf"{vision_v1.ANNOTATIONS}: image 0: .*file_name") as error:
        read(content(file_name=name))
    str(error.value).encode()


def test_names_that_differ_in_spelling_alone_are_one(read):
    with pytest.raises(DataError, match=r"images 0 and 1 are both b\.png"):
        read(content(file_name="./b.png"))
    with pytest.raises(DataError, match=r"images 0 and 1 are both b\.png"):
        read(content(file_name="b.png"))
    assert read(content(file_name=".//a.png"))[0].image == "Plate/train/a.png"


@pytest.mark.parametrize(
    "name", ["a b.png", "ü 漢字.png", "a\nb.png", "%s{}.png", "x" * 251 + ".png", "-.png"]
)
def test_odd_names_are_read(read, name):
    saved(read.folder / name, RGB)
    assert f"Plate/train/{name}" in [sample.image for sample in read(content(file_name=name))]


def test_a_name_that_is_too_long_counts_as_missing(read, tmp_path):
    samples = read(content(file_name="x" * 300 + ".png"))
    index = SampleIndex(tmp_path, samples)
    (missing,) = index.missing_images()
    assert missing.name == "x" * 300 + ".png"
    with pytest.raises(DataError, match="x" * 300):
        read_image(missing)


@pytest.mark.parametrize(
    "changes",
    [
        *({"segmentation": [[*SQUARE[:-1], x]]} for x in (float("nan"), float("inf"), 10**400, 1e300, None, "1")),
        *({"segmentation": value} for value in ([SQUARE[:-1]], [], {}, [[None]], [3], "x", None, [[True, True]])),
        {"image_id": 7}, {"category_id": 7}, {"image_id": True}, {"category_id": "0"}, {"id": None},
        {"height": 0}, {"width": -1}, {"height": True}, {"width": 18.0}, {"height": 10**9}, {"height": 10**40},
        {"height": 13}, {"height": 18, "width": 12},
        *({"segmentation": {"size": [12, 18], "counts": x}} for x in ("o" * 100_000, "é", "1", [-1, 217], [2**64])),
        {"segmentation": {"size": [12, 17], "counts": [204]}},
    ],
    ids=lambda changes: str(changes)[:60],
)  # fmt: skip
def test_odd_values_are_refused_by_name(read, changes):
    with pytest.raises(DataError, match=vision_v1.ANNOTATIONS) as error:
        read(content(**changes))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("duplicate", ["images", "categories"])
def test_ids_that_come_twice_are_refused(read, duplicate):
    found = content()
    found[duplicate].append(found[duplicate][0])
    with pytest.raises(DataError, match="have the id 0"):
        read(found)


def test_small_polygons_and_both_run_lengths_are_read(read):
    marks = np.zeros((12, 18), np.uint8)
    marks[3, 4:8] = 1
    runs = coco.encode(np.asfortranarray(marks))
    for shape in ([[4, 3, 7, 3]], {"size": [12, 18], "counts": runs["counts"].decode()}):
        np.testing.assert_array_equal(read(content(segmentation=shape))[0].decode_mask(), marks)
    assert read(content(segmentation=[[4, 3]]))[0].decode_mask().sum() == 1
    assert (
        read(content(segmentation=[[-4.5, -3, 70.0, -3, 70, 90.9, -4, 90]]))[0].decode_mask().all()
    )


def test_the_sizes_that_polygons_are_drawn_at_are_bounded(read, tmp_path):
    """Images that are gone are refused by the listed size, before memory is taken for it."""
    before = most_pixels()
    limit_pixels(1000)
    try:
        with pytest.raises(DataError, match=r"100 x 18 pixels .*DATASET\.max_pixels"):
            read(content(file_name="gone.png", height=100))
    finally:
        limit_pixels(before)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_of_the_displayed_size_are_turned_back(read, orientation):
    with_orientation(read.folder / "a.png", RGB, orientation)
    marks = np.zeros((18, 12), np.uint8)
    marks[2:5, 3:11] = 1
    corners = [[3, 2, 10, 2, 10, 4, 3, 4]]
    way = {5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270"}[
        orientation
    ]  # undoes what a viewer does
    expected = np.array(Image.fromarray(marks).transpose(Image.Transpose[way]))
    runs = coco.encode(np.asfortranarray(marks))
    for shape in (corners, {"size": [18, 12], "counts": runs["counts"].decode()}):
        sample = read(content(height=18, width=12, segmentation=shape))[0]
        assert sample.size == (12, 18)
        np.testing.assert_array_equal(sample.decode_mask(), expected)


def test_annotations_of_the_stored_size_stay(read, caplog):
    plain = read(content())[0].mask
    for orientation in (6, 3):
        with_orientation(read.folder / "a.png", RGB, orientation)
        assert read(content())[0].mask == plain
    (message,) = [r.getMessage() for r in caplog.records]
    assert "a.png" in message and "orientation 3" in message


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_image_does_not_stop_the_reading_of_the_others(read, kind):
    (read.folder / "a.png").unlink()
    REFUSED[kind](read.folder / "a.png")
    assert len(read(content())) == 2
