"""VISION V1: <root>/<object>/{train,val}/_annotations.coco.json beside the images; inference/ has no labels."""

from __future__ import annotations

import logging
from itertools import groupby
from pathlib import Path

from datasets.folders import (
    ANY_PATH_KEY,
    ListedFiles,
    missing_object,
    named_files,
    subfolders,
    tell_unread,
)
from datasets.images import image_size
from datasets.masks import Rle, rle_area, rle_decode, rle_encode, tell_inverted
from datasets.orientation import STORED, orientation_of_annotation, turned_back
from datasets.readers.categories import CategoryNumbers
from datasets.readers.coco import CocoFile, Shapes, listed_size, read_coco
from datasets.samples import Sample
from utils.errors import DataError
from utils.warn_once import warn_once

ANNOTATIONS = "_annotations.coco.json"
PARTS = ("train", "val", "valid")  # valid: as Roboflow calls it
UNLABELLED = "inference"
_LOG = logging.getLogger(__name__)


@named_files()
def read_object(
    root: str | Path, object: str, key: str = ANY_PATH_KEY
) -> tuple[list[Sample], list[str]]:
    """Samples of one product, sorted by (part, image, category), and notes on what was left out.

    A sample is an image and one category: all its polygons and run lengths merged. Categories of one name are one, in
    whatever part and under whatever id; a sample's category is the id in the first part.
    key: the setting that holds root, named in errors.
    Raises DataError, naming file and annotation, for whatever does not fit together; a missing image is none
    (SampleIndex.missing_images lists them).
    """
    samples: list[Sample] = []
    notes: list[str] = []
    numbers, listed = CategoryNumbers(), []
    for path in source_files(root, object, key):
        coco = read_coco(path)
        files = _image_files(coco, {image_id for image_id, _ in coco.shapes})
        used = sorted({category for _, category in coco.shapes})
        given = numbers.add(path, coco.names, used)
        notes += _joined_categories(coco, used)
        part = _samples(coco, Path(root), object, files, given)
        notes += _left_out(coco, len(part), given)
        samples += part
        listed += files.values()
    folder = Path(root) / object
    tell_unread(folder, listed, f"no {ANNOTATIONS} that is read lists them", silent=[UNLABELLED])
    _tell_other_annotations(folder)
    return samples, notes


