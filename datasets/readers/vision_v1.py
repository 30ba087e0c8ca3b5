"""VISION V1: <root>/<object>/{train,val}/_annotations.coco.json beside the images."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from pathlib import Path

from datasets import folders
from datasets.coco import CocoFile, read_coco
from datasets.folders import ANY_PATH_KEY
from datasets.images import image_size
from datasets.masks import warn_inverted
from datasets.orientation import STORED, frame_of_mask, turned_back
from datasets.rle import rle_area, rle_decode, rle_encode, rle_merge
from datasets.samples import Sample, join_categories
from utils.errors import DataError
from utils.warn_once import warn_once

kind = "episodes"
ANNOTATIONS = "_annotations.coco.json"
PARTS = ("train", "val", "valid")  # valid: as Roboflow calls it
UNLABELLED = "inference"
_LOG = logging.getLogger(__name__)


@folders.named_files()
def read_object(root: Path, object: str, key: str = ANY_PATH_KEY) -> tuple[list[Sample], list[str]]:
    """Samples of one product, sorted by (part, image, category), and notes on what was left out.

    A sample is an image and one category: all its polygons and run lengths merged. Categories of
    one name are one, in whatever part and under whatever id; a sample's category is the id in the
    first part. Raises DataError, naming file and annotation, for whatever does not fit together; a
    missing image is no error (SampleIndex.missing_images lists them).
    """
    samples, notes, listed, categories = [], [], [], {}
    for path in source_files(root, object, key):
        coco = read_coco(path)
        files = _image_files(coco, {image_id for image_id, _ in coco.shapes})
        listed += files.values()
        used = sorted({category for _, category in coco.shapes})
        numbers = join_categories(categories, path, coco.names, used)
        names = {numbers[category]: coco.names[category] for category in used}
        merged = defaultdict(list)
        for (image_id, category), rles in coco.shapes.items():
            merged[image_id, numbers[category]] += rles
        part = []
        for (image_id, category), rles in merged.items():
            mask, file = rle_merge(rles), files[image_id]
            if frame_of_mask(file, coco.size(image_id)) not in ((STORED, STORED), None):
                mask = rle_encode(turned_back(rle_decode(mask), file))
            if area := rle_area(mask):
                height, width = mask["size"]
                warn_inverted(f"{path}: image {image_id}", area / (height * width))
                image = file.relative_to(root).as_posix()
                part.append(Sample(image, object, category, names[category], mask))
        samples += sorted(part, key=lambda sample: (sample.image, sample.category))
        notes += _notes(coco, used, len(merged) - len(part))
    unread = f"no {ANNOTATIONS} that is read lists them"
    folders.warn_unread(root / object, listed, unread, silent=[UNLABELLED])
    if others := _other_annotations(root / object):
        fact = f"{len(others)} JSON files, such as {others[0]}, are not read"
        remedy = f"keep annotations in {ANNOTATIONS} of the folders train, val or valid"
        warn_once(_LOG, f"{root / object}: {fact}; {remedy}")
    return samples, notes


@folders.named_files()
def normal_images(root: Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Images of one product that are on disk and listed without any annotation, sorted."""
    normal = []
    for path in source_files(root, object, key):
        coco = read_coco(path)
        marked = {coco.images[image_id]["file_name"] for image_id, _ in coco.shapes}
        unmarked = {i for i, image in coco.images.items() if image["file_name"] not in marked}
        files = _image_files(coco, unmarked)
        normal += [files[number] for number in unmarked if files[number].is_file()]
    return sorted(normal)


def has_object(root: Path, object: str) -> bool:
    """Whether the root holds a folder for the object."""
    return (root / object).is_dir()


@folders.named_files()
def source_files(root: Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Annotation files of one product, one or more. Raises DataError where there are none."""
    folder = root / object
    if not folder.is_dir():
        raise folders.missing_object(root, [folder], key)
    parts = [path for path in map(folder.joinpath, PARTS) if path.is_dir() or path.is_symlink()]
    if not parts:
        others = _other_annotations(folder)
        hint = f"; {others[0]} is there: put it and its images so" if others else ""
        expected = f"expected {folder / 'train' / ANNOTATIONS}{hint}"
        raise DataError(f"{folder} has neither train/ nor val/; {expected}")
    for part in parts:
        if not (part / ANNOTATIONS).is_file():
            remedy = "put the annotations there or remove the folder"
            raise DataError(f"{part / ANNOTATIONS}: no such file; {remedy}")
    # one part may be a link to another
    return sorted({part.resolve(): part / ANNOTATIONS for part in reversed(parts)}.values())


def _other_annotations(folder: Path) -> list[Path]:
    """JSON files of an object's folder, and of those in it, that are not read."""
    places = [folder, *(path for path in folders.subfolders(folder) if path.name != UNLABELLED)]
    files = [path for place in places for path in sorted(place.glob("[!.]*.json"))]
    return [path for path in files if path.parent.name not in PARTS or path.name != ANNOTATIONS]


def _image_files(coco: CocoFile, needed: set[int]) -> dict[int, Path]:
    """Where the images of a file lie, by id; those needed must differ, and have the size listed."""
    names = {number: image["file_name"] for number, image in coco.images.items()}
    found = folders.find_listed(coco.path.parent, names.values(), coco.path)
    files, owners = {number: found[name] for number, name in names.items()}, {}
    for number in sorted(needed):
        file, size = files[number], coco.size(number)
        if (first := owners.setdefault(file, number)) != number:
            name = f"{file.relative_to(coco.path.parent)!s:.200}"
            raise DataError(f"{coco.path}: images {first} and {number} are both {name}")
        if frame_of_mask(file, size) is None:
            fault = f"is listed as {size} (h, w), but {file} is {image_size(file)}"
            remedy = "list the size of the stored pixels"
            raise DataError(f"{coco.path}: image {number} {fault}; {remedy}")
    return files


def _notes(coco: CocoFile, used: list[int], empty: int) -> list[str]:
    """A note on each name of several ids, on images without annotation and on empty masks."""
    notes, names = [], [coco.names[number] for number in used]
    for name, count in Counter(names).items():
        if count > 1:
            same = ", ".join(str(number) for number in used if coco.names[number] == name)
            notes.append(f"the categories {same} are all called {name!r} and count as one")
    images = len(coco.images)
    if unmarked := images - len({image_id for image_id, _ in coco.shapes}):
        notes.append(f"{unmarked} of {images} images have no annotation and are left out")
    if empty:
        notes.append(f"{empty} masks mark nothing within their image and are left out")
    return [f"{coco.path}: {note}" for note in notes]
