"""COCO annotation files: their images, categories and shapes, each checked against the others."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from datasets.folders import read_text
from datasets.images import check_pixels
from datasets.rle import Rle, polygon_corners, rle_box, rle_of_annotation, rle_of_polygons
from utils.errors import DataError
from utils.warn_once import warn_once

# what entries need, besides an integer id
_NEEDED = {
    "images": {"file_name": str, "height": int, "width": int},
    "categories": {"name": str},
    "annotations": {"image_id": int, "category_id": int, "segmentation": (list, dict)},
}
_EXPECTED = {str: "a string", int: "an integer", (list, dict): "polygons or run lengths"}
_NOUNS = {"images": "image", "categories": "category", "annotations": "annotation"}
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")  # JSON can spell what no file name can hold
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CocoFile:
    """An annotation file."""

    path: Path
    images: dict[int, dict]  # entries by id; file_name is relative to the file's folder, without ..
    names: dict[int, str]  # of the categories, by id
    shapes: dict[tuple[int, int], list[Rle]]  # run lengths by (image id, category id)

    def size(self, image_id: int) -> tuple[int, int]:
        """Size (h, w) that an image is listed with. Raises DataError as check_pixels."""
        image = self.images[image_id]
        size = image["height"], image["width"]
        check_pixels(f"{self.path}: image {image_id}", size)
        return size


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises DataError for what is none, with the remedy that fits."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        remedy = "mend it there, or export it again"
        if isinstance(error, json.JSONDecodeError) and (
            not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated string")
        ):
            remedy = "it ends too early, copy it again"
        raise DataError(f"{path}: not valid JSON ({error!s:.200}); {remedy}") from error


def read_coco(path: Path) -> CocoFile:
    """Reads an annotation file, see coco_of."""
    return coco_of(path, read_json(path))


def coco_of(path: Path, content: Any) -> CocoFile:
    """What an annotation file holds, of its content.

    A warning names shapes that contradict the bbox or area beside them, or that seem to be in other
    units than pixels. Raises DataError, naming file and entry, for whatever does not fit together.
    """
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with images, annotations and categories")
    images, categories = (_entries(path, content, key) for key in ("images", "categories"))
    for image in images:
        name = PurePosixPath(image["file_name"])
        if name.is_absolute() or ".." in name.parts or not name.parts:
            fault = f"image {image['id']}: file_name {image['file_name']!r:.200} must be"
            raise DataError(f"{path}: {fault} relative to {path.parent}, without ..")
        image["file_name"] = name.as_posix()  # the same however it is spelt
    names = {entry["id"]: entry["name"] for entry in categories}
    coco = CocoFile(path, {image["id"]: image for image in images}, names, {})
    annotations = _entries(path, content, "annotations")
    boxes, sizes, listed = [], [], {"images": coco.images, "categories": names}
    for annotation in annotations:
        image_id, category = annotation["image_id"], annotation["category_id"]
        where = f"{path}: annotation {annotation['id']}"
        for key, number in (("images", image_id), ("categories", category)):
            if number not in listed[key]:
                noun = f"{_NOUNS[key]} {number!r}"
                raise DataError(f"{where} belongs to {noun}, which {key!r} does not list")
        sizes.append(coco.size(image_id))
        try:
            rle, box = _shape(annotation["segmentation"], sizes[-1])
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        coco.shapes.setdefault((image_id, category), []).append(rle)
        boxes.append(box)
    for doubt in _doubts(annotations, boxes, sizes) if annotations else ():
        warn_once(_LOG, f"{path}: {doubt}")
    return coco


def _entries(path: Path, content: dict, key: str) -> list[dict]:
    """The list under a key, each entry with an integer id of its own and the keys it needs."""
    entries, ids = content.get(key), set()
    if not isinstance(entries, list):
        raise DataError(f"{path}: no list {key!r}; is this a COCO annotation file?")
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or type(entry.get("id")) is not int:
            raise DataError(f"{path}: entry {position} of {key!r} has no integer 'id'")
        where = f"{path}: {_NOUNS[key]} {entry['id']}"
        if entry["id"] in ids:
            raise DataError(f"{where}: two of {key!r} have this id; ids must be unique")
        ids.add(entry["id"])
        for name, kind in _NEEDED[key].items():
            value = entry.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                fault = f"{value!r:.40}" if name in entry else "missing"
                raise DataError(f"{where}: {name!r} is {fault}, expected {_EXPECTED[kind]}")
            if kind is str and _NO_TEXT.search(value):
                raise DataError(f"{where}: {name!r} is {value!a:.80}, which no name can be")
    return entries


def _shape(segmentation: list | dict, size: tuple[int, int]) -> tuple[Rle, Sequence[float]]:
    """Run lengths of an annotation, and its left, top, right, bottom, not cut off at the border."""
    if isinstance(segmentation, dict):
        rle = rle_of_annotation(segmentation, size)
        return rle, rle_box(rle)
    polygons = [polygon for polygon in segmentation if polygon != []]
    if not polygons:
        expected = "expected a list of polygons or run lengths, a box alone marks no pixels"
        raise DataError(f"no segmentation; {expected}")
    rle = rle_of_polygons([polygon_corners(polygon) for polygon in polygons], size)
    corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    return rle, (*corners.min(0), *corners.max(0))


def _doubts(annotations: list[dict], boxes: list, sizes: list[tuple[int, int]]) -> Iterator[str]:
    """What seems wrong with shapes that are not where their entries say, or not in pixels."""
    boxes, limits = np.array(boxes, float), np.array(sizes)[:, [1, 0, 1, 0]]
    beside = np.array([_bbox_and_area(annotation) for annotation in annotations])
    shapes = (annotation["segmentation"] for annotation in annotations)
    polygons = [shape if isinstance(shape, list) else () for shape in shapes]
    drawn = np.array(list(map(bool, polygons))) & (limits.min(1) > 2)
    shares = drawn & (boxes.min(1) >= -0.05) & (boxes.max(1) <= 1.05)
    contradicts = _contradicts(boxes, beside, limits)
    few = np.array([max(map(len, shape or [()])) < 6 for shape in polygons])
    is_line = np.minimum(beside[:, 2] - beside[:, 0], beside[:, 3] - beside[:, 1]) <= 2
    outside = drawn & (_area(np.clip(boxes, 0, limits)) < 0.5 * _area(boxes))
    outside &= 2 * outside.sum() > drawn.sum()
    chance = np.minimum(1, 100 / limits[drawn, :2]).prod()  # that larger images have no more
    percent = chance < 0.01 and (boxes[drawn] <= 100).all() and not contradicts.any()
    doubts = [
        (contradicts, "do not lie where the same entry says; are they pixels of the image?"),
        (drawn & few & ~contradicts & ~is_line, "have one or two corners; give all corners"),
        (drawn & percent, "lie between 0 and 100, as percentages do; COCO counts pixels"),
        (outside, "lie for the most part outside their image; was it resized?"),
    ]
    if drawn.any() and shares.sum() >= 0.95 * drawn.sum():
        fault = "lie between 0 and 1, as shares do; multiply x by the width, y by the height"
        doubts = [(shares, fault)]
    for which, fault in doubts:
        if which.any():
            first = int(which.argmax())
            entry, (left, top, right, bottom) = annotations[first], boxes[first]
            box = f"[{left:g}, {top:g}, {right - left:g}, {bottom - top:g}]"
            yield (
                f"the shapes of {which.sum()} of {len(boxes)} annotations, such as {entry['id']} "
                f"(at {box} in an image of {sizes[first]} (h, w), its bbox "
                f"{entry.get('bbox')!s:.80} and area {entry.get('area')!s:.80}), {fault}"
            )


def _contradicts(boxes: np.ndarray, beside: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Whether bbox or, without one, area in the entries (n, 5) cannot be that of a shape."""
    bbox, area, margin = beside[:, :4], beside[:, 4], np.array([-1, -1, 1, 1])
    one, other = np.clip(boxes + margin, 0, limits), np.clip(bbox + margin, 0, limits)
    common = np.hstack([np.maximum(one, other)[:, :2], np.minimum(one, other)[:, 2:]])
    union = _area(one) + _area(other) - _area(common)
    has_bbox = (bbox[:, 2:] > bbox[:, :2]).all(1)
    elsewhere = has_bbox & (_area(common) < 0.25 * union)
    return elsewhere | (~has_bbox & (area > 2 * _area(boxes + margin)))


def _bbox_and_area(annotation: dict) -> list[float]:
    """Left, top, right, bottom and area of an entry; NaN for what is no use."""
    box, area = annotation.get("bbox"), annotation.get("area")
    numbers = [*box, area] if isinstance(box, list) and len(box) == 4 else [None] * 4 + [area]
    is_number = [type(value) in (int, float) and abs(value) < 1e15 for value in numbers]
    x, y, w, h = numbers[:4] if all(is_number[:4]) else [math.nan] * 4
    return [x, y, x + w, y + h, area if is_number[4] else math.nan]


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(1)
