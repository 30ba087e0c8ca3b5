"""Which files a data set's folders hold, and which mask belongs to which image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from datasets.images import exif_orientation, image_size
from datasets.orientation import STORED, orientations_of_mask
from utils.errors import DataError
from utils.notices import warn_once

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
OTHER_SUFFIXES = (".avif", ".gif", ".heic", ".jfif", ".jp2", ".pgm", ".ppm", ".webp")  # of images that are not listed
_LOG = logging.getLogger(__name__)
ANY_PATH_KEY = "TRAIN.dataset_path or TEST.dataset_path"


@contextmanager
def named_files() -> Iterator[None]:
    """Turns the system's refusal of a file or folder into a DataError that names it; for what reads a data set."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); see to its permissions and whether it is whole"
        ) from error


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder by their suffix in any case, sorted by name. Hidden files are left out, and images of
    other suffixes with a warning."""
    shown = [p for p in folder.iterdir() if not p.name.startswith(".")]
    _tell(folder, [p for p in shown if p.suffix.lower() in OTHER_SUFFIXES],
          f"left out for their suffix; save images as one of {', '.join(IMAGE_SUFFIXES)}")  # fmt: skip
    return sorted(p for p in shown if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir())


def _tell(folder: Path, files: Sequence[Path], what: str) -> None:
    if files:
        warn_once(_LOG, f"{folder}: {len(files)} files, such as {min(files).name}, are {what}")


def some_images(folder: Path) -> list[Path]:
    """Images of a folder as list_images gives them. Raises DataError where the folder or an image is missing."""
    images = list_images(folder) if folder.is_dir() else []
    if not images:
        raise DataError(f"{folder}: no images; put at least one there ({', '.join(IMAGE_SUFFIXES)})")
    return images


def match_masks(images: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """The mask in folder of each image that has one: NAME_mask or NAME, with any image suffix; a warning tells how many
    belong to none.

    Raises DataError where two files claim to be the mask of one image, and where the two differ in size.
    """
    by_stem: dict[str, list[Path]] = {}
    for mask in list_images(folder) if folder.is_dir() else []:
        by_stem.setdefault(mask.stem, []).append(mask)
    matches = {}
    for image in images:
        found = by_stem.get(f"{image.stem}_mask", []) + by_stem.get(image.stem, [])
        if len(found) > 1:
            raise DataError(f"{image} has two masks, {found[0]} and {found[1]}; keep one of them")
        if found:
            check_same_size(image, found[0])
            matches[image] = found[0]
    known = set(matches.values())
    strays = [mask for found in by_stem.values() for mask in found if mask not in known]
    _tell(folder, strays, "masks of no image and left out; a mask is called NAME or NAME_mask")
    return matches


def pair_masks(images: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """(image, mask) of every image. Raises DataError for an image without a mask in folder, and as match_masks does."""
    masks = match_masks(images, folder)
    for image in images:
        if image not in masks:
            raise DataError(f"{image} has no mask; expected {folder / image.stem}_mask.png or {image.stem}.png there")
    return [(image, masks[image]) for image in images]


def missing_object(root: Path, tried: Sequence[Path], key: str, parents: Sequence[str] = ("",)) -> DataError:
    """The error for an object that lies in none of the folders tried; it lists what the parents below root hold."""
    if not root.is_dir():
        return DataError(f"{root}: no such folder; set {key} to the root of the data set")
    folders = [p for parent in parents if (root / parent).is_dir() for p in (root / parent).iterdir() if p.is_dir()]
    there = ", ".join(sorted(p.relative_to(root).as_posix() for p in folders)) or "no folders"
    wanted = " or ".join(str(path) for path in tried)
    return DataError(f"no folder {wanted}; check the object's name and {key} ({root} holds: {there})")


def check_same_size(image: Path, mask: Path) -> None:
    """Raises DataError where the headers of an image and its mask say different sizes, turned by EXIF or not."""
    if orientations_of_mask(image, mask, image_size(mask)) is None:
        raise DataError(
            f"{mask} is {_told_size(mask)}, but its image {image} is {_told_size(image)}; "
            "a mask needs the size of its image, as stored or as viewers show both"
        )


def _told_size(path: Path) -> str:
    height, width = image_size(path)
    turn = exif_orientation(path, search=True)
    return f"{height} x {width} (h x w)" + (f" with EXIF orientation {turn}" if turn != STORED else "")
