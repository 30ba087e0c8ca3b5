from __future__ import annotations

import csv
import os

import numpy as np
import pytest
from PIL import Image

from datasets.images import image_size
from datasets.readers.anomaly import AnomalyImage, draw_normal, read_target
from datasets.readers.visa import TABLE, VISA_OBJECTS, read_object
from tests.anomaly_data import write_converted_visa, write_mvtec, write_table, write_visa
from tests.helpers import SIZE
from utils.errors import DataError


@pytest.fixture
def visa(tmp_path):
    write_visa(tmp_path, ["candle", "pcb1"])
    return tmp_path


def change(root, old, new, column):
    """Replace a cell of the first row whose image ends with `old`; a new of None removes the row."""
    with (root / TABLE).open(newline="") as file:
        rows = list(csv.reader(file))
    place = next(number for number, row in enumerate(rows) if row[3].endswith(old))
    if new is None:
        del rows[place]
    else:
        rows[place][rows[0].index(column)] = new
    write_table(root, rows)
    return place + 1


def test_the_names_of_all_objects():
    assert len(VISA_OBJECTS) == 12 and list(VISA_OBJECTS) == sorted(VISA_OBJECTS)


def test_the_table_says_what_is_what(visa):
    found = read_object(visa, "candle")
    images, masks = visa / "candle" / "Data" / "Images", visa / "candle" / "Data" / "Masks"
    assert found.name == "candle"
    assert found.normal == [images / "Normal" / f"{number:04}.JPG" for number in range(4)]
    abnormal = [
        (images / "Anomaly" / f"{n:03}.JPG", masks / "Anomaly" / f"{n:03}.png") for n in range(4)
    ]
    assert found.test == [
        *(AnomalyImage(image, "bad", mask) for image, mask in abnormal),
        AnomalyImage(images / "Normal" / "0004.JPG", "good", None),
        AnomalyImage(images / "Normal" / "0005.JPG", "good", None),
    ]


def content(found):
    """All that an object says, but for where its files lie."""
    test = [
        (i.image.name, i.image.read_bytes(), i.defect, read_target(i, image_size(i.image)))
        for i in found.test
    ]
    return found.name, [(path.name, path.read_bytes()) for path in found.normal], test


def test_both_layouts_hold_the_same(visa, tmp_path):
    write_converted_visa(tmp_path / "converted", ["candle", "pcb1"])
    own, other = read_object(visa, "pcb1"), read_object(tmp_path / "converted", "pcb1")
    np.testing.assert_equal(content(own), content(other))
    assert [p.name for p in draw_normal(own.normal, own.name, 2, 5)] == [
        p.name for p in draw_normal(other.normal, other.name, 2, 5)
    ]


def test_the_converted_layout_goes_before_the_table(visa):
    write_converted_visa(visa, ["candle"], train=7)
    assert len(read_object(visa, "candle").normal) == 7
    assert len(read_object(visa, "pcb1").normal) == 4
    os.remove(visa / TABLE)
    assert len(read_object(visa, "candle").normal) == 7


def test_all_class_values_are_marked(visa):
    for item in read_object(visa, "candle").test:
        target = read_target(item, SIZE)
        assert target.any() == item.is_anomalous
        if item.mask is not None:
            values = np.array(Image.open(item.mask))
            assert values.max() in (1, 2)
            np.testing.assert_array_equal(target, values > 0)


def test_the_order_of_rows_and_a_byte_order_mark_do_not_matter(visa):
    before = read_object(visa, "candle")
    head, *rows = (visa / TABLE).read_text().splitlines()
    (visa / TABLE).write_bytes(b"\xef\xbb\xbf" + "\n".join([head, *reversed(rows)]).encode())
    assert read_object(visa, "candle") == before


def test_abnormal_rows_of_the_split_train_are_left_out(visa):
    before = read_object(visa, "candle")
    change(visa, "candle/Data/Images/Anomaly/000.JPG", "train", "split")
    after = read_object(visa, "candle")
    assert after.normal == before.normal and after.test == before.test[1:]


