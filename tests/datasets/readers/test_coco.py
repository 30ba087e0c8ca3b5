from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.rle import rle_encode
from datasets.readers.coco import read_coco
from tests.fuzz.guards import fuzzed
from utils.errors import DataError

SIZE = (160, 200)
BOX = [60, 20, 40, 6]  # x, y, w, h


def corners(x, y, w, h):
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def write(folder, *annotations):
    """An annotation file with an image for each annotation."""
    images = [
        {"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
        for i in range(len(annotations))
    ]
    shapes = [
        {"id": i, "image_id": i, "category_id": 0} | entry for i, entry in enumerate(annotations)
    ]
    file = folder / "_annotations.coco.json"
    file.write_text(
        json.dumps(
            {"images": images, "categories": [{"id": 0, "name": "a"}], "annotations": shapes}
        )
    )
    return file


def told(caplog, file):
    return [record.getMessage() for record in caplog.records if str(file) in record.getMessage()]


def in_shares(polygon):
    return [value / SIZE[1 - i % 2] for i, value in enumerate(polygon)]


@pytest.mark.parametrize("beside", [{}, {"bbox": BOX, "area": 240}])
def test_coordinates_in_shares_of_the_image_are_told(tmp_path, caplog, beside):
    file = write(tmp_path, *[{"segmentation": [in_shares(corners(*BOX))]} | beside] * 2)
    read_coco(file)
    (message,) = told(caplog, file)
    assert "all coordinates lie between 0 and 1" in message and "multiply x by the width" in message


@pytest.mark.parametrize("beside", [{"bbox": BOX}, {"bbox": BOX, "area": 240}])
@pytest.mark.parametrize(
    "shape", [[100 * v for v in in_shares(corners(*BOX))], BOX, corners(*BOX)[::-1], corners(120, 100, 40, 6)],
    ids=["percent", "x y w h", "y before x", "another place"],
)  # fmt: skip
def test_a_shape_that_is_not_where_its_own_bbox_says_is_told(tmp_path, caplog, beside, shape):
    good = {"segmentation": [corners(*BOX)]} | beside
    file = write(tmp_path, good, {"segmentation": [shape]} | beside, good)
    read_coco(file)
    (message,) = told(caplog, file)
    assert (
        "1 of 3 annotations do not lie where the same entry says, such as annotation 1: bbox [60, 20"
        in message
    )


def test_few_shapes_among_shares_and_those_a_little_outside_do_not_hide_them(tmp_path, caplog):
    shares = [{"segmentation": [in_shares(corners(180, 20, 25, 6))]}] * 40
    file = write(tmp_path, *shares, {"segmentation": [corners(*BOX)]})
    read_coco(file)
    assert [
        "nearly all coordinates lie between 0 and 1" in message for message in told(caplog, file)
    ] == [True]


@pytest.mark.parametrize("segmentation", [[[60, 20, 100, 26]], [[60, 20], [100, 26]]])
def test_corners_too_few_for_their_bbox_are_told(tmp_path, caplog, segmentation):
    file = write(
        tmp_path,
        {"segmentation": [corners(*BOX)], "bbox": BOX},
        {"segmentation": segmentation, "bbox": BOX},
    )
    read_coco(file)
    (message,) = told(caplog, file)
    assert "the polygons of 1 annotations, such as 1, have one or two corners" in message


def test_shapes_of_a_larger_image_are_told(tmp_path, caplog):
    """The images were made smaller after they had been annotated; bbox and shape agree."""
    boxes = [[4 * v for v in (x, 60, 20, 9)] for x in (5, 60, 150)]
    file = write(tmp_path, *({"segmentation": [corners(*box)], "bbox": box} for box in boxes))
    read_coco(file)
    (message,) = told(caplog, file)
    assert (
        "the shapes of 3 annotations, such as 0, lie for the most part outside" in message
        and str(SIZE) in message
    )


def test_run_lengths_and_areas_are_held_against_each_other_too(tmp_path, caplog):
    mask = np.zeros(SIZE, np.uint8)
    mask[100:106, 120:160] = 1
    for number, entry in enumerate(
        ({"segmentation": rle_encode(mask), "bbox": BOX}, {"segmentation": [[3, 3]], "area": 240})
    ):
        (tmp_path / str(number)).mkdir()
        file = write(tmp_path / str(number), entry)
        read_coco(file)
        assert len(told(caplog, file)) == 1


def test_shapes_of_any_size_with_the_bbox_that_tools_write_are_not_told(tmp_path, caplog):
    """Exact, of whole pixels, clipped at the border; areas of the polygon or of its box; or nothing usable beside."""

    @fuzzed(200)
    @given(
        st.floats(0, 190),
        st.floats(0, 150),
        st.floats(0.2, 120),
        st.floats(0.2, 120),
        st.integers(0, 4),
    )
    def read(x, y, w, h, kind):
        bbox = [x, y, w, h]
        if kind == 1:
            bbox = [int(x), int(y), int(x + w) - int(x) + 1, int(y + h) - int(y) + 1]
        if kind == 2:
            bbox = [x, y, min(w, SIZE[1] - x), min(h, SIZE[0] - y)]
        beside = [{"bbox": bbox, "area": w * h}, {"bbox": bbox}, {"bbox": bbox, "area": w * h / 2}]
        beside += [
            {"bbox": [], "area": w * h},
            {"bbox": [0, 0, 0, 0], "area": 0},
            {"bbox": "", "area": None},
        ]
        read_coco(
            write(tmp_path, *({"segmentation": [corners(x, y, w, h)]} | entry for entry in beside))
        )

    read()
    fits = ("between 0 and 1", "for the most part outside")  # what such coordinates may be told of
    assert not [
        message for message in told(caplog, tmp_path) if not any(words in message for words in fits)
    ]


@pytest.mark.parametrize("empty", [[], [[]], [[], []]])
def test_a_segmentation_without_points_is_refused_by_number(tmp_path, empty):
    file = write(tmp_path, {"segmentation": [corners(*BOX)]}, {"segmentation": empty, "bbox": BOX})
    with pytest.raises(
        DataError, match=r"annotation 1: no segmentation; .* a box alone marks no pixels"
    ):
        read_coco(file)


def test_an_empty_polygon_beside_others_adds_nothing(tmp_path):
    one, two = (
        read_coco(write(tmp_path, {"segmentation": s}))
        for s in ([corners(*BOX)], [[], corners(*BOX)])
    )
    assert one.shapes[0, 0].mask(SIZE) == two.shapes[0, 0].mask(SIZE)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [', "ends too early, copy it again"),
        ('{"images": [}', "mend it there, or export it again"),
        ("<html>", "but a web page; download"),
        ("version https://git-lfs.github.com/spec/v1\\noid", "git lfs pull"),
        (
            '{"a": "\u00fc"}'.encode("cp1252"),
            r"is not UTF-8 \(byte 0xfc at 7\); save it as UTF-8: iconv",
        ),
        ('{"a": "\u6f22"}'.encode("gb18030"), "is not UTF-8 .* -f GB18030"),
        ("{}".encode("utf-16"), "is not UTF-8 but UTF-16"),
    ],
)
def test_what_is_no_json_is_refused_with_the_remedy_that_fits(tmp_path, content, words):
    file = tmp_path / "_annotations.coco.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"_annotations\.coco\.json: .*{words}"):
        read_coco(file)


