"""COCO annotation files: their images, categories and shapes, each held against what it says of itself."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from datasets.folders import read_text
from datasets.images import check_pixels
from datasets.masks import (
    Rle,
    polygon_corners,
    rle_box,
    rle_merge,
    rle_of_annotation,
    rle_of_polygons,
)
from utils.errors import DataError
from utils.warn_once import warn_once

Box = tuple[float, float, float, float]  # left, top, right, bottom, pixels
_TEXT, _NUMBER = ((str,), "a string"), ((int,), "an integer")
_NO_TEXT = re.compile(
    r"[\0\ud800-\udfff]"
)  # JSON can spell what neither file names nor UTF-8 can hold
_PARSER_ERRORS = (ValueError, RecursionError, MemoryError)
_ALIKE = 0.25  # intersection over union from which on a shape lies where its bbox says
_SHARES = (-0.05, 1.05)  # coordinates that are shares of the image, some a little outside
_NEEDED: dict[str, tuple[str, dict]] = {
    "images": ("image", {"file_name": _TEXT, "height": _NUMBER, "width": _NUMBER}),
    "categories": ("category", {"name": _TEXT}),
    "annotations": (
        "annotation",
        {
            "image_id": _NUMBER,
            "category_id": _NUMBER,
            "segmentation": ((list, dict), "polygons or run lengths"),
        },
    ),
}
_LOG = logging.getLogger(__name__)


@dataclass
class Shapes:
    """What one image holds of one category: the corners (n, 2) of polygons, and run lengths."""

    polygons: list[np.ndarray] = field(default_factory=list)
    rles: list[Rle] = field(default_factory=list)

    def mask(self, size: tuple[int, int]) -> Rle:
        """Their union in an image of size (h, w)."""
        drawn = rle_of_polygons(self.polygons, size)
        return rle_merge([drawn, *self.rles]) if self.rles else drawn


@dataclass(frozen=True)
class CocoFile:
    """An annotation file.

    Attributes:
        path: of the file.
        images: by id; their file_name is relative to the file's folder, without `..` and the same however it is spelt.
        names: of the categories, by id.
        shapes: by (image id, category id).
    """

    path: Path
    images: dict[int, dict]
    names: dict[int, str]
    shapes: dict[tuple[int, int], Shapes]


def read_coco(path: Path) -> CocoFile:
    """Reads an annotation file. Shapes that contradict the bbox or area beside them, or seem to be in other units than
    pixels, are told in a warning.

    Raises DataError, naming file and entry, for whatever does not fit together.
    """
    content = _load_json(path)
    names = {number: entry["name"] for number, entry in _by_id(path, content, "categories").items()}
    images = {
        number: _with_plain_name(path, entry)
        for number, entry in _by_id(path, content, "images").items()
    }
    return CocoFile(path, images, names, _shapes_per_class(path, content, images, names))


def listed_size(image: dict) -> tuple[int, int]:
    """Size (h, w) that an image's entry gives. Raises DataError as check_pixels."""
    size = image["height"], image["width"]
    check_pixels(f"image {image['id']}", size)  # polygons are drawn at this size
    return size


def _with_plain_name(path: Path, image: dict) -> dict:
    name = PurePosixPath(image["file_name"])
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise DataError(
            f"{path}: image {image['id']}: file_name {image['file_name']!r:.200} must be relative to {path.parent}, "
            "without .."
        )
    return image | {"file_name": name.as_posix()}


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        cut = not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string")
        remedy = "it ends too early, copy it again" if cut else "mend it there, or export it again"
        raise DataError(f"{path}: not valid JSON ({error!s:.200}); {remedy}") from error
    except _PARSER_ERRORS as error:
        raise DataError(f"{path}: not valid JSON ({error!s:.200}); export it again") from error
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
                raise DataError(
                    f"{path}: {noun} {entry['id']}: {name!r} is {found}, expected {expected}"
                )
            if kind == (str,) and _NO_TEXT.search(entry[name]):
                raise DataError(
                    f"{path}: {noun} {entry['id']}: {name!r} is {entry[name]!a:.80}, which no name can be"
                )
    return entries


def _by_id(path: Path, content: dict, key: str) -> dict[int, dict]:
    entries: dict[int, dict] = {}
    for entry in _entries(path, content, key):
        if entry["id"] in entries:
            raise DataError(
                f"{path}: two entries of {key!r} have the id {entry['id']}; ids must be unique"
            )
        entries[entry["id"]] = entry
    return entries


def _shapes_per_class(
    path: Path, content: dict, images: dict[int, dict], names: dict[int, str]
) -> dict[tuple[int, int], Shapes]:
    shapes: dict[tuple[int, int], Shapes] = {}
    boxes: list[tuple[dict, Box, tuple[int, int]]] = []
    for annotation in _entries(path, content, "annotations"):
        image_id, category = annotation["image_id"], annotation["category_id"]
        where = f"{path}: annotation {annotation['id']}"
        if image_id not in images:
            raise DataError(f"{where} belongs to image {image_id!r}, which 'images' does not list")
        if category not in names:
            raise DataError(
                f"{where} is of category {category!r}, which 'categories' does not list"
            )
        try:
            size = listed_size(images[image_id])
            own = _shapes_of(annotation["segmentation"], size)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        known = shapes.setdefault((image_id, category), Shapes())
        known.polygons += own.polygons
        known.rles += own.rles
        boxes.append((annotation, _box(annotation["segmentation"], own), size))
    for fault in _contradictions(boxes):
        warn_once(_LOG, f"{path}: {fault}")
    return shapes


