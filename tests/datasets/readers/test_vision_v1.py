from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.images import image_size, read_image
from datasets.rle import rle_encode
from datasets.readers.vision_v1 import normal_images, read_object, source_files
from utils.errors import DataError

SIZE = (20, 30)
BOX, OTHER, OUTSIDE = (
    [2, 3, 12, 3, 12, 7, 2, 7],
    [10, 5, 20, 5, 20, 15, 10, 15],
    [50, 50, 60, 50, 60, 60],
)


def boxes(*polygons):
    mask = np.zeros(SIZE, np.uint8)
    for left, top, _, _, right, bottom, *_ in polygons:
        mask[top : bottom + 1, left : right + 1] = 1
    return mask


def annotation(number, image, category, *polygons):
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "segmentation": list(polygons),
    }


def content():
    return {
        "categories": [{"id": 4, "name": "pit"}, {"id": 0, "name": "scratch"}],
        "images": [
            {"id": id, "file_name": name, "height": 20, "width": 30}
            for id, name in ((9, "b.png"), (5, "a.png"))
        ],
        "annotations": [
            annotation(1, 9, 4, BOX),
            annotation(2, 5, 0, BOX),
            annotation(3, 9, 4, OTHER),
        ],
    }


def write(root, data, part="train", product="Ring", images=True):
    folder = root / product / part
    folder.mkdir(parents=True, exist_ok=True)
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / "_annotations.coco.json").write_text(text)
    if images:
        for name in ("a", "b"):
            Image.new("RGB", SIZE[::-1]).save(folder / f"{name}.png")
    return folder


def test_a_sample_is_an_image_and_a_category_with_its_union(tmp_path):
    write(tmp_path, content())
    samples, notes = read_object(tmp_path, "Ring")
    assert [(s.image, s.object, s.category, s.category_name) for s in samples] == [
        ("Ring/train/a.png", "Ring", 0, "scratch"),
        ("Ring/train/b.png", "Ring", 4, "pit"),
    ]
    np.testing.assert_array_equal(samples[0].decode_mask(), boxes(BOX))
    np.testing.assert_array_equal(samples[1].decode_mask(), boxes(BOX, OTHER))
    assert notes == []


def test_both_categories_of_one_image_are_samples_in_order(tmp_path):
    data = content()
    data["annotations"].insert(0, annotation(8, 5, 4, OTHER))
    write(tmp_path, data)
    samples, _ = read_object(tmp_path, "Ring")
    assert [(s.image[-5:], s.category) for s in samples] == [
        ("a.png", 0),
        ("a.png", 4),
        ("b.png", 4),
    ]


def test_train_and_val_are_read_and_inference_is_not(tmp_path):
    write(tmp_path, content(), "val")
    write(tmp_path, "broken", "inference")
    assert {s.image.split("/")[1] for s in read_object(tmp_path, "Ring")[0]} == {"val"}
    write(tmp_path, content(), "train")
    samples, _ = read_object(tmp_path, "Ring")
    assert [s.image.split("/")[1] for s in samples] == ["train", "train", "val", "val"]
    parts = [path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path, "Ring")]
    assert parts == ["Ring/train/_annotations.coco.json", "Ring/val/_annotations.coco.json"]


def test_the_order_in_the_file_does_not_matter(tmp_path):
    write(tmp_path / "one", content())
    reverse = {key: entries[::-1] for key, entries in content().items()}
    write(tmp_path / "two", reverse)
    assert read_object(tmp_path / "one", "Ring") == read_object(tmp_path / "two", "Ring")


def test_a_byte_order_mark_is_no_error(tmp_path):
    folder = write(tmp_path, content())
    (folder / "_annotations.coco.json").write_bytes(
        b"\xef\xbb\xbf" + json.dumps(content()).encode()
    )
    assert len(read_object(tmp_path, "Ring")[0]) == 2