def test_a_mask_of_nearly_the_whole_image_is_told(tmp_path, caplog):
    from datasets.readers.vision_v1 import read_object

    (tmp_path / "part" / "train").mkdir(parents=True)
    write(
        tmp_path / "part" / "train",
        {"segmentation": [corners(0, 0, 200, 150)]},
        {"segmentation": [corners(*BOX)]},
    )
    samples, _ = read_object(tmp_path, "part")
    assert len(samples) == 2
    (message,) = [text for text in told(caplog, tmp_path) if "the mask marks" in text]
    assert "image 0: the mask marks 94.38 % of its pixels" in message


def test_percentages_are_told_also_where_the_bbox_agrees(tmp_path, caplog):
    boxes = [[x, y, 20, 4] for x, y in ((5, 60), (70, 90), (30, 12), (50, 50))]
    file = write(tmp_path, *({"segmentation": [corners(*box)], "bbox": box} for box in boxes))
    read_coco(file)
    assert ["between 0 and 100, as percentages" in message for message in told(caplog, file)] == [
        True
    ]
    caplog.clear()
    read_coco(
        write(
            tmp_path,
            {"segmentation": [corners(*boxes[0])]},
            {"segmentation": [corners(120, 60, 30, 9)]},
        )
    )
    assert not caplog.records


@pytest.mark.parametrize(
    "segmentation", [[BOX], [corners(*BOX)[i : i + 2] for i in range(0, 8, 2)]]
)
def test_corners_too_few_are_told_without_a_bbox(tmp_path, caplog, segmentation):
    file = write(tmp_path, {"segmentation": segmentation})
    read_coco(file)
    assert ["have one or two corners" in message for message in told(caplog, file)] == [True]
