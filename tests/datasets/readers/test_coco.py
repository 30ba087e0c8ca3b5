from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.readers.coco import read_coco
from datasets.rle import rle_decode, rle_encode, rle_merge
from tests.datasets.bad_files import warnings_about
from tests.fuzz.inputs import fuzzed
from utils.errors import DataError

SIZE = (160, 200)
BOX = [60, 20, 40, 6]  # x, y, w, h


def corners(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def content(*annotations):
    """A file with an image for each annotation."""
    size = {"height": SIZE[0], "width": SIZE[1]}
    images = [{"id": i, "file_name": f"{i}.png"} | size for i in range(len(annotations))]
    shapes = [{"id": i, "image_id": i, "category_id": 0} | a for i, a in enumerate(annotations)]
    return {"images": images, "categories": [{"id": 0, "name": "a"}], "annotations": shapes}


def write(folder, *annotations):
    file = folder / "_annotations.coco.json"
    file.write_text(json.dumps(content(*annotations)))
    return file


def in_shares(polygon):
    return [value / SIZE[1 - i % 2] for i, value in enumerate(polygon)]


def test_shapes_of_all_forms_are_read_by_image_and_category(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[20:27, 60:101] = 1
    edges = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0))
    runs = np.diff(edges, prepend=0, append=mask.size).tolist()
    forms = [[corners(*BOX)], [[], corners(*BOX)], [corners(*BOX)[:4], corners(*BOX)]]
    forms += [rle_encode(mask), {"size": list(SIZE), "counts": runs}]
    coco = read_coco(write(tmp_path, *({"segmentation": form} for form in forms)))
    assert list(coco.shapes) == [(number, 0) for number in range(5)] and coco.names == {0: "a"}
    for (number, _), rles in coco.shapes.items():
        assert coco.size(number) == SIZE
        np.testing.assert_array_equal(rle_decode(rle_merge(rles)), mask)


def shape(form, **beside):
    return {"segmentation": form} | beside


GOOD_SHAPE = shape([corners(130, 20, 40, 6)], bbox=[130, 20, 40, 6])
SHARES, PERCENT = ([[n * v for v in in_shares(corners(*BOX))]] for n in (1, 100))
LINE = shape([[60, 20, 100, 20]], bbox=[60, 20, 40, 0])  # as thin as its bbox
LARGER = [[4 * v for v in (x, 60, 20, 9)] for x in (5, 60, 150)]  # the image was made smaller
RUNS = rle_encode(np.pad(np.ones((6, 40)), ((100, 54), (120, 40))))
NOT_THERE = r"1 of 3 annotations, such as 1 \(at .*, its bbox \[60, 20, 40, 6\] .* same entry says"
DOUBTS = {  # what the warning says: the shapes
    "40 of 42 .*, such as 1 .* lie between 0 and 1, .* multiply x by": [shape(SHARES)] * 40,
    "40 of 42 .* between 0 and 1,": [shape(SHARES, bbox=BOX, area=240)] * 40,
    r"at \[30, 12.5, 20, 3.75\] .* where the same entry says": [shape(PERCENT, bbox=BOX)],
    f"x y w h: {NOT_THERE}": [shape([BOX], bbox=BOX)],
    f"y before x: {NOT_THERE}": [shape([corners(*BOX)[::-1]], bbox=BOX)],
    f"runs: {NOT_THERE}": [shape(RUNS, bbox=BOX)],
    r"at \[3, 3, 0, 0\] in .* area 240\), do not lie where": [shape([[3, 3]], area=240)],
    "1 of 4 .* one or two corners": [shape([[60, 20, 100, 26]], bbox=BOX), LINE],
    r"3 of 5 .* of \(160, 200\) .* for the most part outside": [
        shape([corners(*box)], bbox=box) for box in LARGER
    ],
}


@pytest.mark.parametrize("words", DOUBTS)
def test_shapes_that_seem_wrong_are_named(tmp_path, caplog, words):
    """Among good ones."""
    file = write(tmp_path, GOOD_SHAPE, *DOUBTS[words], GOOD_SHAPE)
    read_coco(file)
    (message,) = warnings_about(caplog, file)
    assert re.search(words.rpartition(": ")[2], message)


def test_percentages_without_a_bbox_are_named(tmp_path, caplog):
    read_coco(write(tmp_path, *[shape(PERCENT)] * 4))
    (message,) = warnings_about(caplog, tmp_path)
    assert "4 of 4 annotations" in message and "between 0 and 100, as percentages do" in message


