from __future__ import annotations

import csv
import os

import numpy as np
import pytest
from PIL import Image

from datasets.readers.anomaly import AnomalyImage, read_target
from datasets.readers.visa import TABLE, VISA_OBJECTS, read_object
from tests.anomaly_data import write_converted_visa, write_table, write_visa
from tests.datasets.bad_files import warnings_about
from tests.helpers import SIZE
from utils.errors import DataError

ANOMALY, NORMAL = "candle/Data/Images/Anomaly", "candle/Data/Images/Normal"


@pytest.fixture
def visa(tmp_path):
    write_visa(tmp_path, ["candle", "pcb1"])
    return tmp_path


def change(root, image, value, column):
    """Replace a cell of the row of an image; returns the number of its line."""
    with (root / TABLE).open(newline="") as file:
        rows = list(csv.reader(file))
    place = next(number for number, row in enumerate(rows) if row[3] == image)
    rows[place][rows[0].index(column)] = value
    write_table(root, rows)
    return place + 1


def test_the_table_says_what_is_what(visa):
    item = read_object(visa, "candle")
    assert item.name == "candle" and len(VISA_OBJECTS) == 12
    assert item.normal == [visa / NORMAL / f"{number:04}.JPG" for number in range(4)]
    masks = visa / "candle" / "Data" / "Masks" / "Anomaly"
    bad = [
        AnomalyImage(visa / ANOMALY / f"00{n}.JPG", "bad", masks / f"00{n}.png") for n in range(4)
    ]
    good = [AnomalyImage(visa / NORMAL / f"000{n}.JPG", "good", None) for n in (4, 5)]
    assert item.test == bad + good
    for test in bad:
        values = np.array(Image.open(test.mask))
        np.testing.assert_array_equal(read_target(test, SIZE), values > 0)


def test_the_converted_layout_goes_first_and_needs_no_table(visa):
    write_converted_visa(visa, ["candle"], train=7)
    os.remove(visa / TABLE)
    assert len(read_object(visa, "candle").normal) == 7
    words = r"split_csv/1cls\.csv nor .*pcb1/train/good.*TEST\.dataset_path.*MVTec AD"
    with pytest.raises(DataError, match=words):
        read_object(visa, "pcb1", "TEST.dataset_path")


def test_order_blanks_a_byte_order_mark_and_windows_paths_do_not_matter(visa, caplog):
    before = read_object(visa, "candle")
    head, *rows = (visa / TABLE).read_text().replace(",", " , ").replace("/", "\\").splitlines()
    (visa / TABLE).write_bytes(b"\xef\xbb\xbf" + "\n".join([head, *reversed(rows)]).encode())
    assert read_object(visa, "candle") == before
    assert "are there under another spelling than listed" in caplog.text


def test_what_the_table_does_not_list_for_training_or_test_is_named(visa, caplog):
    before = read_object(visa, "candle")
    os.remove(visa / "pcb1" / "Data" / "Images" / "Normal" / "0000.JPG")  # of another object
    change(visa, f"{ANOMALY}/000.JPG", "train", "split")
    table = (visa / TABLE).read_text().splitlines()
    (visa / TABLE).write_text("\n".join(line for line in table if "0001.JPG" not in line))
    after = read_object(visa, "candle")
    assert len(after.normal) == 3 and after.test == before.test[1:]
    for place, name in ((NORMAL, "0001.JPG"), (ANOMALY, "000.JPG")):
        assert f"{place}: 1 files, such as {name}, are not read" in caplog.text
    assert len(warnings_about(caplog, visa)) == 3, "its mask, too"


COLUMNS = "object,split,label,image,mask"
TABLES = {
    b"": f"no column object, split, label, image, mask; its first line must be {COLUMNS}",
    b"object;split;label;image;mask": "no column object, .*, parted by commas",
    b"object," + b"x" * 200_000: "cannot be read as a table .*commas",
    COLUMNS.encode(): "no row of candle; .*the table lists: nothing",
    "object,split".encode("utf-16"): "is not UTF-8 but UTF-16; save it as UTF-8: iconv -f UTF-16",
}


@pytest.mark.parametrize("text", TABLES, ids=lambda text: repr(text)[:20])
def test_what_is_no_table_is_refused_for_what_it_is(visa, text):
    (visa / TABLE).write_bytes(text)
    with pytest.raises(DataError, match=rf"1cls\.csv: .*{TABLES[text]}"):
        read_object(visa, "candle")


CELLS = [
    ("split", "val", "split is 'val', expected train or test"),
    ("label", "", "label is '', expected normal or anomaly"),
    ("label", "normal", "has the label normal, but a mask"),
    ("image", "", "image .*: no such file"),
    ("image", "pcb1/../../a.JPG", "image .*leads out"),
    ("mask", "candle/gone.png", "mask .*candle/gone.png: no such file"),
    ("mask", "", "has the label anomaly, but no mask"),
]


@pytest.mark.parametrize(("column", "value", "named"), CELLS)
def test_what_does_not_fit_names_file_and_line(visa, column, value, named):
    line = change(visa, f"{ANOMALY}/001.JPG", value, column)
    with pytest.raises(DataError, match=rf"1cls\.csv: line {line}: .*{named}"):
        read_object(visa, "candle")


def test_an_object_without_rows_of_training_or_test(tmp_path):
    write_visa(tmp_path / "one", train=0)
    with pytest.raises(DataError, match="no row of candle with split train and label normal"):
        read_object(tmp_path / "one", "candle")
    write_visa(tmp_path / "two", good=0, abnormal=0)
    with pytest.raises(DataError, match="no row of candle with split test"):
        read_object(tmp_path / "two", "candle")


def test_a_file_that_is_listed_twice_is_refused(visa):
    change(visa, f"{NORMAL}/0000.JPG", f"{NORMAL}/0004.JPG", "image")
    with pytest.raises(DataError, match=rf"1cls\.csv lists .*{NORMAL}/0004.JPG twice"):
        read_object(visa, "candle")
