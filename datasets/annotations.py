"""The annotations that people have of single images: mask files, LabelMe, COCO, CVAT, YOLO.

`read_annotation` reads any of them; `coco_json` writes results as COCO.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from math import ceil, cos, hypot, pi, radians, sin
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import yaml
from PIL import Image

from datasets.coco import coco_of, read_json
from datasets.folders import named_files, plain, read_text
from datasets.images import check_pixels, exif_orientation
from datasets.masks import read_mask
from datasets.orientation import turned_back
from datasets.rle import (
    Rle,
    polygon_corners,
    rle_area,
    rle_box,
    rle_decode,
    rle_merge,
    rle_of_part,
    rle_of_polygons,
)
from utils.errors import BROKEN, DataError
from utils.output_files import file_name
from utils.warn_once import warn_once

Size = tuple[int, int]  # (h, w), pixels
Shapes = list[tuple[str, Rle]]  # label and marks
UNNAMED = "defect"  # what files call the type "" of a mask without labels
_NAMES = ("data.yaml", "data.yml", "classes.txt", "obj.names")  # of YOLO's classes
_FOLDERS = 3  # beside the labels and above, in which those are looked for
_OF_ROBOFLOW = re.compile(r"(.+)_(jpe?g|png|bmp|tiff?|webp)\.rf\.[^.]+\.\w+")
_OF_LABEL_STUDIO = re.compile(r"^(?=[0-9]*[a-f])[0-9a-f]{8}-")  # a date is no such prefix
_LARGEST_OUTLINE = 1 << 22  # pixels of the box of a defect that is outlined
_LOG = logging.getLogger(__name__)


@named_files()
def read_annotation(
    path: str | Path, image: str | Path, size: Size, kind: str = ""
) -> dict[str, np.ndarray]:
    """What a file marks in one image: by type of defect a mask, uint8 (h, w) in {0, 1}, contiguous.

    A mask file has the one type "", other files the types of their labels; what no file name can
    hold is `_` in them. An image that is listed without marks has no type. Of a file of several
    images the entry is taken that has the image's name: of the most folders in common, with case,
    Unicode form, backslashes and the additions of Roboflow and Label Studio left aside where no
    name is the same.

    Args:
        image: the annotated image; its EXIF orientation tells how marks lie on it.
        size: (h, w) of its stored pixels.
        kind: the one type wanted, where the caller names it: that of the label of this name, or of
            whatever label where there is only one.

    Raises:
        DataError: the file cannot be read, is in no format known, marks boxes or other things
            without pixels, has no entry or several of the image, or is of another size.
    """
    path, image, read = Path(path), Path(image), _FORMATS.get(Path(path).suffix.lower())
    if read is None:
        masks = {"": turned_back(read_mask(path), image, path)}
    else:
        rles, masks = defaultdict(list), {}
        try:
            for label, rle in read(path, image, size):
                rles[_type_of(label)].append(rle)
        except (*BROKEN, SyntaxError) as error:
            if isinstance(error, OSError) and error.filename:  # it may not be read at all
                raise
            cause = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
            remedy = "export it again as LabelMe, COCO, CVAT or YOLO segmentation"
            raise DataError(f"{path}: not as its format has it ({cause}); {remedy}") from error
        for label, parts in rles.items():
            masks[label] = turned_back(rle_decode(rle_merge(parts)), image)
    for mask in masks.values():
        if mask.shape != tuple(size):
            fault = f"is of {mask.shape[0]} x {mask.shape[1]} pixels (h x w), but {image} has"
            remedy = "annotate the image at its own size, or give the image that was annotated"
            raise DataError(f"{path}: {fault} {size[0]} x {size[1]}; {remedy}")
    if not kind or not masks:
        return masks
    kind = _type_of(kind)
    chosen = [label for label in masks if plain(label) == plain(kind)] or list(masks)
    if len(chosen) > 1:
        remedy = "name the type as one of them, or give no name: each label is a type then"
        raise DataError(f"{path}: which of {', '.join(chosen)} is {kind!r}? {remedy}")
    return {kind: masks[chosen[0]]}


def coco_mark(part: np.ndarray, corner: tuple[int, int], size: Size) -> dict[str, Any]:
    """The segmentation, bbox and area of a COCO annotation. The segmentation is polygons where they
    mean the same pixels to every reader, else (holes, very large ones) run lengths, so that
    `read_annotation` reads the very same mask.

    Args:
        part: (h', w') in {0, 1}; its first pixel lies at `corner` (x, y) of an image of `size`.
    """
    rle = segmentation = rle_of_part(part, corner, size)
    left, top, right, bottom = map(int, rle_box(rle))
    if part.size <= _LARGEST_OUTLINE:
        # Outlines along the edges of pixels, of the mask at twice its size; right and lower edges
        # lie 0.1 within their pixel, which pycocotools rounds up to the edge and others truncate.
        doubled = np.repeat(np.repeat(part.astype(np.uint8), 2, axis=0), 2, axis=1)
        outlines, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        corners = [o[:, 0] // 2 + np.array(corner) + 0.9 * (o[:, 0] % 2) for o in outlines]
        polygons = [points.round(1).ravel().tolist() for points in corners]
        if rle_of_polygons([polygon_corners(polygon) for polygon in polygons], size) == rle:
            segmentation = polygons
    box = [left, top, right - left, bottom - top]
    return {"bbox": box, "area": rle_area(rle), "iscrowd": 0, "segmentation": segmentation}


def coco_json(
    types: Sequence[str], images: Iterable[tuple[str, Size, list[tuple[str, dict[str, Any]]]]]
) -> Iterator[str]:
    """The text of a COCO file, in pieces, so that results of any number need no memory.

    Args:
        types: of defects; the category of "" is called "defect".
        images: of each its name, size, and marks: (type, what `coco_mark` gives).
    """
    numbers = {kind: number for number, kind in enumerate(types, 1)}
    categories = [{"id": n, "name": kind or UNNAMED} for kind, n in numbers.items()]
    yield f'{{"categories": {json.dumps(categories)},\n"annotations": ['
    listed, count = [], 0
    for number, (name, size, marks) in enumerate(images, 1):
        listed.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for kind, mark in marks:
            entry = {"id": count + 1, "image_id": number, "category_id": numbers[kind]} | mark
            yield f"{',' if count else ''}\n{json.dumps(entry)}"
            count += 1
    entries = ",\n".join(map(json.dumps, listed))
    yield f'\n],\n"images": [\n{entries}\n]}}\n'


def _type_of(label: str) -> str:
    """A label as the name of a folder or a file."""
    label, suffix = unicodedata.normalize("NFC", " ".join(label.split())), ".safetensors"
    return file_name(file_name(label, suffix).removesuffix(suffix)) if label else ""


def _shown_size(image: Path, size: Size) -> Size:
    """Size of an image as tools show it, which obey EXIF."""
    return size[::-1] if exif_orientation(image) > 4 else size


def _entry_of(path: Path, image: Path, names: Sequence[str]) -> int:
    """Place of the name that means an image among those of a file. Raises DataError for none or
    several."""

    def parts(name: str, spell: Any) -> list[str]:
        return [spell(part) for part in reversed(name.replace("\\", "/").split("/")) if part != "."]

    def alike(name: str) -> str:
        return re.sub(r"[^\w.]+", "-", plain(name)).replace("-.", ".")

    def original(name: str) -> str:
        name = _OF_LABEL_STUDIO.sub("", plain(name))
        match = _OF_ROBOFLOW.fullmatch(name)
        return alike(f"{match[1]}.{match[2]}" if match else name)

    for of_image, of_names in ((str, str), (plain, plain), (alike, original)):
        wanted, scores = parts(str(image.absolute()), of_image), []
        for name in names:
            found, common = parts(name, of_names), 0
            while common < min(len(found), len(wanted)) and found[common] == wanted[common]:
                common += 1
            scores.append((common == len(found), common) if common else (False, 0))
        best = max(scores, default=(False, 0))
        if best[1] and scores.count(best) > 1:
            several = [name for name, score in zip(names, scores, strict=True) if score == best]
            fault = f"{len(several)} of its images have the name of {image}"
            remedy = "keep one of them, or name images with their folders"
            raise DataError(f"{path}: {fault}: {', '.join(several[:5]):.300}; {remedy}")
        if best[1]:
            return scores.index(best)
    there = f"{', '.join(names[:5]):.300}{', ...' if len(names) > 5 else ''}" or "none"
    fault = f"none of its {len(names)} images is {image.name}; it has: {there}"
    raise DataError(f"{path}: {fault}; give the image under the name that the file has")


def _read_json(path: Path, image: Path, size: Size) -> Shapes:
    content = read_json(path)
    if isinstance(content, dict) and "shapes" in content:
        return _read_labelme(path, content, image, size)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        expected = "expected LabelMe (with shapes) or COCO (with images, annotations, categories)"
        raise DataError(f"{path}: {expected}; export it so (Label Studio: as COCO)")
    entries = content["images"]
    names = [str(entry["file_name"]) for entry in entries]
    entry = entries[_entry_of(path, image, names)]
    marks = [a for a in content["annotations"] if a["image_id"] == entry["id"]]
    content |= {"images": [entry | {"file_name": "image"}], "annotations": marks}
    coco = coco_of(path, content)
    return [(coco.names[category], rle) for (_, category), rles in coco.shapes.items()
            for rle in rles]  # fmt: skip


def _read_labelme(path: Path, content: dict, image: Path, size: Size) -> Shapes:
    stated, shapes = (content.get("imageHeight"), content.get("imageWidth")), []
    stated = stated if all(type(side) is int for side in stated) else _shown_size(image, size)
    check_pixels(f"{path}", stated)
    named = str(content.get("imagePath") or image.name).replace("\\", "/").rsplit("/", 1)[-1]
    if plain(Path(named).stem) != plain(image.stem):
        warn_once(_LOG, f"{path}: was drawn on {named}, and is taken for {image.name}")
    for number, shape in enumerate(content["shapes"]):
        kind, points = shape.get("shape_type") or "polygon", shape["points"]
        where = f"{path}: shape {number} ({shape['label']})"
        if kind == "polygon":
            rle = rle_of_polygons([_corners(where, points)], stated)
        elif kind == "circle":
            (x, y), edge = points
            radius = hypot(edge[0] - x, edge[1] - y)
            rle = rle_of_polygons([_ellipse(where, x, y, radius, radius)], stated)
        elif kind == "mask":
            data = io.BytesIO(base64.b64decode(shape["mask"]))
            with Image.open(data, formats=("PNG",)) as picture:
                check_pixels(where, picture.size[::-1])
                part = (np.array(picture) != 0).astype(np.uint8)
            rle = _placed(where, part, (int(points[0][0]), int(points[0][1])), stated)
        else:
            raise _no_pixels(where, kind)
        shapes.append((shape["label"], rle))
    return shapes


def _read_cvat(path: Path, image: Path, size: Size) -> Shapes:
    root = ElementTree.fromstring(read_text(path))
    entries = root.findall("image")
    if root.tag != "annotations" or not entries:
        fault = f"no images in <{root.tag}>"
        raise DataError(f"{path}: {fault}; export it from CVAT as 'CVAT for images 1.1'")
    entry = entries[_entry_of(path, image, [item.attrib["name"] for item in entries])]
    stated, shapes = (int(entry.attrib["height"]), int(entry.attrib["width"])), []
    check_pixels(f"{path}: {image.name}", stated)
    for number, shape in enumerate(entry):
        values = shape.attrib
        where = f"{path}: {image.name}, shape {number} ({values.get('label')})"
        if shape.tag == "tag":  # says something of the image, and marks nothing
            continue
        if shape.tag == "polygon":
            pairs = [pair.split(",") for pair in values["points"].split(";")]
            points = [[float(value) for value in pair] for pair in pairs]
            rle = rle_of_polygons([_corners(where, points)], stated)
        elif shape.tag == "ellipse":
            numbers = [float(values.get(key, 0)) for key in ("cx", "cy", "rx", "ry", "rotation")]
            rle = rle_of_polygons([_ellipse(where, *numbers)], stated)
        elif shape.tag == "mask":
            left, top, width, height = (int(values[k]) for k in ("left", "top", "width", "height"))
            runs = [int(run) for run in values["rle"].split(",")]  # row after row, of a box
            if min(runs) < 0 or sum(runs) != width * height or width * height > np.prod(stated):
                fault = f"run lengths that do not fill its box of {height} x {width} pixels (h x w)"
                raise DataError(f"{where}: {fault}; export it again")
            part = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(height, width)
            rle = _placed(where, part, (left, top), stated)
        else:
            raise _no_pixels(where, shape.tag)
        shapes.append((values["label"], rle))
    return shapes


def _read_yolo(path: Path, image: Path, size: Size) -> Shapes:
    (height, width), shapes = _shown_size(image, size), []
    names = _yolo_names(path)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        where, words = f"{path}: line {number}", line.split()
        if not words:
            continue
        if len(words) == 5:
            raise _no_pixels(where, "box")
        try:
            label, shares = int(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError:
            label, shares = -1, np.empty(0)
        inside = len(shares) and np.isfinite(shares).all() and abs(shares - 0.5).max() <= 0.55
        if label < 0 or len(shares) < 6 or len(shares) % 2 or not inside:
            expected = "a class number and three or more pairs x y, shares of width and height"
            raise DataError(f"{where}: {line!r:.80}, expected {expected} (YOLO segmentation)")
        if names and label not in names:
            raise DataError(f"{where}: class {label}, but the names go to {max(names)}; add it")
        points = (shares.reshape(-1, 2) * (width, height)).tolist()
        rle = rle_of_polygons([_corners(where, points)], (height, width))
        shapes.append((names.get(label, f"class_{label}"), rle))
    return shapes


def _yolo_names(path: Path) -> dict[int, str]:
    """Names of YOLO's classes, from the nearest file beside its labels or above; {} without one."""
    for folder in list(path.absolute().parents)[:_FOLDERS]:
        for file in (folder / name for name in _NAMES):
            if not file.is_file():
                continue
            lines = read_text(file)
            if file.suffix not in (".yaml", ".yml"):
                return dict(enumerate(line.strip() for line in lines.splitlines()))
            try:
                names = yaml.safe_load(lines)["names"]
                pairs = enumerate(names) if isinstance(names, list) else names.items()
                return {int(number): str(name) for number, name in pairs}
            except (*BROKEN, yaml.YAMLError) as error:
                raise DataError(f"{file}: no list 'names' of YOLO's classes; add it") from error
    return {}