def test_run_lengths_of_both_forms_join_the_polygons(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[0, :4] = 1
    counts = [0, *[1, 19] * 3, 1, 19 + 26 * 20]
    for segmentation in (rle_encode(mask), {"size": list(SIZE), "counts": counts}):
        data = content()
        data["annotations"].append(
            annotation(9, 5, 0) | {"iscrowd": 1, "segmentation": segmentation}
        )
        write(tmp_path, data)
        samples, _ = read_object(tmp_path, "Ring")
        np.testing.assert_array_equal(samples[0].decode_mask(), boxes(BOX) | mask)


def test_images_without_annotation_are_counted_in_a_note(tmp_path):
    data = content()
    data["annotations"] = data["annotations"][1:2]
    write(tmp_path, data)
    samples, notes = read_object(tmp_path, "Ring")
    assert [s.image for s in samples] == ["Ring/train/a.png"]
    assert len(notes) == 1 and "1 of 2 images" in notes[0]


def with_images(*names):
    """The data set with further images that have no annotation."""
    data = content()
    data["images"] += [
        {"id": 20 + i, "file_name": n, "height": 20, "width": 30} for i, n in enumerate(names)
    ]
    return data


def test_normal_images_have_no_annotation_and_are_there(tmp_path):
    write(tmp_path, content())
    assert normal_images(tmp_path, "Ring") == []
    for part in ("val", "train"):
        folder = write(tmp_path, with_images("d.png", "c.png", "gone.png"), part)
        for name in ("d.png", "c.png", "unlisted.png"):
            Image.new("RGB", SIZE[::-1]).save(folder / name)
    found = [
        path.relative_to(tmp_path / "Ring").as_posix() for path in normal_images(tmp_path, "Ring")
    ]
    assert found == ["train/c.png", "train/d.png", "val/c.png", "val/d.png"]
    samples, _ = read_object(tmp_path, "Ring")
    assert not {sample.image for sample in samples} & {f"Ring/{name}" for name in found}


def test_a_file_that_has_an_annotation_is_normal_nowhere(tmp_path):
    write(tmp_path, with_images("a.png"))
    assert normal_images(tmp_path, "Ring") == []
    data = content()
    data["annotations"][1]["segmentation"] = [OUTSIDE]
    write(tmp_path, data)
    assert normal_images(tmp_path, "Ring") == []


def test_normal_images_of_what_does_not_fit(tmp_path):
    folder = write(tmp_path, with_images("c.png"))
    Image.new("RGB", SIZE).save(folder / "c.png")
    with pytest.raises(DataError, match=r"image 20 .*\(20, 30\).*c\.png.*\(30, 20\)"):
        normal_images(tmp_path, "Ring")
    with pytest.raises(DataError, match=r"Rnig.*TEST\.dataset_path.*Ring"):
        normal_images(tmp_path, "Rnig", "TEST.dataset_path")


def test_masks_outside_their_image_are_left_out_with_a_note(tmp_path):
    data = content()
    data["annotations"][1]["segmentation"] = [OUTSIDE]
    data["annotations"][2]["segmentation"] = [OUTSIDE]
    write(tmp_path, data)
    samples, notes = read_object(tmp_path, "Ring")
    assert [s.image for s in samples] == ["Ring/train/b.png"]
    np.testing.assert_array_equal(samples[0].decode_mask(), boxes(BOX))
    assert len(notes) == 1 and notes[0].split(": ")[1].startswith(
        "1 masks mark nothing within their image"
    )


def renamed(**names):
    """The data set with other categories, by the names of the numbers 4 and 0."""
    data = content()
    for category in data["categories"]:
        category["name"] = names[f"n{category['id']}"]
    return data


def classes_of(root):
    samples, notes = read_object(root, "Ring")
    return sorted((s.image.split("/")[1], s.category, s.category_name) for s in samples), notes


def test_the_name_of_a_category_decides_whatever_its_number_in_a_part(tmp_path):
    write(tmp_path, renamed(n4="pit", n0="scratch"), "train")
    write(tmp_path, renamed(n4="scratch", n0="pit"), "val")
    found = [("train", 0, "scratch"), ("train", 4, "pit"), ("val", 0, "scratch"), ("val", 4, "pit")]
    assert classes_of(tmp_path) == (found, [])


def test_a_part_that_counts_in_its_own_way_may_have_a_category_more(tmp_path):
    write(tmp_path, renamed(n4="pit", n0="scratch"), "train")
    other = renamed(n4="scratch", n0="hole")
    other["categories"].append({"id": 7, "name": "pit"})
    write(tmp_path, other, "val")
    found, _ = classes_of(tmp_path)
    assert found == [
        ("train", 0, "scratch"),
        ("train", 4, "pit"),
        ("val", 0, "scratch"),
        ("val", 8, "hole"),
    ]


@pytest.mark.parametrize(("name", "words"), [("hole", "it is 'pit'"), ("PIT ", "is spelt 'pit' in"),
                                             ("p\u0131t", "it is 'pit'")])  # fmt: skip
def test_a_clash_of_names_is_refused_with_both_files(tmp_path, name, words):
    write(tmp_path, content(), "train")
    write(tmp_path, renamed(n4=name, n0="scratch"), "val")
    with pytest.raises(
        DataError, match=rf"val/_annotations\.coco\.json: category .*{words}"
    ) as error:
        read_object(tmp_path, "Ring")
    assert "train/_annotations.coco.json" in str(error.value)


def test_a_category_without_annotations_clashes_with_none(tmp_path):
    write(tmp_path, content(), "train")
    other = renamed(n4="everything", n0="scratch")
    other["annotations"] = other["annotations"][1:2]
    write(tmp_path, other, "val")
    assert [found for found in classes_of(tmp_path)[0] if found[0] == "val"] == [
        ("val", 0, "scratch")
    ]


def test_two_ids_of_one_name_are_one_category_and_that_is_said(tmp_path):
    data = renamed(n4="pit", n0="pit")
    data["annotations"].append(annotation(9, 9, 0, [1, 1, 2, 2]))
    write(tmp_path, data)
    samples, notes = read_object(tmp_path, "Ring")
    assert [(s.image, s.category, s.category_name) for s in samples] == [
        ("Ring/train/a.png", 0, "pit"),
        ("Ring/train/b.png", 0, "pit"),
    ]
    np.testing.assert_array_equal(samples[1].decode_mask()[1:3, 1:3], np.eye(2))
    assert len(notes) == 1 and "categories 0, 4 are all called 'pit' and count as one" in notes[0]


def test_valid_is_read_as_val(tmp_path):
    write(tmp_path, content(), "train")
    write(tmp_path, content(), "valid")
    assert [s.image.split("/")[1] for s in read_object(tmp_path, "Ring")[0]] == [
        "train",
        "train",
        "valid",
        "valid",
    ]


@pytest.mark.parametrize(
    "place", ["test/_annotations.coco.json", "Train/_annotations.coco.json", "annotations/instances_default.json",
              "result.json", "validation/labels.json"]
)  # fmt: skip
def test_annotations_in_places_that_are_not_read_are_named(tmp_path, caplog, place):
    write(tmp_path, content())
    other = tmp_path / "Ring" / place
    other.parent.mkdir(exist_ok=True)
    other.write_text(json.dumps(content()))
    read_object(tmp_path, "Ring")
    (message,) = [record.getMessage() for record in caplog.records]
    assert (
        f"{other.parent}: 1 files, such as {other.name}, are not read" in message
        and "rename" in message
    )
    (tmp_path / "Ring" / "train" / "_annotations.coco.json").unlink()
    (tmp_path / "Ring" / "train").rename(tmp_path / "gone")
    with pytest.raises(DataError, match=rf"neither train/ nor val/; .* {other} is there"):
        read_object(tmp_path, "Ring")


def test_images_that_no_annotations_list_are_counted(tmp_path, caplog):
    folder = write(tmp_path, content())
    for place in (folder, tmp_path / "Ring" / "images", tmp_path / "Ring" / "inference"):
        place.mkdir(exist_ok=True)
        Image.new("RGB", SIZE).save(place / "more.png")
    read_object(tmp_path, "Ring")
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == [str(tmp_path / "Ring" / "images"), str(folder)]


@pytest.mark.parametrize(
    ("listed", "there"),
    [
        ("images\\a.png", "images/a.png"), ("images/a.png", "a.png"), ("a.png", "images/a.png"),
        ("a%20b.png", "a b.png"), ("A.PNG", "a.png"), ("Pru\u0308f.png", "Pr\u00fcf.png"),
        ("C:\\data\\a.png", "a.png"), ("Images/a.png", "images/a.png"),
    ],
)  # fmt: skip
def test_an_image_under_another_spelling_of_its_name_is_read_and_that_is_said(
    tmp_path, caplog, listed, there
):
    data = content()
    data["images"][1]["file_name"] = listed
    folder = write(tmp_path, data)
    (folder / "a.png").unlink()
    (folder / there).parent.mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(folder / there)
    samples, _ = read_object(tmp_path, "Ring")
    assert f"Ring/train/{there}" in [s.image for s in samples]
    (message,) = [record.getMessage() for record in caplog.records]
    assert (
        "1 files are there under another spelling than listed" in message
        and str(folder / there) in message
    )


def test_a_file_of_the_very_name_comes_before_one_that_is_like_it(tmp_path, caplog):
    data = content()
    data["images"][0]["file_name"] = "A.png"
    folder = write(tmp_path, data)
    Image.new("RGB", SIZE[::-1]).save(folder / "A.png")
    (folder / "b.png").unlink()
    assert [s.image for s in read_object(tmp_path, "Ring")[0]] == [
        "Ring/train/A.png",
        "Ring/train/a.png",
    ]
    assert not caplog.records
    data["images"][0]["file_name"] = "a.PNG"
    write(tmp_path, data, images=False)
    samples, _ = read_object(tmp_path, "Ring")
    assert "Ring/train/a.PNG" in [s.image for s in samples], (
        "which of the two is meant cannot be told"
    )


def test_one_file_for_two_listed_names_is_refused(tmp_path):
    data = content()
    data["images"][0]["file_name"] = "A.PNG"
    folder = write(tmp_path, data)
    (folder / "b.png").unlink()
    with pytest.raises(DataError, match=r"images 5 and 9 are both a\.png"):
        read_object(tmp_path, "Ring")


def test_missing_images_are_no_error_of_the_reader(tmp_path):
    write(tmp_path, content(), images=False)
    assert len(read_object(tmp_path, "Ring")[0]) == 2


def test_an_image_of_another_size_than_listed(tmp_path):
    folder = write(tmp_path, content())
    Image.new("RGB", SIZE).save(folder / "a.png")
    with pytest.raises(
        DataError, match=r"_annotations.coco.json: image 5 .*\(20, 30\).*a\.png.*\(30, 20\)"
    ):
        read_object(tmp_path, "Ring")


def cut_off(path, size):
    """An image file that ends soon after its header."""
    noise = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, {".png": "PNG", ".jpg": "JPEG"}[path.suffix])
    whole = file.getvalue()
    path.write_bytes(whole[: 20 + max(whole.find(start) for start in (b"IDAT", b"\xff\xda"))])
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_headers_are_read_and_pixels_are_not(tmp_path, suffix):
    data = content()
    for image in data["images"]:
        image["file_name"] = Path(image["file_name"]).with_suffix(suffix).name
    folder = write(tmp_path, data, images=False)
    names = [image["file_name"] for image in data["images"]]
    for name in names:
        cut_off(folder / name, SIZE)
        assert image_size(folder / name) == SIZE
    assert sorted(Path(sample.image).name for sample in read_object(tmp_path, "Ring")[0]) == sorted(
        names
    )
    cut_off(folder / names[1], SIZE[::-1])
    with pytest.raises(DataError, match=rf"image 5 .*\(20, 30\).*a\{suffix}.*\(30, 20\)"):
        read_object(tmp_path, "Ring")


