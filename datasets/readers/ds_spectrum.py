"""Defect Spectrum: image/ and mask/ per object, flat or a folder per defect; masks of class values.

The tree may be the one that is downloaded (DS-MVTec/bottle, DS-VISION/Ring, DS-DAGM,
DS-Cotton-Fabric) or one folder per object with the names of the published splits (bottle,
Ring_VISION, DS-DAGM, DS-Cotton-Fabric).
"""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

import numpy as np

from datasets import folders
from datasets.folders import ANY_PATH_KEY
from datasets.masks import read_labels
from datasets.orientation import turned_back
from datasets.rle import rle_encode
from datasets.samples import Sample
from utils.errors import DataError
from utils.warn_once import warn_once

kind = "episodes"
_LOG = logging.getLogger(__name__)
_NORMAL = "good"  # folder of images without defect
_COLOURED = ("rbg_mask", "rgb_mask")  # folders of the download that show the masks in colours


@folders.named_files()
def read_object(root: Path, object: str, key: str = ANY_PATH_KEY) -> tuple[list[Sample], list[str]]:
    """Samples of one object, sorted by (image, category), and notes on what was left out.

    Every value above 0 in a mask is a sample of that category. object: its name in the published
    splits. Raises DataError where the object or a mask is missing, or a mask has another size.
    """
    folder = _object_folder(root, object, key)
    pairs, samples, black = _pairs(folder), [], 0
    for image, mask in pairs:
        labels = turned_back(read_labels(mask), image, mask)
        categories = [int(value) for value in np.unique(labels) if value > 0]
        black += not categories
        relative = image.relative_to(root).as_posix()
        for category in categories:
            rle = rle_encode(labels == category)
            samples.append(Sample(relative, object, category, str(category), rle))
    expected = "images are read from image/ and image/DEFECT/, masks from mask/ and mask/DEFECT/"
    read = [path for pair in pairs for path in pair]
    folders.warn_unread(folder, read, expected, masks=["mask"], silent=[_NORMAL, *_COLOURED])
    values = {sample.category for sample in samples}
    if 255 in values and len(values) > 1 and min(values) < 32:
        fact = f"its masks hold class 255 beside classes such as {min(values)}"
        doubt = "255 stands for 'not sure', or for any defect, in many tools"
        warn_once(_LOG, f"{folder}: {fact}; {doubt}; is it a class of its own?")
    notes = [f"{folder}: {black} of {len(pairs)} masks are black and left out"] if black else []
    return samples, notes


@folders.named_files()
def source_files(root: Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Images and masks of one object. Raises DataError as read_object."""
    return [path for pair in _pairs(_object_folder(root, object, key)) for path in pair]


@folders.named_files()
def normal_images(root: Path, object: str, key: str = ANY_PATH_KEY) -> list[Path]:
    """Images in image/good/ of one object, sorted; none without that folder."""
    folder = _object_folder(root, object, key) / "image" / _NORMAL
    return folders.list_images(folder) if folder.is_dir() else []


def has_object(root: Path, object: str) -> bool:
    """Whether the root holds a folder for the object."""
    return any(folder.is_dir() for folder in _candidates(root, object))


def _candidates(root: Path, name: str) -> list[Path]:
    group = "DS-VISION" if name.endswith("_VISION") else "DS-MVTec"
    return [root / name, root / group / name.removesuffix("_VISION")]


def _object_folder(root: Path, name: str, key: str) -> Path:
    candidates = _candidates(root, name)
    there = [folder for folder in candidates if folder.is_dir()]
    if not there:
        raise folders.missing_object(root, candidates, key, ("", "DS-MVTec", "DS-VISION"))
    if len(there) > 1:
        warn_once(_LOG, f"{name} is read from {there[0]}; {there[1]} is there, too, and left out")
    return there[0]


def _pairs(folder: Path) -> list[tuple[Path, Path]]:
    """(image, mask) of every image, sorted by image; each has a mask of its size."""
    images, masks = folder / "image", folder / "mask"
    for place in (images, masks):
        if not place.is_dir():
            expected = "an object of Defect Spectrum has image/ and mask/"
            raise DataError(f"{place}: no such folder; {expected}")
    folders.refuse_other_spelling(images, _NORMAL)
    places = ["", *(path.name for path in folders.subfolders(images) if path.name != _NORMAL)]
    pairs = (folders.pair_masks(folders.list_images(images / p), masks / p) for p in places)
    return list(chain(*pairs))
