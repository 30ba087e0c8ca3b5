"""VISION V1: <root>/<object>/{train,val}/_annotations.coco.json beside the images; inference/ has no labels."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from datasets.files import ANY_PATH_KEY, missing_object, named_files
from datasets.images import check_pixels, image_size
from datasets.masks import (
    Rle,
    polygon_corners,
    rle_area,
    rle_decode,
    rle_encode,
    rle_merge,
    rle_of_annotation,
    rle_of_polygons,
)
from datasets.orientation import STORED, orientation_of_annotation, turned_back
from datasets.samples import Sample
from utils.errors import DataError

ANNOTATIONS = "_annotations.coco.json"
PARTS = ("train", "val")
_TEXT, _NUMBER = ((str,), "a string"), ((int,), "an integer")
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")  # JSON can spell what neither file names nor UTF-8 can hold
_PARSER_ERRORS = (ValueError, RecursionError, MemoryError)
_NEEDED: dict[str, tuple[str, dict]] = {
    "images": ("image", {"file_name": _TEXT, "height": _NUMBER, "width": _NUMBER}),
    "categories": ("category", {"name": _TEXT}),
    "annotations": (
        "annotation",
        {"image_id": _NUMBER, "category_id": _NUMBER, "segmentation": ((list, dict), "polygons or run lengths")},
    ),
}


@dataclass
class _Shapes:
    """What one image holds of one category: the corners (n, 2) of polygons, and run lengths."""

    polygons: list[np.ndarray] = field(default_factory=list)
    rles: list[Rle] = field(default_factory=list)

    def mask(self, size: tuple[int, int]) -> Rle:
        drawn = rle_of_polygons(self.polygons, size)
        return rle_merge([drawn, *self.rles]) if self.rles else drawn


@named_files()
def read_object(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> tuple[list[Sample], list[str]]:
    """Samples of one product, sorted by (part, image, category), and notes on what was left out.

    A sample is an image and one category: all its polygons and run lengths merged. Category ids are kept as they are.
    key: the setting that holds root, named in errors.
    Raises DataError, naming file and annotation, for whatever does not fit together; a missing image is none
    (SampleIndex.missing_images lists them).
    """
    samples: list[Sample] = []
    notes: list[str] = []
    known: dict[int, str] = {}
    for path in source_files(root, object, key):
        images, names, shapes = _read(path)
        for category, name in names.items():
            if known.setdefault(category, name) != name:
                notes.append(f"{path}: category {category} is {name!r} here, but {known[category]!r} in {PARTS[0]}/")
        part_samples = _samples(path, Path(root), object, images, shapes, known)
        samples += part_samples
        notes += _notes(path, len(images), shapes, len(part_samples))
    return samples, notes


@named_files()
def normal_images(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Images of one product that its annotation files list without any annotation and that are on disk, sorted.

    Raises DataError as read_object does.
    """
    normal: list[Path] = []
    for path in source_files(root, object, key):
        images, _, shapes = _read(path)
        marked = {images[image_id]["file_name"] for image_id, _ in shapes}
        files = _image_files(path, [image for image in images.values() if image["file_name"] not in marked])
        normal += [file for file in files.values() if file.is_file()]
    return sorted(normal)


def has_object(root: Path, object: str) -> bool:
    """Whether the root holds a folder for the object."""
    return (root / object).is_dir()