def test_rows_of_other_objects_may_name_what_is_not_there(visa):
    os.remove(visa / "pcb1" / "Data" / "Images" / "Normal" / "0000.JPG")
    assert len(read_object(visa, "candle").normal) == 4


def test_a_missing_object_lists_those_that_are_there(visa):
    with pytest.raises(DataError, match=r"cande.*TEST\.dataset_path.*holds: candle, pcb1"):
        read_object(visa, "cande", "TEST.dataset_path")
    with pytest.raises(DataError, match=r"gone: no such folder.*dataset_path"):
        read_object(visa / "gone", "candle")


def test_an_object_that_the_table_lacks(visa):
    write_mvtec(visa, ["candles"])
    (visa / "candles" / "train").rename(visa / "candles" / "training")
    with pytest.raises(DataError, match=r"1cls\.csv: no row of candles.*lists: candle, pcb1"):
        read_object(visa, "candles")
    write_table(visa, [("object", "split", "label", "image", "mask")])
    with pytest.raises(DataError, match=r"1cls\.csv: no row of candle.*lists: nothing"):
        read_object(visa, "candle")


def test_neither_layout(visa):
    os.remove(visa / TABLE)
    with pytest.raises(
        DataError,
        match=r"split_csv/1cls\.csv nor .*candle/train/good.*TEST\.dataset_path.*MVTec AD",
    ):
        read_object(visa, "candle", "TEST.dataset_path")


@pytest.mark.parametrize("column", ["object", "split", "label", "image", "mask"])
def test_a_missing_column_is_named(visa, column):
    text = (visa / TABLE).read_text()
    (visa / TABLE).write_text(text.replace(column, "other", 1))
    with pytest.raises(
        DataError, match=rf"1cls\.csv: no column {column}; .*object,split,label,image,mask"
    ):
        read_object(visa, "candle")


@pytest.mark.parametrize("text", [b"", b"\n"])
def test_an_empty_table(visa, text):
    (visa / TABLE).write_bytes(text)
    with pytest.raises(DataError, match=r"1cls\.csv: no column object, split, label, image, mask"):
        read_object(visa, "candle")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"object," + b"x" * 200_000, "cannot be read as a table .*commas"),
        (
            "object,split".encode("utf-16"),
            "is not UTF-8 but UTF-16; save it as UTF-8: iconv -f UTF-16",
        ),
        (
            "object,stra\u00dfe".encode("cp1252"),
            r"is not UTF-8 \(byte 0xdf at 11\); save it as UTF-8: iconv",
        ),
        (b"object;split;label;image;mask", "its columns are parted by ';', expected commas"),
        (b"object\tsplit\tlabel\timage\tmask", r"its columns are parted by '\\t', expected commas"),
        (
            b"object,split",
            "no column label, image, mask; its first line must be object,split,label,image,mask",
        ),
        (b"<!DOCTYPE html><p>not found", "but a web page; download"),
        (
            b"version https://git-lfs.github.com/spec/v1",
            "a pointer of Git LFS; fetch the file itself: git lfs pull",
        ),
    ],
)
def test_what_is_no_table_is_refused_for_what_it_is(visa, text, words):
    (visa / TABLE).write_bytes(text)
    with pytest.raises(DataError, match=rf"1cls\.csv: .*{words}") as error:
        read_object(visa, "candle")
    assert "copy" not in str(error.value)


def test_a_table_of_windows_paths_is_read(visa, caplog):
    expected = read_object(visa, "candle")
    (visa / TABLE).write_text((visa / TABLE).read_text().replace("/", "\\"))
    assert read_object(visa, "candle") == expected
    assert "are there under another spelling than listed" in caplog.text


