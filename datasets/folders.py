"""Which files a data set's folders hold, which mask belongs to which image, and what lies there and is not read."""

from __future__ import annotations

import codecs
import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from datasets.image_faults import foreign
from datasets.images import exif_orientation, image_size
from datasets.orientation import STORED, orientations_of_mask
from utils.errors import DataError
from utils.warn_once import warn_once

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
OTHER_SUFFIXES = (
    ".avif",
    ".gif",
    ".heic",
    ".jfif",
    ".jp2",
    ".pgm",
    ".ppm",
    ".webp",
)  # of images that are not listed
ANY_PATH_KEY = "TRAIN.dataset_path or TEST.dataset_path"
# what network drives, zip programs and systems leave beside the data
_SYSTEM = {
    *(
        "@eadir",
        "@recycle",
        "@tmp",
        "#recycle",
        "#snapshot",
        "__macosx",
        "$recycle.bin",
        "system volume information",
    ),
    "lost+found",
}
_STRAY = "masks of no image and left out; a mask is called NAME or NAME_mask"
_SUFFIX = f"left out for their suffix; save images as one of {', '.join(IMAGE_SUFFIXES)}"
_LOG = logging.getLogger(__name__)


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
    """Image files of a folder by their suffix in any case, sorted by name; hidden files are left out. Warns of what
    seem to be masks among images."""
    images = sorted(p for p in folder.iterdir() if _suffix_in(p, IMAGE_SUFFIXES) and not p.is_dir())
    names = {path.stem for path in images}
    masks = [path.name for path in images if path.stem.removesuffix("_mask") in names - {path.stem}]
    if masks:
        warn_once(_LOG, f"{folder}: {len(masks)} files, such as {masks[0]}, have the names of masks of others there, "
                        "but are read as these are; keep masks in a folder of their own")  # fmt: skip
    return images


def some_images(folder: Path) -> list[Path]:
    """Images of a folder as list_images gives them. Raises DataError where the folder or an image is missing."""
    images = list_images(folder) if folder.is_dir() else []
    if not images:
        alike = [
            p.name
            for p in subfolders(folder.parent)
            if _plain(p.name).rstrip("s") == _plain(folder.name)
        ]
        hint = (
            f"; {alike[0]}/ is there, rename it to {folder.name}/"
            if alike and not folder.is_dir()
            else ""
        )
        others = sorted(
            p.name
            for p in (folder.iterdir() if folder.is_dir() else ())
            if _suffix_in(p, OTHER_SUFFIXES)
        )
        hint = f"; {others[0]} is there: save it as PNG" if others else hint
        raise DataError(
            f"{folder}: no images; put at least one there ({', '.join(IMAGE_SUFFIXES)}){hint}"
        )
    return images


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones and those that systems make; none where it is missing."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _of_the_system(p.name))


def refuse_other_spelling(folder: Path, *names: str) -> None:
    """Raises DataError where a folder holds one whose name differs from one of `names` only in case or Unicode form: it
    would be taken for something else."""
    for path in subfolders(folder):
        for name in names:
            if path.name != name and _plain(path.name) == _plain(name):
                raise DataError(f"{path}: expected {name}/ in this spelling; rename it")


def tell_unread(
    root: Path,
    read: Iterable[Path],
    expected: str,
    *,
    masks: Sequence[str] = (),
    silent: Sequence[str] = (),
) -> None:
    """Warn of the images below a folder that were not read, a line for each folder that holds some.

    Args:
        root: of what was read, such as an object's folder.
        read: images and masks that were.
        expected: where images are read from, for people.
        masks: names of folders of masks.
        silent: names of folders, at any depth, of which nothing is expected to be read.
    """
    real = cache(os.path.realpath)  # of folders; the files in them may be links
    known, left, seen = {(real(path.parent), path.name) for path in read}, defaultdict(list), set()
    for place, folders, names in os.walk(root, followlinks=True):
        if real(place) in seen:  # by another link, or round in a circle
            folders.clear()
            continue
        seen.add(real(place))
        folders[:] = sorted(
            name for name in folders if not _of_the_system(name) and name not in silent
        )
        is_mask = not set(masks).isdisjoint(Path(place).relative_to(root).parts)
        unread = _STRAY if is_mask else f"not read; {expected}"
        for path in (Path(place, name) for name in names):
            if (
                _suffix_in(path, IMAGE_SUFFIXES + OTHER_SUFFIXES)
                and (real(place), path.name) not in known
            ):
                left[place, _SUFFIX if _suffix_in(path, OTHER_SUFFIXES) else unread].append(path)
    for (folder, why), paths in left.items():
        warn_once(_LOG, f"{folder}: {len(paths)} files, such as {min(paths).name}, are {why}")


