"""VisA, as it is downloaded (<root>/split_csv/1cls.csv) or converted to the layout of MVTec AD.

The columns of 1cls.csv are object, split (train, test), label (normal, anomaly), image and mask.
Image and mask are paths relative to the root; the mask is empty for a normal image.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path

from datasets import folders
from datasets.orientation import check_same_size
from datasets.readers import mvtec
from datasets.readers.anomaly import NORMAL, AnomalyImage, AnomalyObject
from utils.errors import DataError

kind = "anomaly"
_NAMES = (
    "candle capsules cashew chewinggum fryum macaroni1 macaroni2 pcb1 pcb2 pcb3 pcb4 pipe_fryum"
)
VISA_OBJECTS = objects = tuple(_NAMES.split())
TABLE = Path("split_csv", "1cls.csv")
_COLUMNS = ("object", "split", "label", "image", "mask")
_WORDS = {"split": ("train", "test"), "label": ("normal", "anomaly")}
_DEFECT = "bad"  # the one kind of defect, named as in the converted layout


@folders.named_files()
def read_object(root: Path, name: str, key: str = folders.ANY_PATH_KEY) -> AnomalyObject:
    """Finds and matches the files of one object; pixels are read later.

    An object that has train/good is read as by mvtec.read_object, every other by the table, of
    which abnormal images of the split train are left out. Raises DataError where something is
    missing, a row does not fit, or a mask is not of its image's size.
    """
    table, converted = root / TABLE, root / name / "train" / NORMAL
    if not (root / name).is_dir():
        raise folders.missing_object(root, [root / name], key)
    if converted.is_dir():
        return mvtec.read_object(root, name, key)
    if not table.is_file():
        raise DataError(
            f"neither {table} nor {converted} is there; set {key} to the folder that holds the "
            "objects and split_csv/, or the objects in the layout of MVTec AD"
        )
    rows = _rows_of(table, name)
    names = (row[column] for row in rows for column in ("image", "mask"))
    there = folders.find_listed(root, names, table)
    normal, test = [], []
    for row in rows:
        if row["split"] == "test":
            test.append(_test_image(row, there))
        elif row["label"] == "normal":
            normal.append(_file(row, there, "image"))
    item = AnomalyObject(name, sorted(normal), sorted(test, key=lambda image: image.image))
    expected = f"what {TABLE} lists as normal for the training, or for the test, is"
    folders.warn_unread(root / name, item.files(), expected)
    for images, sort in ((normal, "train and label normal"), (test, "test")):
        if not images:
            raise DataError(f"{table}: no row of {name} with split {sort}")
    if twice := [file for file, count in Counter(item.files()).items() if count > 1]:
        remedy = "a test image must not be a training image too, and a mask belongs to one image"
        raise DataError(f"{table} lists {twice[0]} twice; {remedy}")
    return item


def _test_image(row: dict[str, str], there: dict[str, Path]) -> AnomalyImage:
    image, is_normal = _file(row, there, "image"), row["label"] == "normal"
    if is_normal == bool(row["mask"]):
        fault = f"has the label {row['label']}, but {'a' if is_normal else 'no'} mask"
        raise DataError(f"{row['where']}: {image} {fault}; mend one of the two columns")
    if is_normal:
        return AnomalyImage(image, NORMAL, None)
    mask = _file(row, there, "mask")
    check_same_size(image, mask)
    return AnomalyImage(image, _DEFECT, mask)


def _file(row: dict[str, str], there: dict[str, Path], column: str) -> Path:
    """The file that a column names, below the root."""
    where, relative = f"{row['where']}: {column}", Path(row[column])
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"{where} {relative} leads out of the root; paths start there, without ..")
    file = there[row[column]]
    if not file.is_file():
        raise DataError(f"{where} {file}: no such file; see whether the data set was copied whole")
    return file


def _rows_of(table: Path, name: str) -> list[dict[str, str]]:
    """Rows of one object, at least one: cells by column, and "where": file and line, for errors."""
    try:
        reader = csv.DictReader(io.StringIO(folders.read_text(table), newline=""), restval="")
        reader.fieldnames = columns = [column.strip() for column in reader.fieldnames or ()]
        rows = [
            {column: cell.strip() for column, cell in cells.items() if column is not None}
            | {"where": f"{table}: line {reader.line_num}"}
            for cells in reader
        ]
    except csv.Error as error:
        remedy = "save it as CSV with commas"
        raise DataError(f"{table}: cannot be read as a table ({error}); {remedy}") from error
    if missing := [column for column in _COLUMNS if column not in columns]:
        expected = f"its first line must be {','.join(_COLUMNS)}, parted by commas"
        raise DataError(f"{table}: no column {', '.join(missing)}; {expected}")
    chosen = [row for row in rows if row["object"] == name]
    if not chosen:
        there = ", ".join(sorted({row["object"] for row in rows})) or "nothing"
        raise DataError(f"{table}: no row of {name}; check the name, the table lists: {there}")
    for row in chosen:
        for column, words in _WORDS.items():
            if row[column] not in words:
                expected = f"{row[column]!r}, expected {' or '.join(words)}"
                raise DataError(f"{row['where']}: {column} is {expected}")
    return chosen