def test_images_that_the_table_does_not_list_for_training_or_test_are_counted(visa, caplog):
    table = (visa / TABLE).read_text()
    rows = [line for line in table.splitlines() if "0001.JPG" not in line]
    rows = [
        line.replace("test,anomaly", "train,anomaly") if "/000.JPG" in line else line
        for line in rows
    ]
    (visa / TABLE).write_text("\n".join(rows))
    read_object(visa, "candle")
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "Images/Normal: 1 files, such as 0001.JPG, are not read" in told
    assert "Images/Anomaly: 1 files, such as 000.JPG, are not read" in told


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("split", "val", "split is 'val', expected train or test"),
        ("split", "", "split is '', expected train or test"),
        ("label", "good", "label is 'good', expected normal or anomaly"),
        ("image", "candle/gone.JPG", "image .*candle/gone.JPG: no such file"),
        ("image", "", "image .*: no such file"),
        ("image", "../candle/a.JPG", "image .*leads out"),
        ("image", "pcb1/../../a.JPG", "image .*leads out"),
        ("mask", "candle/gone.png", "mask .*candle/gone.png: no such file"),
        ("mask", "/a.png", "mask /a.png leads out"),
        ("mask", "", "has the label anomaly, but no mask"),
        ("label", "normal", "has the label normal, but a mask"),
    ],
)
def test_what_does_not_fit_names_file_and_line(visa, column, value, named):
    line = change(visa, "candle/Data/Images/Anomaly/001.JPG", value, column)
    with pytest.raises(DataError, match=rf"1cls\.csv: line {line}: .*{named}"):
        read_object(visa, "candle")


@pytest.mark.parametrize("leads_out", ["absolute", "above"])
def test_training_images_outside_the_root_are_refused_though_they_exist(
    visa, tmp_path_factory, leads_out
):
    outside = tmp_path_factory.mktemp("outside") / "a.JPG"
    Image.new("RGB", SIZE[::-1]).save(outside)
    path = str(outside) if leads_out == "absolute" else os.path.relpath(outside, visa)
    line = change(visa, "candle/Data/Images/Normal/0000.JPG", path, "image")
    with pytest.raises(DataError, match=rf"1cls\.csv: line {line}: image .*a\.JPG leads out"):
        read_object(visa, "candle")


def test_no_training_and_no_test_image(tmp_path):
    write_visa(tmp_path / "one", train=0)
    with pytest.raises(
        DataError, match=r"1cls\.csv: no row of candle with split train and label normal"
    ):
        read_object(tmp_path / "one", "candle")
    write_visa(tmp_path / "two", good=0, abnormal=0)
    with pytest.raises(DataError, match=r"1cls\.csv: no row of candle with split test"):
        read_object(tmp_path / "two", "candle")


def test_a_training_image_that_is_a_test_image(visa):
    change(
        visa, "candle/Data/Images/Normal/0000.JPG", "candle/Data/Images/Normal/0004.JPG", "image"
    )
    with pytest.raises(DataError, match=r"1cls\.csv lists .*0004\.JPG twice"):
        read_object(visa, "candle")


def test_a_mask_of_another_size_names_both(visa):
    Image.new("L", SIZE).save(visa / "candle" / "Data" / "Masks" / "Anomaly" / "002.png")
    with pytest.raises(
        DataError, match=r"Masks/Anomaly/002\.png is 128 x 96.*Images/Anomaly/002\.JPG is 96 x 128"
    ):
        read_object(visa, "candle")


@pytest.mark.parametrize(
    "mask", ["candle/Data/Masks/Anomaly/001.png", "candle/Data/Images/Anomaly/000.JPG"]
)
def test_a_mask_that_is_that_of_another_image_or_an_image_is_refused(visa, mask):
    change(visa, "candle/Data/Images/Anomaly/000.JPG", mask, "mask")
    with pytest.raises(DataError, match=rf"lists .*{mask} twice"):
        read_object(visa, "candle")


def test_blanks_around_the_cells_of_the_table_change_nothing(visa):
    before = read_object(visa, "candle")
    table = visa / TABLE
    table.write_text(table.read_text().replace(",", " , "))
    assert read_object(visa, "candle") == before
