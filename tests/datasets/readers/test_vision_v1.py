from __future__ import annotations

import json

import numpy as np
import pytest

from datasets.images import turned
from datasets.readers.vision_v1 import normal_images, read_object, source_files
from datasets.rle import rle_encode
from tests.datasets.bad_files import saved, warnings_about, with_orientation
from utils.errors import DataError

SIZE = (20, 30)
BOX, OTHER = [2, 3, 12, 3, 12, 7, 2, 7], [10, 5, 20, 5, 20, 15, 10, 15]
WHERE = [np.s_[3:8, 2:13], np.s_[5:16, 10:21]]  # of BOX and OTHER
OUTSIDE = [50, 50, 60, 50, 60, 60]
PIXELS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
FILE = "_annotations.coco.json"


def annotation(number, image, category, *polygons):
    shape = {"segmentation": list(polygons)}
    return {"id": number, "image_id": image, "category_id": category} | shape


def content(*more, names=("pit", "scratch")):
    """Two images with an annotation each, and one of the first again; more images without."""
    images = [(9, "b.png"), (5, "a.png"), *((20 + i, name) for i, name in enumerate(more))]
    shapes = [annotation(1, 9, 4, BOX), annotation(2, 5, 0, BOX), annotation(3, 9, 4, OTHER)]
    size = {"height": 20, "width": 30}
    return {
        "categories": [{"id": 4, "name": names[0]}, {"id": 0, "name": names[1]}],
        "images": [{"id": number, "file_name": name} | size for number, name in images],
        "annotations": shapes,
    }


def write(root, data, part="train", images=("a.png", "b.png")):
    folder = root / "Ring" / part
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(data))
    for name in images:
        saved(folder / name, PIXELS)
    return folder


def images_of(root):
    return [sample.image.removeprefix("Ring/") for sample in read_object(root, "Ring")[0]]


def test_a_sample_is_an_image_and_a_category_with_its_union(tmp_path):
    data = content()
    data["annotations"].insert(0, annotation(8, 5, 4, OTHER))
    write(tmp_path, data)
    samples, notes = read_object(tmp_path, "Ring")
    assert [(s.image, s.object, s.category, s.category_name) for s in samples] == [
        ("Ring/train/a.png", "Ring", 0, "scratch"),
        ("Ring/train/a.png", "Ring", 4, "pit"),
        ("Ring/train/b.png", "Ring", 4, "pit"),
    ]
    for sample, places in zip(samples, (WHERE[:1], WHERE[1:], WHERE), strict=True):
        mask = np.zeros(SIZE, np.uint8)
        for place in places:
            mask[place] = 1
        np.testing.assert_array_equal(sample.decode_mask(), mask)
    assert notes == []
    write(tmp_path, {key: entries[::-1] for key, entries in data.items()})
    assert read_object(tmp_path, "Ring")[0] == samples


def test_train_val_and_valid_are_read_and_inference_is_not(tmp_path, caplog):
    write(tmp_path, content(), "val")
    (tmp_path / "Ring" / "inference").mkdir()
    (tmp_path / "Ring" / "inference" / FILE).write_text("broken")
    saved(tmp_path / "Ring" / "inference" / "x.png", PIXELS)
    assert images_of(tmp_path) == ["val/a.png", "val/b.png"]
    for part in ("train", "valid"):
        write(tmp_path, content(), part)
    parts = ("train", "val", "valid")
    assert images_of(tmp_path) == [f"{p}/{name}.png" for p in parts for name in "ab"]
    assert source_files(tmp_path, "Ring") == [tmp_path / "Ring" / part / FILE for part in parts]
    assert not caplog.records
    (tmp_path / "Ring" / "valid").rename(tmp_path / "aside")
    (tmp_path / "Ring" / "valid").symlink_to(tmp_path / "Ring" / "val")
    assert images_of(tmp_path) == [f"{p}/{name}.png" for p in parts[:2] for name in "ab"]


def test_the_name_of_a_category_decides_in_all_parts(tmp_path):
    write(tmp_path, content(), "train")
    write(tmp_path, content(names=("scratch", "pit")), "val")
    samples, notes = read_object(tmp_path, "Ring")
    later = [(s.image[5:], s.category, s.category_name) for s in samples[2:]]
    assert later == [("val/a.png", 4, "pit"), ("val/b.png", 0, "scratch")] and notes == []
    write(tmp_path, content(names=("hole", "scratch")), "val")
    words = rf"val/{FILE}: category 4 is 'hole', but in .*train/{FILE}"
    with pytest.raises(DataError, match=words):
        read_object(tmp_path, "Ring")


