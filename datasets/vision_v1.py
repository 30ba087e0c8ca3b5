"""VISION V1: <root>/<object>/{train,val}/_annotations.coco.json beside the images; inference/ has no labels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import ANY_PATH_KEY, missing_object
from datasets.images import contradicts, image_size
from datasets.masks import Rle, polygon_corners, rle_area, rle_merge, rle_of_annotation, rle_of_polygons
from datasets.samples import Sample
from utils.errors import DataError

ANNOTATIONS = "_annotations.coco.json"
PARTS = ("train", "val")
_TEXT, _NUMBER = (str, "a string"), (int, "an integer")
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


def source_files(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Annotation files of one product, one or two. Raises DataError where the product or they are missing."""
    folder = Path(root) / object
    if not folder.is_dir():
        raise missing_object(Path(root), [folder], key)
    parts = [folder / part for part in PARTS if (folder / part).is_dir()]
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
    images = _by_id(path, content, "images")
    return images, names, _shapes_per_class(path, content, images, names)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); copy the file again") from error
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
            if not isinstance(entry.get(name), kind):
                found = f"{entry[name]!r:.40}" if name in entry else "missing"
                raise DataError(f"{path}: {noun} {entry['id']}: {name!r} is {found}, expected {expected}")
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
    height, width = image["height"], image["width"]
    if min(height, width) < 1:
        raise DataError(f"image {image['id']} has the size {height!r} x {width!r}; both must be at least 1")
    return height, width


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
        mask = shape.mask(_size(images[image_id]))
        if rle_area(mask):
            image = files[image_id].relative_to(root).as_posix()
            samples.append(Sample(image, name, category, names[category], mask))
    return sorted(samples, key=lambda sample: (sample.image, sample.category))


def _image_files(path: Path, images: list[dict]) -> dict[int, Path]:
    """Where each image lies, by its id."""
    owners: dict[str, int] = {}
    for image in images:
        if owners.setdefault(image["file_name"], image["id"]) != image["id"]:
            first = owners[image["file_name"]]
            raise DataError(f"{path}: images {first} and {image['id']} are both {image['file_name']}")
    return {image["id"]: _image_file(path, image) for image in images}


def _image_file(path: Path, image: dict) -> Path:
    """Where an image lies; if it is there, its header must agree with what is listed."""
    file = path.parent / image["file_name"]
    if not file.is_relative_to(path.parent):
        raise DataError(f"{path}: image {image['id']} is {file}; file_name must be relative to {path.parent}")
    if contradicts(file, _size(image)):
        raise DataError(
            f"{path}: image {image['id']} is listed as {_size(image)} (h, w), but {file} is {image_size(file)}; "
            "annotations refer to the pixels as stored, without EXIF rotation"
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
