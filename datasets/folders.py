"""Which files a data set's folders hold, which mask belongs to which image, what is not read."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from datasets.images import foreign
from datasets.orientation import check_same_size
from utils.errors import DataError
from utils.warn_once import warn_once

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
OTHER_SUFFIXES = (".avif", ".gif", ".heic", ".jfif", ".jp2", ".pgm", ".ppm", ".webp")
ANNOTATION_SUFFIXES = (".json", ".xml", ".txt")  # LabelMe or COCO, CVAT, YOLO
ANY_PATH_KEY = "TRAIN.dataset_path or TEST.dataset_path"
# what network drives, zip programs and systems leave beside the data
_OF_SYSTEMS = {"@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "__macosx", "$recycle.bin"}
_OF_SYSTEMS |= {"system volume information", "lost+found"}
_LOG = logging.getLogger(__name__)


@contextmanager
def named_files() -> Iterator[None]:
    """Turns the system's refusal of a file or folder into a DataError that names it."""
    try:
        yield
    except OSError as error:
        fault = f"cannot be read ({error.strerror}); see to its permissions and whether it is whole"
        raise DataError(f"{error.filename}: {fault}") from error


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder by suffix, sorted, without hidden ones. Warns of masks among them."""
    images = sorted(p for p in folder.iterdir() if _suffix_in(p, IMAGE_SUFFIXES) and not p.is_dir())
    stems = {path.stem for path in images}
    masks = [path.name for path in images if path.stem.removesuffix("_mask") in stems - {path.stem}]
    if masks:
        fault = "have the names of masks, but are read as images; keep masks in another folder"
        warn_once(_LOG, f"{folder}: {len(masks)} files, such as {masks[0]}, {fault}")
    return images


def some_images(folder: Path) -> list[Path]:
    """As list_images. Raises DataError where the folder is missing or has no image."""
    images = list_images(folder) if folder.is_dir() else []
    if not images:
        place = folder if folder.is_dir() else folder.parent
        there = ", ".join(sorted(os.listdir(place))[:9] if place.is_dir() else ()) or "nothing"
        remedy = f"put at least one there ({', '.join(IMAGE_SUFFIXES)}); {place} holds: {there}"
        raise DataError(f"{folder}: no images; {remedy}")
    return images


def images_below(folder: Path, apart: Path | None = None) -> list[Path]:
    """Image files of a folder and those below it, sorted by path, but for those in the folder
    `apart`. Raises OSError for a folder that may not be read."""

    def refuse(error: OSError) -> None:
        raise error

    inner, images = apart and apart.resolve(), []
    for place, _ in _walk(folder, refused=refuse):
        if inner is None or not place.resolve().is_relative_to(inner):
            images += list_images(place)
    return sorted(images)


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden and system ones; [] where it is missing."""
    inside = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in inside if path.is_dir() and not _of_systems(path.name))


def refuse_other_spelling(folder: Path, *names: str) -> None:
    """Raises DataError for a folder whose name is another spelling of one of `names`."""
    for path in subfolders(folder):
        for name in names:
            if path.name != name and plain(path.name) == plain(name):
                raise DataError(f"{path}: expected {name}/ in this spelling; rename it")


def warn_unread(
    root: Path, read: Iterable[Path], expected: str, *, masks: Sequence[str] = (), silent=()
) -> None:
    """Warns of images below a folder that are not among those read, once for each of its folders.

    expected: where images are read from.  masks, silent: folders of masks, and not to be read.
    """
    real = cache(os.path.realpath)  # of folders; the files in them may be links
    known, left = {(real(path.parent), path.name) for path in read}, defaultdict(list)
    suffixes = f"left out for their suffix; save images as one of {', '.join(IMAGE_SUFFIXES)}"
    for folder, names in _walk(root, silent):
        stray = f"not read; {expected}"
        if not set(masks).isdisjoint(folder.relative_to(root).parts):
            stray = "masks of no image and left out; a mask is called NAME or NAME_mask"
        for name in names:
            if (real(folder), name) in known:
                continue
            for some, why in ((OTHER_SUFFIXES, suffixes), (IMAGE_SUFFIXES, stray)):
                if _suffix_in(folder / name, some):
                    left[folder, why].append(name)
    for (folder, why), names in left.items():
        warn_once(_LOG, f"{folder}: {len(names)} files, such as {min(names)}, are {why}")


