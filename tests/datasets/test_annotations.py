from __future__ import annotations

import base64
import io
import json
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as pycoco

from datasets.annotations import coco_json, coco_mark, read_annotation
from tests.datasets.bad_files import with_orientation
from utils.errors import DataError

SIZE = (40, 60)
ONE = ["part.png"]
SQUARE = [[10, 5], [19, 5], [19, 14], [10, 14]]  # of 10 x 10 pixels


@pytest.fixture
def image(tmp_path):
    return picture(tmp_path / "part.png")


def picture(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1]).save(path)
    return path


def marks(rows, columns):
    mask = np.zeros(SIZE, np.uint8)
    mask[rows, columns] = 1
    return mask


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def labelme(*shapes, **more):
    keys = ("label", "shape_type", "points")
    entries = [dict(zip(keys, shape[:3], strict=True)) | dict(*shape[3:]) for shape in shapes]
    sizes = {"imageHeight": SIZE[0], "imageWidth": SIZE[1], "imagePath": "part.png"}
    return {"version": "5.4.1", "shapes": entries} | sizes | more


def coco(names, *annotations, size=SIZE):
    images = [{"id": 7 + n, "file_name": name, "height": size[0], "width": size[1]}
              for n, name in enumerate(names)]  # fmt: skip
    entries = [{"id": n, "image_id": 7 + i, "category_id": c, "segmentation": s}
               for n, (i, c, s) in enumerate(annotations)]  # fmt: skip
    categories = [
        {"id": 0, "name": "defects"},
        {"id": 1, "name": "dent"},
        {"id": 2, "name": "rust"},
    ]
    return {"images": images, "annotations": entries, "categories": categories}


def cvat(name, shapes, width=SIZE[1]):
    image = f'<image id="0" name="{name}" width="{width}" height="{SIZE[0]}">{shapes}</image>'
    return f'<?xml version="1.0" encoding="utf-8"?><annotations>{image}</annotations>'


def assert_masks(found, **expected):
    assert list(found) == list(expected)
    for kind, mask in expected.items():
        assert found[kind].dtype == np.uint8 and found[kind].flags.c_contiguous
        np.testing.assert_array_equal(found[kind], mask)


def test_every_format_marks_the_same_pixels(tmp_path, image):
    """A square of one type and an area with a hole, or a circle, of another."""
    square, ring = marks(np.s_[5:15], np.s_[10:20]), marks(np.s_[20:30], np.s_[30:50])
    ring[24:26, 40:44] = 0
    png = io.BytesIO()
    Image.fromarray(ring[20:30, 30:50] * 255).save(png, "PNG")
    corners, flat = [[30, 20], [49, 29]], [value for point in SQUARE for value in point]
    shape = ("rust", "mask", corners, {"mask": base64.b64encode(png.getvalue()).decode()})
    columns = np.asfortranarray(ring)
    runs = np.flatnonzero(np.diff(columns.ravel("F"), prepend=0, append=0))
    counts = np.diff(runs, prepend=0, append=ring.size).tolist()
    compressed = pycoco.encode(columns)["counts"].decode()
    rows = np.flatnonzero(np.diff(ring[20:30, 30:50].ravel(), prepend=0, append=0))
    rle = ", ".join(map(str, np.diff(rows, prepend=0)))
    points = ";".join(f"{x}.4,{y}.4" for x, y in SQUARE)
    polygon = f'<polygon label="dent" points="{points}" z_order="0"/>'
    mask = f'<mask label="rust" rle="{rle}" left="30" top="20" width="20" height="10"/>'
    files = {
        "labelme.json": labelme(("dent", "polygon", SQUARE), shape),
        "runs.json": coco(
            ["part.png"], (0, 1, [flat]), (0, 2, {"size": [40, 60], "counts": counts})
        ),
        "text.json": coco(
            ["part.png"], (0, 1, [flat]), (0, 2, {"size": [40, 60], "counts": compressed})
        ),
        "cvat.xml": cvat("part.png", f'{polygon}<tag label="bad"/>{mask}'),
    }
    for name, content in files.items():
        found = read_annotation(written(tmp_path / name, content), image, SIZE)
        assert_masks(found, dent=square, rust=ring)
    Image.fromarray(square * 255).save(tmp_path / "mask.bmp")
    assert_masks(read_annotation(tmp_path / "mask.bmp", image, SIZE), **{"": square})
    assert_masks(read_annotation(tmp_path / "mask.bmp", image, SIZE, "dent"), dent=square)
    assert_masks(read_annotation(tmp_path / "cvat.xml", image, SIZE, "Rust"), Rust=ring)
    with pytest.raises(DataError, match="which of dent, rust is 'hole'"):
        read_annotation(tmp_path / "cvat.xml", image, SIZE, "hole")