def test_what_is_left_out_or_joined_is_noted(tmp_path):
    data = content("c.png", names=("pit", "pit"))
    data["annotations"].append(annotation(9, 20, 0, OUTSIDE))
    data["images"].append({"id": 30, "file_name": "d.png", "height": 20, "width": 30})
    write(tmp_path, data, images=("a.png", "b.png", "c.png", "d.png"))
    samples, notes = read_object(tmp_path, "Ring")
    assert [(s.image[11:], s.category) for s in samples] == [("a.png", 0), ("b.png", 0)]
    assert [note.partition(": ")[2] for note in notes] == [
        "the categories 0, 4 are all called 'pit' and count as one",
        "1 of 4 images have no annotation and are left out",
        "1 masks mark nothing within their image and are left out",
    ]


def test_normal_images_have_no_annotation_and_are_there(tmp_path):
    write(tmp_path, content("a.png"))
    assert normal_images(tmp_path, "Ring") == [], "a.png has an annotation under another id"
    for part in ("val", "train"):
        more = ("a.png", "b.png", "d.png", "c.png", "unlisted.png")
        write(tmp_path, content("d.png", "c.png", "gone.png"), part, images=more)
    places = ("train/c.png", "train/d.png", "val/c.png", "val/d.png")
    assert normal_images(tmp_path, "Ring") == [tmp_path / "Ring" / place for place in places]


def test_annotations_in_places_that_are_not_read_are_named(tmp_path, caplog):
    folder, other = write(tmp_path, content()), tmp_path / "Ring" / "annotations" / "default.json"
    other.parent.mkdir(exist_ok=True)
    other.write_text(json.dumps(content()))
    read_object(tmp_path, "Ring")
    (message,) = warnings_about(caplog, tmp_path)
    assert f"1 JSON files, such as {other}, are not read; keep annotations in" in message
    folder.rename(tmp_path / "gone")
    with pytest.raises(DataError, match=rf"neither train/ nor val/; .* {other} is there"):
        read_object(tmp_path, "Ring")


def test_other_spellings_of_names_are_read_and_two_names_of_a_file_refused(tmp_path, caplog):
    data = content()
    data["images"][1]["file_name"] = "images\\A.png"
    write(tmp_path, data, images=("images/a.png", "b.png"))
    assert images_of(tmp_path) == ["train/b.png", "train/images/a.png"]
    (message,) = warnings_about(caplog, tmp_path)
    assert "1 files are there under another spelling than listed" in message
    data["images"][0]["file_name"] = "./images//a.png"
    write(tmp_path, data)
    with pytest.raises(DataError, match=r"images 5 and 9 are both images/a\.png"):
        read_object(tmp_path, "Ring")


def test_an_unreadable_image_is_no_error_of_the_reader_and_one_of_another_size_is(tmp_path):
    path = write(tmp_path, content()) / "a.png"
    for start in (b"", path.read_bytes()[:40]):
        path.write_bytes(start)
        assert len(images_of(tmp_path)) == 2
    saved(path, PIXELS.swapaxes(0, 1).copy())
    with pytest.raises(DataError, match=r"image 5 is listed as \(20, 30\).*a\.png is \(30, 20\)"):
        read_object(tmp_path, "Ring")


@pytest.mark.parametrize("orientation", [5, 6])
def test_annotations_of_the_displayed_size_are_turned_back(tmp_path, orientation):
    shown = np.zeros((30, 20), np.uint8)
    shown[2:5, 3:11] = 1
    expected = turned(shown, orientation, undo=True)
    for shape in ([[3, 2, 10, 2, 10, 4, 3, 4]], rle_encode(shown)):
        data = content()
        data["images"][1] |= {"height": 30, "width": 20}
        data["annotations"][1]["segmentation"] = shape
        folder = write(tmp_path, data)
        with_orientation(folder / "a.png", PIXELS, orientation)
        sample = read_object(tmp_path, "Ring")[0][0]
        assert sample.size == SIZE
        np.testing.assert_array_equal(sample.decode_mask(), expected)