@named_files()
def source_files(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Annotation files of one product, one or two. Raises DataError where the product or they are missing."""
    folder = Path(root) / object
    if not folder.is_dir():
        raise missing_object(Path(root), [folder], key)
    parts = [folder / part for part in PARTS if (folder / part).is_dir() or (folder / part).is_symlink()]
    if not parts:
        raise DataError(f"{folder} has neither {PARTS[0]}/ nor {PARTS[1]}/; expected {folder / PARTS[0] / ANNOTATIONS}")
    for part in parts:
        if not (part / ANNOTATIONS).is_file():
            raise DataError(f"{part / ANNOTATIONS}: no such file; put the annotations there or remove the folder")
    return [part / ANNOTATIONS for part in parts]


def _read(path: Path) -> tuple[dict[int, dict], dict[int, str], dict[tuple[int, int], _Shapes]]:
    """Images by id, names of categories by id, and shapes by (image id, category id) of an annotation file."""
    content = _load_json(path)
    names = {number: entry["name"] for number, entry in _by_id(path, content, "categories").items()}
    images = {number: _with_plain_name(path, entry) for number, entry in _by_id(path, content, "images").items()}
    return images, names, _shapes_per_class(path, content, images, names)


def _with_plain_name(path: Path, image: dict) -> dict:
    """An image's entry whose file_name is below the folder of the annotations, the same however it is spelt."""
    name = PurePosixPath(image["file_name"])
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise DataError(
            f"{path}: image {image['id']}: file_name {image['file_name']!r:.200} must be relative to {path.parent}, "
            "without .."
        )
    return image | {"file_name": name.as_posix()}


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except _PARSER_ERRORS as error:
        raise DataError(f"{path}: not valid JSON ({error!s:.200}); copy the file again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with images, annotations and categories")
    return content


def _entries(path: Path, content: dict, key: str) -> list[dict]:
    """The list under a key, each entry with an integer id and the keys it needs."""
    noun, needed = _NEEDED[key]
    entries = content.get(key)
    if not isinstance(entries, list):
        raise DataError(f"{path}: no list {key!r}; is this a COCO annotation file?")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise DataError(f"{path}: entry {position} of {key!r} has no integer 'id'")
        for name, (kind, expected) in needed.items():
            if type(entry.get(name)) not in kind:
                found = f"{entry[name]!r:.40}" if name in entry else "missing"
                raise DataError(f"{path}: {noun} {entry['id']}: {name!r} is {found}, expected {expected}")
            if kind == (str,) and _NO_TEXT.search(entry[name]):
                raise DataError(f"{path}: {noun} {entry['id']}: {name!r} is {entry[name]!a:.80}, which no name can be")
    return entries


def _by_id(path: Path, content: dict, key: str) -> dict[int, dict]:
    entries: dict[int, dict] = {}
    for entry in _entries(path, content, key):
        if entry["id"] in entries:
            raise DataError(f"{path}: two entries of {key!r} have the id {entry['id']}; ids must be unique")
        entries[entry["id"]] = entry
    return entries


def _shapes_per_class(
    path: Path, content: dict, images: dict[int, dict], names: dict[int, str]
) -> dict[tuple[int, int], _Shapes]:
    """Shapes by (image id, category id)."""
    shapes: dict[tuple[int, int], _Shapes] = {}
    for annotation in _entries(path, content, "annotations"):
        image_id, category = annotation["image_id"], annotation["category_id"]
        where = f"{path}: annotation {annotation['id']}"
        if image_id not in images:
            raise DataError(f"{where} belongs to image {image_id!r}, which 'images' does not list")
        if category not in names:
            raise DataError(f"{where} is of category {category!r}, which 'categories' does not list")
        try:
            size = _size(images[image_id])
            _add(shapes.setdefault((image_id, category), _Shapes()), annotation["segmentation"], size)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    return shapes


def _size(image: dict) -> tuple[int, int]:
    size = image["height"], image["width"]
    check_pixels(f"image {image['id']}", size)  # polygons are drawn at this size
    return size


def _add(shapes: _Shapes, segmentation: list | dict, size: tuple[int, int]) -> None:
    if isinstance(segmentation, dict):
        shapes.rles.append(rle_of_annotation(segmentation, size))
    elif segmentation:
        shapes.polygons += [polygon_corners(polygon) for polygon in segmentation]
    else:
        raise DataError("no segmentation; expected a list of polygons or run lengths, a box alone marks no pixels")


def _samples(
    path: Path, root: Path, name: str, images: dict[int, dict], shapes: dict[tuple[int, int], _Shapes], names: dict
) -> list[Sample]:
    samples = []
    files = _image_files(path, [images[number] for number in dict.fromkeys(image_id for image_id, _ in shapes)])
    for (image_id, category), shape in shapes.items():
        mask = _stored(shape.mask(_size(images[image_id])), files[image_id])
        if rle_area(mask):
            image = files[image_id].relative_to(root).as_posix()
            samples.append(Sample(image, name, category, names[category], mask))
    return sorted(samples, key=lambda sample: (sample.image, sample.category))


def _stored(mask: Rle, image: Path) -> Rle:
    """A mask in the frame of the stored pixels."""
    if orientation_of_annotation(image, tuple(mask["size"])) in (STORED, None):
        return mask
    return rle_encode(turned_back(rle_decode(mask), image))


def _image_files(path: Path, images: list[dict]) -> dict[int, Path]:
    """Where each image lies, by its id."""
    owners: dict[str, int] = {}
    for image in images:
        if owners.setdefault(image["file_name"], image["id"]) != image["id"]:
            first = owners[image["file_name"]]
            raise DataError(f"{path}: images {first} and {image['id']} are both {image['file_name']}")
    return {image["id"]: _image_file(path, image) for image in images}


def _image_file(path: Path, image: dict) -> Path:
    """Where an image lies; if it is there, its header must agree with what is listed, turned by EXIF or not."""
    file = path.parent / image["file_name"]
    try:
        size = _size(image)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if orientation_of_annotation(file, size) is None:
        raise DataError(
            f"{path}: image {image['id']} is listed as {size} (h, w), but {file} is {image_size(file)}; list the size "
            "of the stored pixels"
        )
    return file


def _notes(path: Path, image_count: int, shapes: dict[tuple[int, int], _Shapes], sample_count: int) -> list[str]:
    notes = []
    unmarked = image_count - len({image_id for image_id, _ in shapes})
    if unmarked:
        notes.append(f"{path}: {unmarked} of {image_count} images have no annotation and are left out")
    if len(shapes) > sample_count:
        notes.append(f"{path}: {len(shapes) - sample_count} masks lie entirely outside their image and are left out")
    return notes