def _corners(where: str, points: Sequence[Sequence[float]]) -> np.ndarray:
    """Corners of a polygon [[x, y], ...]. Raises DataError, with `where`, as polygon_corners."""
    try:
        return polygon_corners([value for point in points for value in point])
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _ellipse(
    where: str, x: float, y: float, across: float, along: float, degrees: float = 0
) -> np.ndarray:
    """Corners of an ellipse by its centre and radii, pixels, turned clockwise."""
    count = min(max(16, ceil(2 * pi * max(across, along))), 10_000)
    turn, points = radians(degrees), []
    for angle in (2 * pi * number / count for number in range(count)):
        right, down = across * cos(angle), along * sin(angle)
        points.append([x + right * cos(turn) - down * sin(turn),
                       y + right * sin(turn) + down * cos(turn)])  # fmt: skip
    return _corners(where, points)


def _placed(where: str, part: np.ndarray, corner: tuple[int, int], size: Size) -> Rle:
    """Run lengths of a part of a mask at its corner (x, y). Raises DataError where it lies outside
    of the image."""
    (height, width), (left, top) = part.shape, corner
    if min(corner) < 0 or top + height > size[0] or left + width > size[1]:
        fault = f"a mask of {height} x {width} at ({left}, {top}) (x, y) in an image of"
        raise DataError(f"{where}: {fault} {size[0]} x {size[1]} pixels (h x w); export it again")
    return rle_of_part(part, corner, size)


def _no_pixels(where: str, kind: str) -> DataError:
    fault = f"a {kind} does not tell which pixels are defect"
    return DataError(f"{where}: {fault}; draw polygons or masks in its place")


_FORMATS = {".json": _read_json, ".xml": _read_cvat, ".txt": _read_yolo}