def match_masks(images: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """The mask in folder of each image that has one: NAME_mask or NAME, with any image suffix; where there is none of
    exactly that name, one that differs only in case, Unicode form or %20 for blanks.

    Raises DataError where two files claim to be the mask of one image, one file is the mask of two images, or an
    image and its mask differ in size.
    """
    exact: dict[str, list[Path]] = defaultdict(list)
    alike: dict[str, list[Path]] = defaultdict(list)
    for mask in list_images(folder) if folder.is_dir() else []:
        exact[mask.stem].append(mask)
        alike[_plain(mask.stem)].append(mask)
    matches: dict[Path, Path] = {}
    owners: dict[Path, Path] = {}
    for image in images:
        names = (f"{image.stem}_mask", image.stem)
        found = [m for name in names for m in exact[name]] or [
            m for name in names for m in alike[_plain(name)]
        ]
        if len(found) > 1:
            raise DataError(f"{image} has two masks, {found[0]} and {found[1]}; keep one of them")
        if not found:
            continue
        if (other := owners.setdefault(found[0], image)) != image:
            raise DataError(
                f"{found[0]} is the mask of two images, {other} and {image}; give each a name of its own"
            )
        check_same_size(image, found[0])
        matches[image] = found[0]
    return matches


def pair_masks(images: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """(image, mask) of every image. Raises DataError for an image without a mask in folder, and as match_masks does."""
    masks = match_masks(images, folder)
    for image in images:
        if image not in masks:
            stems = (image.stem, f"{image.stem}_mask")
            others = [
                p.name
                for p in (folder.iterdir() if folder.is_dir() else ())
                if p.stem in stems and p.suffix
            ]
            hint = f" ({others[0]} is there: save it as PNG)" if others else ""
            raise DataError(
                f"{image} has no mask; expected {folder / image.stem}_mask.png or {image.stem}.png there{hint}"
            )
    return [(image, masks[image]) for image in images]


class ListedFiles:
    """Files below a folder by the names that an annotation file or a table gives them.

    A file that is not there under its name is looked for under other spellings of it: backslashes, %20 for blanks,
    case, Unicode form, with or without the folders before it, unless that file has another of the names.

    Args:
        folder: that the names start from.
        names: all of them, as listed.

    Attributes:
        respelt: (name as listed, file that was found for it).
    """

    def __init__(self, folder: Path, names: Iterable[str] = ()) -> None:
        self.folder, self.respelt = folder, []
        self._named = {os.path.normpath(folder / name) for name in names}
        self._inside: dict[Path, dict[str, list[Path]]] = {}

    def find(self, name: str) -> Path:
        """The file of a name; folder / name where there is none."""
        plain = self.folder / name
        if not os.path.exists(plain):  # also: a name that the system refuses
            slashes = unquote(name).replace("\\", "/")
            parts = [part for part in slashes.split("/") if part not in ("", ".")]
            ends = [] if ".." in parts else [parts[number:] for number in range(len(parts))]
            for way in [*ends, ["images", *parts[-1:]]] if ends else []:
                found = self._walk(way)
                if found is not None and (
                    way is ends[0] or os.path.normpath(found) not in self._named
                ):
                    self.respelt.append((name, found))
                    return found
        return plain

    def tell(self, source: Path) -> None:
        """Warn of the names in `source` that were found under another spelling."""
        if self.respelt:
            name, found = self.respelt[0]
            warn_once(
                _LOG,
                f"{source}: {len(self.respelt)} files are there under another spelling than listed, such "
                f"as {name!r:.200}, for which {found} is read",
            )

    def _walk(self, parts: Sequence[str]) -> Path | None:
        place = self.folder
        for part in parts:
            if place not in self._inside:
                inside: dict[str, list[Path]] = defaultdict(list)
                for path in place.iterdir() if place.is_dir() else ():
                    inside[_plain(path.name)].append(path)
                self._inside[place] = inside
            found = self._inside[place].get(_plain(part), [])
            if len(found) != 1:
                return None
            place = found[0]
        return place if parts and place.is_file() else None


def missing_object(
    root: Path, tried: Sequence[Path], key: str, parents: Sequence[str] = ("",)
) -> DataError:
    """The error for an object that lies in none of the folders tried; it lists what the parents below root hold."""
    if not root.is_dir():
        return DataError(f"{root}: no such folder; set {key} to the root of the data set")
    folders = [
        p
        for parent in parents
        if (root / parent).is_dir()
        for p in (root / parent).iterdir()
        if p.is_dir()
    ]
    there = ", ".join(sorted(p.relative_to(root).as_posix() for p in folders)) or "no folders"
    wanted = " or ".join(str(path) for path in tried)
    alike = [p.name for p in folders if _plain(p.name) in {_plain(path.name) for path in tried}]
    hint = f"; {alike[0]!r} is there in another spelling (case or Unicode form)" if alike else ""
    return DataError(
        f"no folder {wanted}; check the object's name and {key} ({root} holds: {there}){hint}"
    )


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
    return f"{height} x {width} (h x w)" + (
        f" with EXIF orientation {turn}" if turn != STORED else ""
    )


def _suffix_in(path: Path, suffixes: Sequence[str]) -> bool:
    return path.suffix.lower() in suffixes and not path.name.startswith(".")


def _of_the_system(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM


def _plain(name: str) -> str:
    """What names have in common that people read as the same."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path) -> str:
    """Text of a file in UTF-8, without a byte order mark.

    Raises:
        DataError: it is in another encoding, or a web page or an archive under the file's name.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if other := foreign(content[:64]):
        raise DataError(f"{path}: not the file meant, but {other}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.startswith(_UTF16)
        found = "but UTF-16" if wide else f"(byte 0x{content[error.start]:02x} at {error.start})"
        encoding = "-f UTF-16" if wide else "-f WINDOWS-1252, or -f GB18030 for Chinese,"
        raise DataError(
            f"{path}: is not UTF-8 {found}; save it as UTF-8: iconv {encoding} -t UTF-8 {path.name}"
        ) from error
