from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.coco import read_coco
from datasets.rle import rle_decode, rle_encode, rle_merge
from tests.datasets.bad_files import warnings_about
from tests.fuzz.inputs import fuzzed
from utils.errors import DataError

SIZE = (160, 200)
BOX = [60, 20, 40, 6]  # x, y, w, h


def shape(form, **beside):
    return {"segmentation": form} | beside


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


def test_shapes_of_all_forms_are_read_by_image_and_category(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[20:27, 60:101] = 1
    edges = np.flatnonzero(np.diff(mask.ravel("F"), prepend=0, append=0))
    runs = np.diff(edges, prepend=0, append=mask.size).tolist()
    forms = [[corners(*BOX)], [[], corners(*BOX)], [corners(*BOX)[:4], corners(*BOX)]]
    forms += [rle_encode(mask), {"size": list(SIZE), "counts": runs}]
    coco = read_coco(write(tmp_path, *map(shape, forms)))
    assert list(coco.shapes) == [(number, 0) for number in range(5)] and coco.names == {0: "a"}
    for (number, _), rles in coco.shapes.items():
        assert coco.size(number) == SIZE
        np.testing.assert_array_equal(rle_decode(rle_merge(rles)), mask)


GOOD = shape([corners(130, 20, 40, 6)], bbox=[130, 20, 40, 6])
SHARES, PERCENT = (
    [[n * v / SIZE[1 - i % 2] for i, v in enumerate(corners(*BOX))]] for n in (1, 100)
)
LINE = shape([[60, 20, 100, 20]], bbox=[60, 20, 40, 0])  # as thin as its bbox
LARGER = [[4 * v for v in (x, 60, 20, 9)] for x in (5, 60, 150)]  # the image was made smaller
RUNS = rle_encode(np.pad(np.ones((6, 40)), ((100, 54), (120, 40))))
NOT_THERE = r"1 of 3 annotations, such as 1 \(at .*, its bbox \[60, 20, 40, 6\] .* same entry says"
DOUBTS = [  # what the warning says, the shapes
    ("40 of 42 .*, such as 1 .* lie between 0 and 1,", [GOOD, *[shape(SHARES)] * 40, GOOD]),
    (r"at \[30, 12.5, 20, 3.75\] .* same entry says", [GOOD, shape(PERCENT, bbox=BOX)]),
    ("4 of 4 .* between 0 and 100, as percentages do", [shape(PERCENT)] * 4),
    (NOT_THERE, [GOOD, shape([BOX], bbox=BOX), GOOD]),
    (NOT_THERE, [GOOD, shape(RUNS, bbox=BOX), GOOD]),
    (r"at \[3, 3, 0, 0\] in .* area 240\), do not lie where", [GOOD, shape([[3, 3]], area=240)]),
    ("1 of 3 .* one or two corners", [GOOD, shape([[60, 20, 100, 26]], bbox=BOX), LINE]),
    (
        "3 of 4 .* for the most part outside",
        [GOOD, *(shape([corners(*b)], bbox=b) for b in LARGER)],
    ),
]


@pytest.mark.parametrize(("words", "shapes"), DOUBTS, ids=range(len(DOUBTS)))
def test_shapes_that_seem_wrong_are_named(tmp_path, caplog, words, shapes):
    file = write(tmp_path, *shapes)
    read_coco(file)
    (message,) = warnings_about(caplog, file)
    assert re.search(words, message)


def test_shapes_of_any_size_with_what_tools_write_beside_them_are_not_named(tmp_path, caplog):
    """Boxes exact, of whole pixels, cut off; areas of polygon or box; nothing usable."""
    sides, places = st.floats(0.2, 120), st.tuples(st.floats(0, 190), st.floats(0, 150))

    @fuzzed(60)
    @given(places, sides, sides)
    def read(place, w, h):
        x, y = place
        whole = [int(x), int(y), int(x + w) - int(x) + 1, int(y + h) - int(y) + 1]
        beside = [{"bbox": [x, y, w, h], "area": w * h}, {"bbox": whole, "area": w * h / 2}]
        beside += [{"bbox": [x, y, min(w, SIZE[1] - x), min(h, SIZE[0] - y)]}]
        beside += [{"bbox": [], "area": w * h}, {"bbox": [0, 0, 0, 0]}, {"bbox": "", "area": None}]
        read_coco(write(tmp_path, *(shape([corners(x, y, w, h)], **entry) for entry in beside)))

    read()
    fits = ("between 0 and 1", "for the most part outside")  # what such coordinates may be
    messages = warnings_about(caplog, tmp_path)
    assert not [text for text in messages if not any(words in text for words in fits)]


WHOLE = content(GOOD, GOOD)
TEXTS = {
    json.dumps(WHOLE)[:-9]: "ends too early, copy it again",
    '{"images": [}': "mend it there, or export it again",
    "[" * 100_000: "not valid JSON",
    "[]": "expected an object with images",
    '{"images": []}': "no list 'categories'; is this a COCO annotation file",
    "<html>": "but a web page; download",
    "version https://git-lfs.github.com/spec/v1\noid": "git lfs pull",
    '{"a": "\u00fc"}'.encode("cp1252"): r"is not UTF-8 \(byte 0xfc at 7\); save it as UTF-8: iconv",
    "{}".encode("utf-16"): "is not UTF-8 but UTF-16",
}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text)[:30])
def test_what_is_no_annotation_file_is_refused_with_the_remedy_that_fits(tmp_path, text):
    file = tmp_path / "_annotations.coco.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=rf"_annotations\.coco\.json: .*{TEXTS[text]}"):
        read_coco(file)


CHANGES = [  # where, the value (... takes it out), what the error says
    ("images", "id", 1, "image 1: two of 'images' have this id"),
    ("categories", "id", None, "entry 0 of 'categories' has no integer 'id'"),
    ("categories", "name", ..., "category 0: 'name' is missing, expected a string"),
    ("annotations", "image_id", 77, "annotation 0 belongs to image 77, which 'images' does not"),
    ("annotations", "image_id", True, "annotation 0: 'image_id' is True, expected an integer"),
    ("annotations", "segmentation", "x", "expected polygons or run lengths"),
    *(("annotations", "segmentation", x, "a box alone marks no pixels") for x in ([], [[]])),
    ("annotations", "segmentation", [[1, 2, float("nan"), 4]], "annotation 0: a polygon"),
    ("annotations", "segmentation", [[1, 2, 3]], "annotation 0: a polygon must"),
    ("annotations", "segmentation", {"size": [200, 160], "counts": [9]}, "run lengths of size"),
    ("annotations", "segmentation", {"size": list(SIZE), "counts": [5]}, "run lengths are broken"),
    ("images", "height", 10**40, "DATASET.max_pixels"),
    *(("images", "file_name", x, "image 0: file_name") for x in ("/a", "x/../a", "", ".")),
    ("images", "file_name", "\ud800.png", "which no name can be"),
]


@pytest.mark.parametrize(("key", "name", "value", "words"), CHANGES, ids=lambda x: repr(x)[:30])
def test_what_does_not_fit_is_refused_by_file_and_entry(tmp_path, key, name, value, words):
    changed = copy.deepcopy(WHOLE)
    changed[key][0][name] = value
    if value is ...:
        del changed[key][0][name]
    file = tmp_path / "_annotations.coco.json"
    file.write_text(json.dumps(changed))
    with pytest.raises(DataError, match=rf"_annotations\.coco\.json.*{words}") as error:
        read_coco(file)
    assert len(str(error.value).encode()) < 1000