@named_files()
def normal_images(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Images of one product that its annotation files list without any annotation and that are on disk, sorted.

    Raises DataError as read_object does.
    """
    normal: list[Path] = []
    for path in source_files(root, object, key):
        coco = read_coco(path)
        marked = {coco.images[image_id]["file_name"] for image_id, _ in coco.shapes}
        unmarked = {
            number for number, image in coco.images.items() if image["file_name"] not in marked
        }
        files = _image_files(coco, unmarked)
        normal += [files[number] for number in unmarked if files[number].is_file()]
    return sorted(normal)


def has_object(root: Path, object: str) -> bool:
    """Whether the root holds a folder for the object."""
    return (root / object).is_dir()


@named_files()
def source_files(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Annotation files of one product, one or more. Raises DataError where the product or they are missing."""
    folder = Path(root) / object
    if not folder.is_dir():
        raise missing_object(Path(root), [folder], key)
    parts = [
        folder / part for part in PARTS if (folder / part).is_dir() or (folder / part).is_symlink()
    ]
    if not parts:
        others = _other_annotations(folder)
        hint = f"; {others[0]} is there: put it and its images so" if others else ""
        raise DataError(
            f"{folder} has neither train/ nor val/; expected {folder / 'train' / ANNOTATIONS}{hint}"
        )
    for part in parts:
        if not (part / ANNOTATIONS).is_file():
            found = sorted(path.name for path in part.glob("[!.]*.json"))
            hint = f" ({found[0]} is there: rename it)" if found else ""
            raise DataError(
                f"{part / ANNOTATIONS}: no such file{hint}; put the annotations there or remove the folder"
            )
    once = {
        part.resolve(): part / ANNOTATIONS for part in reversed(parts)
    }  # one may be a link to another
    return sorted(once.values())


def _other_annotations(folder: Path) -> list[Path]:
    """JSON files of an object's folder, and of those in it, that are not read."""
    places = [folder, *(p for p in subfolders(folder) if p.name != UNLABELLED)]
    found = [path for place in places for path in sorted(place.glob("[!.]*.json"))]
    return [path for path in found if not (path.parent.name in PARTS and path.name == ANNOTATIONS)]


def _tell_other_annotations(folder: Path) -> None:
    for place, files in groupby(_other_annotations(folder), lambda path: path.parent):
        names = [path.name for path in files]
        warn_once(
            _LOG,
            f"{place}: {len(names)} files, such as {names[0]}, are not read; annotations are read from "
            f"train/{ANNOTATIONS} and val/{ANNOTATIONS}: to have these read, too, rename the folder to train or val",
        )


def _samples(
    coco: CocoFile, root: Path, name: str, files: dict[int, Path], numbers: dict[int, int]
) -> list[Sample]:
    merged: dict[tuple[int, int], Shapes] = {}
    for (image_id, category), shapes in coco.shapes.items():
        known = merged.setdefault((image_id, numbers[category]), Shapes())
        known.polygons += shapes.polygons
        known.rles += shapes.rles
    names = {numbers[category]: coco.names[category] for category in numbers}
    samples = []
    for (image_id, category), shapes in merged.items():
        mask = _stored(shapes.mask(listed_size(coco.images[image_id])), files[image_id])
        if area := rle_area(mask):
            tell_inverted(
                f"{coco.path}: image {image_id}", area / (mask["size"][0] * mask["size"][1])
            )
            image = files[image_id].relative_to(root).as_posix()
            samples.append(Sample(image, name, category, names[category], mask))
    return sorted(samples, key=lambda sample: (sample.image, sample.category))


def _stored(mask: Rle, image: Path) -> Rle:
    """A mask in the frame of the stored pixels."""
    if orientation_of_annotation(image, tuple(mask["size"])) in (STORED, None):
        return mask
    return rle_encode(turned_back(rle_decode(mask), image))


def _image_files(coco: CocoFile, needed: set[int]) -> dict[int, Path]:
    """Where the images of a file lie, by their id; those that are needed must be different, of the size listed."""
    there, owners = (
        ListedFiles(coco.path.parent, (image["file_name"] for image in coco.images.values())),
        {},
    )
    files = {number: there.find(image["file_name"]) for number, image in coco.images.items()}
    there.tell(coco.path)
    for number in sorted(needed):
        first = owners.setdefault(files[number], number)
        if first != number:
            name = files[number].relative_to(coco.path.parent)
            raise DataError(f"{coco.path}: images {first} and {number} are both {name!s:.200}")
        _check_listed_size(coco.path, coco.images[number], files[number])
    return files


def _check_listed_size(path: Path, image: dict, file: Path) -> None:
    """Raises DataError where an image is there and its header does not agree with what is listed, turned or not."""
    try:
        size = listed_size(image)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if orientation_of_annotation(file, size) is None:
        raise DataError(
            f"{path}: image {image['id']} is listed as {size} (h, w), but {file} is {image_size(file)}; list the size "
            "of the stored pixels"
        )


def _joined_categories(coco: CocoFile, used: list[int]) -> list[str]:
    """A note on each name that several ids have."""
    ids: dict[str, list[int]] = {}
    for number in used:
        ids.setdefault(coco.names[number], []).append(number)
    return [
        f"{coco.path}: the categories {', '.join(map(str, same))} are all called {name!r} and count as one"
        for name, same in ids.items()
        if len(same) > 1
    ]


def _left_out(coco: CocoFile, sample_count: int, numbers: dict[int, int]) -> list[str]:
    notes = []
    unmarked = len(coco.images) - len({image_id for image_id, _ in coco.shapes})
    if unmarked:
        notes.append(
            f"{coco.path}: {unmarked} of {len(coco.images)} images have no annotation and are left out"
        )
    empty = (
        len({(image_id, numbers[category]) for image_id, category in coco.shapes}) - sample_count
    )
    if empty:
        notes.append(f"{coco.path}: {empty} masks mark nothing within their image and are left out")
    return notes