def broken(path, value):
    """The data set with the entry at a path of keys replaced, or removed where the value is `...`."""
    data = copy.deepcopy(content())
    place = data
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("images", 1, "id"), 9, "'images'.* id 9"),
        (("categories", 1, "id"), 4, "'categories'.* id 4"),
        (("annotations", 2, "image_id"), 77, "annotation 3 .*77"),
        (("annotations", 2, "category_id"), 77, "annotation 3 .*77"),
        (("annotations", 2, "image_id"), "9", "annotation 3.*'image_id'"),
        (("annotations", 2, "category_id"), ..., "annotation 3.*'category_id'"),
        (("annotations", 2, "segmentation"), ..., "annotation 3.*'segmentation'"),
        (("annotations", 2, "segmentation"), None, "annotation 3.*'segmentation'"),
        (("annotations", 2, "segmentation"), [], "annotation 3.*no segmentation"),
        (("annotations", 2, "segmentation"), [1, 2, 3, 4], "annotation 3.*polygon"),
        (("annotations", 2, "segmentation"), [[1, 2, 3]], "annotation 3.*polygon"),
        (
            ("annotations", 2, "segmentation"),
            {"size": [30, 20], "counts": [600]},
            r"annotation 3.*\[30, 20\].*\[20, 30",
        ),
        (
            ("annotations", 2, "segmentation"),
            {"size": [20, 30], "counts": [5]},
            "annotation 3.*run lengths",
        ),
        (("annotations", 2, "id"), ..., "entry 2 of 'annotations'"),
        (("annotations",), ..., "'annotations'"),
        (("images",), ..., "'images'"),
        (("categories",), ..., "'categories'"),
        (("images", 0, "height"), ..., "image 9.*'height'"),
        (("images", 0, "width"), 0, "image 9.*20 x 0"),
        (("images", 0, "file_name"), "a.png", "images 9 and 5.*a.png|images 5 and 9.*a.png"),
        (("images", 0, "file_name"), "/else/a.png", "image 9.*/else/a.png"),
        (("categories", 0, "name"), ..., "category 4.*'name'"),
    ],
)
def test_what_does_not_fit_names_file_and_entry(tmp_path, path, value, named):
    write(tmp_path, broken(path, value))
    with pytest.raises(DataError, match=rf"Ring/train/_annotations\.coco\.json.*({named})"):
        read_object(tmp_path, "Ring")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_bad_json_names_the_file(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(DataError, match=r"Ring/train/_annotations\.coco\.json"):
        read_object(tmp_path, "Ring")


def test_categories_of_the_other_part_do_not_count(tmp_path):
    write(tmp_path, content(), "train")
    write(tmp_path, broken(("categories",), content()["categories"][1:]), "val")
    with pytest.raises(DataError, match=r"val.*annotation 1 .*category 4"):
        read_object(tmp_path, "Ring")


def test_a_missing_product_lists_those_that_are_there(tmp_path):
    write(tmp_path, content(), product="Ring")
    write(tmp_path, content(), product="Wood")
    with pytest.raises(DataError, match=r"Rnig.*TRAIN\.dataset_path.*Ring, Wood"):
        read_object(tmp_path, "Rnig", "TRAIN.dataset_path")
    with pytest.raises(DataError, match=r"TRAIN\.dataset_path or TEST\.dataset_path"):
        read_object(tmp_path, "Rnig")
    with pytest.raises(DataError, match=r"nowhere.*TEST\.dataset_path"):
        read_object(tmp_path / "nowhere", "Ring", "TEST.dataset_path")


def test_a_product_without_annotations(tmp_path):
    (tmp_path / "Ring" / "inference").mkdir(parents=True)
    with pytest.raises(DataError, match=r"Ring has neither train/ nor val/"):
        read_object(tmp_path, "Ring")
    write(tmp_path, content(), "val")
    (tmp_path / "Ring" / "train").mkdir()
    with pytest.raises(DataError, match=r"Ring/train/_annotations\.coco\.json: no such file"):
        read_object(tmp_path, "Ring")


@pytest.mark.parametrize("kind", ["spelling", "number", "file"])
def test_messages_hold_no_more_of_long_names_than_helps(tmp_path, kind):
    data, other, long = content(), content(), "y" * 2000
    data["categories"][0]["name"] = long
    if kind == "spelling":
        data["categories"][1]["name"] = long.upper()
    if kind == "number":
        other["categories"][0]["name"] = f"z{long}"
    if kind == "file":
        for image in data["images"]:
            image["file_name"] = f"{long}.png"
    write(tmp_path, data)
    write(tmp_path, other, "val")
    with pytest.raises(DataError) as raised:
        read_object(tmp_path, "Ring")
    assert "yyy" in str(raised.value).lower() and len(str(raised.value)) < 1500


def test_parts_whose_annotation_files_link_to_one_file_are_both_read(tmp_path):
    """Stores that keep equal files once make such links; a part that is a link to another one counts once."""
    write(tmp_path, content())
    folder = write(tmp_path, content(), "val")
    alone = len(read_object(tmp_path, "Ring")[0])
    (folder / "_annotations.coco.json").unlink()
    (folder / "_annotations.coco.json").symlink_to(
        tmp_path / "Ring" / "train" / "_annotations.coco.json"
    )
    assert len(read_object(tmp_path, "Ring")[0]) == alone
    (tmp_path / "Ring" / "valid").symlink_to(folder)
    assert len(read_object(tmp_path, "Ring")[0]) == alone