def test_yolo_shares_and_the_names_beside_or_above(tmp_path):
    image = picture(tmp_path / "train" / "images" / "part.png")
    shares = " ".join(f"{(x + 0.5) / SIZE[1]:.6f} {(y + 0.5) / SIZE[0]:.6f}" for x, y in SQUARE)
    file = written(tmp_path / "train" / "labels" / "part.txt", f"1 {shares}\n\n")
    square = marks(np.s_[5:15], np.s_[10:20])
    assert_masks(read_annotation(file, image, SIZE), class_1=square)
    for content in ("names: [scratch, dent]\n", "names: {0: scratch, 1: dent}\n"):
        written(tmp_path / "data.yaml", content)
        assert_masks(read_annotation(file, image, SIZE), dent=square)
    written(file.with_name("classes.txt"), "scratch\nrust\n")
    assert_masks(read_annotation(file, image, SIZE), rust=square)
    written(file, "")
    assert read_annotation(file, image, SIZE) == {}
    for line, words in (("0 0.5 0.5 0.1 0.1", "box"), ("0 5 5 9 5 9 9", "shares"), ("2 " + shares,
                        "class 2"), ("0 0.1 nan 0.2 0.2 0.3 0.3", "shares")):  # fmt: skip
        with pytest.raises(DataError, match=f"part.txt: line 1: .*{words}"):
            read_annotation(written(file, line), image, SIZE)


def test_circles_and_ellipses_are_filled(tmp_path, image):
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    circle = labelme(("pore", "circle", [[30, 20], [38, 20]]))
    ellipse = '<ellipse label="pore" cx="30" cy="20" rx="8" ry="8" rotation="40"/>'
    turned = '<ellipse label="pore" cx="30" cy="20" rx="16" ry="4" rotation="90"/>'
    round_, tall = ((rows - 20) ** 2 + (columns - 30) ** 2 < 64), (abs(rows - 20) < 15)
    for name, content in (("a.json", circle), ("a.xml", cvat("part.png", ellipse))):
        mask = read_annotation(written(tmp_path / name, content), image, SIZE)["pore"]
        assert (mask != round_).mean() < 0.02
    mask = read_annotation(written(tmp_path / "b.xml", cvat("part.png", turned)), image, SIZE)
    assert mask["pore"][tall & (columns == 30)].all() and not mask["pore"][:, :25].any()


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (["b.png", "part.png"], 1),
        (["part.png", "sub/part.png"], 1),
        (["part.png", "other/part.png"], 0),
        (["other/part.png", "b.png"], 0),
        (["PART.png", "part.png"], 1),
        (["b.png", "data\\sub\\part.png"], 1),
        (["b.png", "part_png.rf.0a1b2c.jpg"], 1),
        (["b.png", "images/1a2b3c4d-part.png"], 1),
        (["/data/local-files/?d=sub/part.png", "b.png"], 0),
    ],
)
def test_the_entry_of_an_image_is_found_by_its_name(tmp_path, names, right):
    image = picture(tmp_path / "sub" / "part.png")
    square = [[value for point in SQUARE for value in point]]
    content = coco(names, (right, 1, square), (1 - right, 2, square))
    file = written(tmp_path / "coco.json", content)
    assert list(read_annotation(file, image, SIZE)) == ["dent"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_either_unicode_form_and_of_roboflow(tmp_path, form):
    image = picture(tmp_path / unicodedata.normalize(form, "Prüf teil (2).png"))
    other = unicodedata.normalize("NFD" if form == "NFC" else "NFC", image.name)
    for name in (other, "Prüf-teil-2-_png.rf.77.jpg"):
        assert read_annotation(written(tmp_path / "c.json", coco([name])), image, SIZE) == {}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["b.png", "c.png"], "none of its 2 images is part.png; it has: b.png, c.png"),
        ([], "none of its 0 images"),
        (["x/part.png", "y/part.png"], "2 of its images .*x/part.png, y/part.png"),
        (["part_png.rf.1.jpg", "part_png.rf.2.jpg"], "2 of its images"),
        (["20240101-part.png"], "none of its 1 images"),  # a date, not what Label Studio adds
    ],
)
def test_no_entry_or_several_are_refused(tmp_path, image, names, words):
    with pytest.raises(DataError, match=f"coco.json: {words}"):
        read_annotation(written(tmp_path / "coco.json", coco(names)), image, SIZE)


