"""VisA, as it is downloaded (<root>/split_csv/1cls.csv lists images and masks) or converted to the layout of MVTec AD.

The columns of 1cls.csv are object, split (train, test), label (normal, anomaly), image and mask. Image and mask are
paths relative to the root; the mask is empty for a normal image.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from datasets.folders import (
    ANY_PATH_KEY,
    ListedFiles,
    check_same_size,
    missing_object,
    named_files,
    read_text,
    tell_unread,
)
from datasets.readers import mvtec
from datasets.readers.anomaly import NORMAL, AnomalyImage, AnomalyObject
from utils.errors import DataError

VISA_OBJECTS = (
    "candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3", "pcb4",
    "pipe_fryum",
)  # fmt: skip
TABLE = Path("split_csv", "1cls.csv")
_COLUMNS = ("object", "split", "label", "image", "mask")
_WORDS = {"split": ("train", "test"), "label": ("normal", "anomaly")}
_DEFECT = "bad"  # the one kind of defect, named as in the converted layout


@dataclass(frozen=True)
class _Row:
    """A line of the table; where: file and line, for errors."""

    where: str
    cells: dict[str, str]

    def is_one(self, split: str, label: str) -> bool:
        return (self.cells["split"], self.cells["label"]) == (split, label)

    def file(self, there: ListedFiles, column: str) -> Path:
        """The file that a column names, below the root."""
        root, relative = there.folder, Path(self.cells[column])
        if relative.is_absolute() or ".." in relative.parts:
            raise DataError(
                f"{self.where}: {column} {relative} leads out of {root}; paths start there, without .."
            )
        file = there.find(self.cells[column])
        if not file.is_file():
            raise DataError(
                f"{self.where}: {column} {file}: no such file; see whether the data set was copied whole"
            )
        return file


@named_files()
def read_object(root: str | Path, name: str, key: str = ANY_PATH_KEY) -> AnomalyObject:
    """Finds and matches the files of one object; pixels are read later.

    An object that has train/good is read as mvtec.read_object does, every other by the table. Only normal images of the
    split train are training images; abnormal ones of that split are left out.
    key: the setting that holds root, named in errors.
    Raises DataError where the object, its images or the table are missing, a row does not fit, an abnormal image has no
    mask, or a mask is not of its image's size.
    """
    root = Path(root)
    if not (root / name).is_dir():
        raise missing_object(root, [root / name], key)
    converted = mvtec.training_folder(root / name)
    if converted.is_dir():
        return mvtec.read_object(root, name, key)
    if not (root / TABLE).is_file():
        raise DataError(f"neither {root / TABLE} nor {converted} is there; set {key} to the folder that holds "
                        "the objects and split_csv/, or the objects in the layout of MVTec AD")  # fmt: skip
    return _listed_object(root, name)


def _listed_object(root: Path, name: str) -> AnomalyObject:
    rows = _rows(root / TABLE, name)
    there = ListedFiles(root, (row.cells[column] for row in rows for column in ("image", "mask")))
    normal = [row.file(there, "image") for row in rows if row.is_one("train", "normal")]
    test = [_test_image(row, there) for row in rows if row.cells["split"] == "test"]
    there.tell(root / TABLE)
    read = [*normal, *(path for item in test for path in (item.image, item.mask) if path)]
    tell_unread(
        root / name, read, f"what {TABLE} lists as normal for the training, or for the test, is"
    )
    for images, split, label in ((normal, "train", "normal"), (test, "test", "normal or anomaly")):
        if not images:
            raise DataError(
                f"{root / TABLE}: no row of {name} with split {split} and label {label}"
            )
    _check_once(
        root / TABLE,
        [*normal, *(item.image for item in test), *(item.mask for item in test if item.mask)],
    )
    return AnomalyObject(name, sorted(normal), sorted(test, key=lambda item: item.image))


def _test_image(row: _Row, there: ListedFiles) -> AnomalyImage:
    image = row.file(there, "image")
    if row.is_one("test", "normal"):
        if row.cells["mask"]:
            raise DataError(
                f"{row.where}: {image} has the label normal, but a mask; empty it or set label to anomaly"
            )
        return AnomalyImage(image, NORMAL, None)
    if not row.cells["mask"]:
        raise DataError(
            f"{row.where}: {image} has the label anomaly, but no mask; name one in the column mask"
        )
    mask = row.file(there, "mask")
    check_same_size(image, mask)
    return AnomalyImage(image, _DEFECT, mask)


def _rows(table: Path, name: str) -> list[_Row]:
    """Rows of one object, at least one, their split and label checked."""
    rows = _read_table(table)
    own = [row for row in rows if row.cells["object"] == name]
    if not own:
        there = ", ".join(sorted({row.cells["object"] for row in rows})) or "nothing"
        raise DataError(
            f"{table}: no row of {name}; check the object's name (the table lists: {there})"
        )
    for row in own:
        for column, words in _WORDS.items():
            if row.cells[column] not in words:
                raise DataError(
                    f"{row.where}: {column} is {row.cells[column]!r}, expected {' or '.join(words)}"
                )
    return own


def _read_table(table: Path) -> list[_Row]:
    try:
        reader = csv.DictReader(io.StringIO(read_text(table), newline=""), restval="")
        reader.fieldnames = columns = [name.strip() for name in reader.fieldnames or ()]
        rows = [_Row(f"{table}: line {reader.line_num}", _stripped(cells)) for cells in reader]
    except csv.Error as error:
        raise DataError(
            f"{table}: cannot be read as a table ({error}); save it as CSV with commas"
        ) from error
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        other = next(
            (sign for sign in (";", "\t", "|") if any(sign in column for column in columns)), ""
        )
        parted = (
            f"its columns are parted by {other!r}, expected commas"
            if other
            else f"no column {', '.join(missing)}"
        )
        raise DataError(f"{table}: {parted}; its first line must be {','.join(_COLUMNS)}")
    return rows


def _stripped(cells: dict[str, str]) -> dict[str, str]:
    """Cells without blanks around them; what stands beyond the last column is dropped."""
    return {name: cell.strip() for name, cell in cells.items() if name is not None}


def _check_once(table: Path, files: list[Path]) -> None:
    seen: set[Path] = set()
    for file in files:
        if file in seen:
            raise DataError(f"{table} lists {file} twice; a test image must not be a training image too, and a mask "
                            "belongs to one image")  # fmt: skip
        seen.add(file)