def test_shapes_of_any_size_with_what_tools_write_beside_them_are_not_named(tmp_path, caplog):
    """Boxes exact, of whole pixels, cut off; areas of polygon or box; nothing usable."""
    sides, places = st.floats(0.2, 120), st.tuples(st.floats(0, 190), st.floats(0, 150))

    @fuzzed(100)
    @given(places, sides, sides, st.integers(0, 2))
    def read(place, w, h, kind):
        x, y = place
        bbox = [
            [x, y, w, h],
            [int(x), int(y), int(x + w) - int(x) + 1, int(y + h) - int(y) + 1],
            [x, y, min(w, SIZE[1] - x), min(h, SIZE[0] - y)],
        ][kind]
        beside = [{"bbox": bbox, "area": w * h}, {"bbox": bbox}, {"bbox": bbox, "area": w * h / 2}]
        beside += [{"bbox": [], "area": w * h}, {"bbox": [0, 0, 0, 0]}, {"bbox": "", "area": None}]
        shape = {"segmentation": [corners(x, y, w, h)]}
        read_coco(write(tmp_path, *(shape | entry for entry in beside)))

    read()
    fits = ("between 0 and 1", "for the most part outside")  # what such coordinates may be
    messages = warnings_about(caplog, tmp_path)
    assert not [text for text in messages if not any(words in text for words in fits)]


GOOD = content(GOOD_SHAPE, GOOD_SHAPE)
TEXTS = {
    '{"images": [': "ends too early, copy it again",
    json.dumps(GOOD)[:-9]: "ends too early, copy it again",
    '{"images": [}': "mend it there, or export it again",
    "[" * 100_000: "not valid JSON",
    '{"images": [{"id": ' + "9" * 5000 + "}]}": "not valid JSON",
    "[]": "expected an object with images",
    '{"images": []}': "no list 'categories'; is this a COCO annotation file",
    "<html>": "but a web page; download",
    "version https://git-lfs.github.com/spec/v1\noid": "git lfs pull",
    '{"a": "\u00fc"}'.encode("cp1252"): r"is not UTF-8 \(byte 0xfc at 7\); save it as UTF-8: iconv",
    '{"a": "\u6f22"}'.encode("gb18030"): "is not UTF-8 .* -f GB18030",
    "{}".encode("utf-16"): "is not UTF-8 but UTF-16",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:30])
def test_what_is_no_annotation_file_is_refused_with_the_remedy_that_fits(tmp_path, text):
    file = tmp_path / "_annotations.coco.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"_annotations\.coco\.json: .*{TEXTS[text]}") as error:
        read_coco(file)
    assert len(str(error.value)) < 1000


NAN = float("nan")
CHANGES = [  # where, the value (... takes it out), what the error says
    ("images", None, ..., "no list 'images'"),
    ("images", "id", 1, "image 1: two of 'images' have this id"),
    ("categories", "id", None, "entry 0 of 'categories' has no integer 'id'"),
    ("categories", "name", ..., "category 0: 'name' is missing, expected a string"),
    ("annotations", "image_id", 77, "annotation 0 belongs to image 77, which 'images' does not"),
    ("annotations", "category_id", 7, "annotation 0 belongs to category 7, which 'categories'"),
    ("annotations", "image_id", True, "annotation 0: 'image_id' is True, expected an integer"),
    ("annotations", "segmentation", ..., "annotation 0: 'segmentation' is missing"),
    ("annotations", "segmentation", "x", "expected polygons or run lengths"),
    *(("annotations", "segmentation", x, "a box alone marks no pixels") for x in ([], [[]])),
    *(("annotations", "segmentation", [[1, 2, x, 4]], "a polygon") for x in (NAN, 1e300, 10**400)),
    *(("annotations", "segmentation", x, "a polygon must") for x in ([[1, 2, 3]], [[None]], [3])),
    ("annotations", "segmentation", {"size": [200, 160], "counts": [9]}, "run lengths of size"),
    ("annotations", "segmentation", {"size": list(SIZE), "counts": [5]}, "run lengths are broken"),
    ("annotations", "segmentation", {"size": list(SIZE), "counts": "o" * 99}, "run lengths"),
    ("images", "height", 0, "image 0: 0 x 200 pixels"),
    ("images", "width", 18.0, "image 0: 'width' is 18.0, expected an integer"),
    ("images", "height", 10**40, "DATASET.max_pixels"),
    *(("images", "file_name", x, "image 0: file_name") for x in ("/a", "../a", "x/../a", "", ".")),
    *(("images", "file_name", x, "which no name can be") for x in ("a\0.png", "\ud800.png")),
]


@pytest.mark.parametrize(("key", "name", "value", "words"), CHANGES, ids=lambda x: repr(x)[:30])
def test_what_does_not_fit_is_refused_by_file_and_entry(tmp_path, key, name, value, words):
    changed = copy.deepcopy(GOOD)
    place, step = (changed, key) if name is None else (changed[key][0], name)
    if value is ...:
        del place[step]
    else:
        place[step] = value
    file = tmp_path / "_annotations.coco.json"
    file.write_text(json.dumps(changed))
    with pytest.raises(DataError, match=rf"_annotations\.coco\.json.*{words}") as error:
        read_coco(file)
    assert len(str(error.value).encode()) < 1000