def test_annotations_of_other_images_do_not_matter(tmp_path, image):
    square = [value for point in SQUARE for value in point]
    content = coco(["part.png", "b.png"], (0, 1, [square]), (1, 1, []), (1, 2, [[1, 2, 3]]))
    content["annotations"][2]["category_id"] = 99
    file = written(tmp_path / "coco.json", content)
    assert list(read_annotation(file, image, SIZE)) == ["dent"]
    with pytest.raises(DataError, match=r"coco\.json: annotation 1: no segmentation"):
        read_annotation(file, picture(tmp_path / "b.png"), SIZE)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", labelme(("dent", "rectangle", [[1, 1], [9, 9]])), "shape 0 .dent.: a rectangle"),
        ("a.json", labelme(("dent", "linestrip", [[1, 1], [9, 9]])), "a linestrip"),
        ("a.json", labelme(("dent", "polygon", [[1, 1], ["x", 9]])), "shape 0 .dent.: a polygon"),
        ("a.json", labelme(("dent", "mask", [[1, 1], [9, 9]], {"mask": "AAAA"})), "not as its"),
        ("a.json", labelme(("dent", "polygon", SQUARE), imageWidth=30), "40 x 30 .* 40 x 60"),
        ("a.json", {"shapes": [{"points": SQUARE}]}, "not as its format has it .KeyError"),
        ("a.json", [{"annotations": []}], "Label Studio: as COCO"),
        ("a.json", '{"shapes": [', "ends too early"),
        ("a.json", coco(["part.png"], (0, 9, [[1, 1, 5, 1, 5, 5]])), "category 9"),
        ("a.json", coco(["part.png"], (0, 1, [[1, 1, 5, 1, 5, 5]]), size=(80, 120)), "80 x 120"),
        ("a.xml", cvat("part.png", '<box label="dent" xtl="1" ytl="1" xbr="5" ybr="5"/>'), "a box"),
        ("a.xml", cvat("part.png", '<polygon label="a" points="1,1;2,2;3,1"/>', 30), "40 x 30"),
        ("a.xml", cvat("part.png", '<mask label="a" rle="1,2" left="0" top="0" width="2"'
                                   ' height="2"/>'), "do not fill its box"),
        ("a.xml", cvat("part.png", '<mask label="a" rle="0,4" left="59" top="0" width="2"'
                                   ' height="2"/>'), "a mask of 2 x 2 at .59, 0."),
        ("a.xml", "<annotation><object/></annotation>", "CVAT for images 1.1"),
        ("a.xml", "<annotations><image", "not as its format has it"),
        ("a.txt", "scratch\ndent\n", "line 1: 'scratch', expected a class number"),
        ("a.zip", "PK\3\4", "a ZIP archive; unpack it"),
        ("a.png", "", "the file is empty"),
    ],
)  # fmt: skip
def test_what_marks_no_pixels_or_does_not_fit_is_refused(tmp_path, image, name, content, words):
    with pytest.raises(DataError, match=rf"{name}: .*{words}"):
        read_annotation(written(tmp_path / name, content), image, SIZE)