def match_masks(images: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """The mask in a folder of each image that has one: NAME_mask or NAME, with any image suffix.

    Where no file has exactly that name, one is taken that differs in case, Unicode form or %20.
    Raises DataError for two masks of one image, one of two images, and one of another size.
    """
    exact, alike = defaultdict(list), defaultdict(list)
    for mask in list_images(folder) if folder.is_dir() else []:
        exact[mask.stem].append(mask)
        alike[plain(mask.stem)].append(mask)
    matches, owners = {}, {}
    for image in images:
        names = (f"{image.stem}_mask", image.stem)
        found = [mask for name in names for mask in exact[name]]
        found = found or [mask for name in names for mask in alike[plain(name)]]
        if len(found) > 1:
            raise DataError(f"{image} has two masks, {found[0]} and {found[1]}; keep one of them")
        for mask in found:
            if (other := owners.setdefault(mask, image)) != image:
                remedy = "give each a name of its own"
                raise DataError(f"{mask} is the mask of two images, {other} and {image}; {remedy}")
            check_same_size(image, mask)
            matches[image] = mask
    return matches


def pair_masks(images: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """(image, mask) of every image. Raises DataError for one without a mask; see match_masks."""
    masks = match_masks(images, folder)
    for image in images:
        if image not in masks:
            wanted = f"{folder / image.stem}_mask.png or {image.stem}.png there"
            raise DataError(f"{image} has no mask; expected {wanted}")
    return [(image, masks[image]) for image in images]


def pair_annotations(images: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """(image, file) of every image: its mask, else an annotation file of its name, else the one
    annotation file there that has no image's name. Raises DataError for an image without a file, or
    with several; see match_masks."""
    names, own, shared = {plain(image.stem) for image in images}, defaultdict(list), []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if _suffix_in(path, ANNOTATION_SUFFIXES) and path.name.casefold() != "classes.txt":
            (own[plain(path.stem)] if plain(path.stem) in names else shared).append(path)
    if not own and not shared:
        return pair_masks(images, folder)
    pairs, masks = [], match_masks(images, folder)
    for image in images:
        files = [masks[image]] if image in masks else own[plain(image.stem)] or shared
        if len(files) != 1:
            found = ", ".join(path.name for path in files[:5]) or "none"
            wanted = f"expected one of its name in {folder}, or one for all images"
            raise DataError(f"{image}: which annotation is its own? Found {found}; {wanted}")
        pairs.append((image, files[0]))
    return pairs


def find_listed(folder: Path, names: Iterable[str], source: Path) -> dict[str, Path]:
    """Files below a folder by the names that an annotation file or a table gives them.

    What is not there under its name is looked for under other spellings: backslashes, %20, case,
    Unicode form, with or without folders before it, unless that is another of the names. A warning
    counts those. A name of no file stands for folder / name.  source: what lists the names.
    """
    files = {name: folder / name for name in names}
    missing = [name for name, file in files.items() if not os.path.exists(file)]
    listed, there, respelt = {os.path.normpath(file) for file in files.values()}, {}, []
    for place, inside in _walk(folder) if missing else ():
        for path in (place / name for name in inside):
            there.setdefault(plain(path.relative_to(folder).as_posix()), []).append(path)
    for name in missing:
        parts = [p for p in plain(name).replace("\\", "/").split("/") if p not in ("", ".")]
        ways = [*(parts[start:] for start in range(len(parts))), ["images", *parts[-1:]]]
        for way in ways if parts and ".." not in parts else ():
            found = there.get("/".join(way), [])
            if len(found) == 1 and (way == parts or os.path.normpath(found[0]) not in listed):
                files[name] = found[0]
                respelt.append(name)
                break
    if respelt:
        such = f"{respelt[0]!r:.200}, for which {files[respelt[0]]} is read"
        fault = "files are there under another spelling than listed, such as"
        warn_once(_LOG, f"{source}: {len(respelt)} {fault} {such}")
    return files


def missing_object(
    root: Path, tried: Sequence[Path], key: str, parents: Sequence[str] = ("",)
) -> DataError:
    """The error for an object in none of the folders tried; it lists what the parents hold."""
    if not root.is_dir():
        return DataError(f"{root}: no such folder; set {key} to the root of the data set")
    places = [root / parent for parent in parents if (root / parent).is_dir()]
    folders = [path for place in places for path in place.iterdir() if path.is_dir()]
    there = ", ".join(sorted(p.relative_to(root).as_posix() for p in folders)) or "no folders"
    wanted = {plain(path.name) for path in tried}
    alike = [path.name for path in folders if plain(path.name) in wanted]
    hint = f"; {alike[0]!r} is there in another spelling (case or Unicode form)" if alike else ""
    paths = " or ".join(map(str, tried))
    remedy = f"check the object's name and {key} ({root} holds: {there}){hint}"
    return DataError(f"no folder {paths}; {remedy}")


def plain(name: str) -> str:
    """What names have in common that people read as the same."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, without a byte order mark; DataError for what else it may be."""
    content = path.read_bytes()
    if other := foreign(content[:64]):
        raise DataError(f"{path}: not the file meant, but {other}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"(byte 0x{content[error.start]:02x} at {error.start})"
        encoding = "-f WINDOWS-1252, or -f GB18030 for Chinese,"
        if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
            found, encoding = "but UTF-16", "-f UTF-16"
        remedy = f"save it as UTF-8: iconv {encoding} -t UTF-8 {path.name}"
        raise DataError(f"{path}: is not UTF-8 {found}; {remedy}") from error


def _walk(
    root: Path, silent: Sequence[str] = (), refused: Callable[[OSError], None] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Folders from root on and the names of their files; each once, by whatever links; `refused`
    gets the error of a folder that may not be read."""
    seen = set()
    for place, folders, names in os.walk(root, followlinks=True, onerror=refused):
        if (real := os.path.realpath(place)) in seen:  # by another link, or round in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(n for n in folders if n not in silent and not _of_systems(n))
        yield Path(place), names


def _suffix_in(path: Path, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _of_systems(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _OF_SYSTEMS