def _shapes_of(segmentation: list | dict, size: tuple[int, int]) -> Shapes:
    if isinstance(segmentation, dict):
        return Shapes(rles=[rle_of_annotation(segmentation, size)])
    polygons = [polygon for polygon in segmentation if polygon != []]
    if not polygons:
        raise DataError(
            "no segmentation; expected a list of polygons or run lengths, a box alone marks no pixels"
        )
    return Shapes(polygons=[polygon_corners(polygon) for polygon in polygons])


def _box(segmentation: list | dict, shapes: Shapes) -> Box:
    if shapes.rles:
        return rle_box(shapes.rles[0])
    corners = np.concatenate(
        [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in segmentation]
    )
    return (*corners.min(0).tolist(), *corners.max(0).tolist())


def _contradictions(boxes: Sequence[tuple[dict, Box, tuple[int, int]]]) -> Iterator[str]:
    """What seems wrong with shapes that are not where the same entries say, or whose numbers are no pixels."""
    drawn = [
        (a, box, size)
        for a, box, size in boxes
        if isinstance(a["segmentation"], list) and min(size) > 2
    ]
    shares = sum(min(box) >= _SHARES[0] and max(box) <= _SHARES[1] for _, box, _ in drawn)
    if drawn and shares >= 0.95 * len(drawn):
        yield (
            f"{'all' if shares == len(drawn) else 'nearly all'} coordinates lie between 0 and 1, as shares of the "
            "image do, so that each shape is a pixel in the corner; COCO counts pixels: multiply x by the width and y "
            "by the height"
        )
        return
    odd = [(a, box) for a, box, size in boxes if _contradicts(a, box, size)]
    if odd:
        annotation, (left, top, right, bottom) = odd[0]
        question = "is the image's size theirs, and do they go down the columns?"
        if isinstance(annotation["segmentation"], list):
            question = "are its coordinates pixels x0, y0, x1, y1, ...?"
        says = ", ".join(
            f"{key} {annotation[key]!s:.80}" for key in ("bbox", "area") if key in annotation
        )
        yield (
            f"the shapes of {len(odd)} of {len(boxes)} annotations do not lie where the same entry says, such as "
            f"annotation {annotation['id']}: {says}, but its shape has the bbox [{left:g}, {top:g}, {right - left:g}, "
            f"{bottom - top:g}]; {question}"
        )
    thin = [a["id"] for a, box, size in drawn if _is_thin(a) and not _contradicts(a, box, size)]
    if thin:
        yield (
            f"the polygons of {len(thin)} annotations, such as {thin[0]}, have one or two corners, so that they mark a "
            "pixel or a line; give all corners"
        )
    chance = math.prod(min(1, 100 / side) for *_, size in drawn for side in size)
    if chance < 0.01 and all(max(box) <= 100 for _, box, _ in drawn) and not odd:
        yield "all coordinates lie between 0 and 100, as percentages of larger images do; COCO counts pixels"
    outside = [
        (a["id"], size) for a, box, size in drawn if _area(_clipped(box, size)) < 0.5 * _area(box)
    ]
    if 2 * len(outside) > len(drawn):
        yield (
            f"the shapes of {len(outside)} annotations, such as {outside[0][0]}, lie for the most part outside their "
            f"image, which is listed as {outside[0][1]} (h, w); do they count the pixels of an image of another size?"
        )


def _is_thin(annotation: dict) -> bool:
    """Whether polygons of one or two corners stand for a bbox that is wider and higher than a line, or has none."""
    own = annotation.get("bbox")
    is_line = (
        isinstance(own, list) and len(own) == 4 and all(map(_is_number, own)) and min(own[2:]) <= 2
    )
    return not is_line and all(len(polygon) < 6 for polygon in annotation["segmentation"])


def _contradicts(annotation: dict, shape: Box, size: tuple[int, int]) -> bool:
    """Whether the bbox or, without one, the area that an entry gives cannot be that of its shape."""
    own, area = annotation.get("bbox"), annotation.get("area")
    if (
        isinstance(own, list)
        and len(own) == 4
        and all(map(_is_number, own))
        and own[2] > 0
        and own[3] > 0
    ):
        grown = _grown(shape, size)
        other = _grown((own[0], own[1], own[0] + own[2], own[1] + own[3]), size)
        sides = [min(grown[i + 2], other[i + 2]) - max(grown[i], other[i]) for i in (0, 1)]
        common = max(0.0, sides[0]) * max(0.0, sides[1])
        return common < _ALIKE * (_area(grown) + _area(other) - common)
    left, top, right, bottom = shape
    return _is_number(area) and area > 2 * (right - left + 2) * (bottom - top + 2)


def _grown(box: Box, size: tuple[int, int]) -> Box:
    """A box with a pixel more on either side, within an image of size (h, w)."""
    left, top, right, bottom = box
    return _clipped((left - 1, top - 1, right + 1, bottom + 1), size)


def _clipped(box: Box, size: tuple[int, int]) -> Box:
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, size[1]), min(bottom, size[0])


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