def test_a_file_that_is_not_there_is_named(tmp_path, image):
    for name in ("a.json", "a.xml", "a.txt", "a.png"):
        with pytest.raises(DataError, match=f"{name}: .*o such file"):
            read_annotation(tmp_path / name, image, SIZE)


def test_marks_on_the_image_as_it_is_shown_are_turned_back(tmp_path):
    """LabelMe and COCO state the size of the shown image; YOLO means it."""
    image = with_orientation(tmp_path / "part.jpg", np.zeros((*SIZE, 3), np.uint8), 6)
    shown = np.zeros(SIZE[::-1], np.uint8)
    shown[5:15, 10:20] = 1
    stored = np.rot90(shown)  # viewers turn it clockwise
    content = labelme(("dent", "polygon", SQUARE), imageHeight=SIZE[1], imageWidth=SIZE[0])
    shares = " ".join(f"{(x + 0.5) / SIZE[0]} {(y + 0.5) / SIZE[1]}" for x, y in SQUARE)
    for name, text in (("a.json", content), ("a.txt", f"0 {shares}")):
        (mask,) = read_annotation(written(tmp_path / name, text), image, SIZE).values()
        np.testing.assert_array_equal(mask, stored)


def test_labels_are_names_of_folders(tmp_path, image):
    shapes = [(label, "polygon", SQUARE) for label in ("../a/b", " c  d ", "..", "")]
    found = read_annotation(written(tmp_path / "a.json", labelme(*shapes)), image, SIZE)
    assert list(found) == [".._a_b", "c d", "__", ""]


def test_results_are_read_back_pixel_for_pixel_and_by_pycocotools(tmp_path):
    """Holes, single pixels, lines, diagonals; polygons mean the same to pycocotools."""
    rng, written_marks, truth = np.random.default_rng(0), [], {}
    for number, density in enumerate((0.03, 0.2, 0.5, 0.8)):
        mask = (rng.random(SIZE) < density).astype(np.uint8)
        truth[f"sub/{number}.png"] = mask
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        entries = []
        for i in range(1, count):
            left, top, width, height, area = stats[i].tolist()
            part = labels[top : top + height, left : left + width] == i
            mark = coco_mark(part, (left, top), SIZE)
            assert mark["area"] == area and mark["bbox"] == [left, top, width, height]
            if isinstance(mark["segmentation"], list):
                rles = pycoco.frPyObjects(mark["segmentation"], *SIZE)
                np.testing.assert_array_equal(pycoco.decode(pycoco.merge(rles)), labels == i)
            entries.append(("rust", mark))
        written_marks.append((f"sub/{number}.png", SIZE, entries))
    forms = {type(m["segmentation"]) for _, _, entries in written_marks for _, m in entries}
    assert forms == {list, dict}
    text = "".join(coco_json(["", "rust"], [*written_marks, ("none.png", SIZE, [])]))
    file = written(tmp_path / "defects.json", text)
    for name, mask in truth.items():
        assert_masks(read_annotation(file, picture(tmp_path / name), SIZE), rust=mask)
    assert read_annotation(file, picture(tmp_path / "none.png"), SIZE) == {}
    names = [category["name"] for category in json.loads(text)["categories"]]
    assert names == ["defect", "rust"] and Path(file).read_text().endswith("}\n")
