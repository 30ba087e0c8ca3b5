"""The images that a command names, and what their answers are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datasets.folders import IMAGE_SUFFIXES, images_below, named_files, some_images, warn_unread
from tools.open_domain import output_names
from utils.errors import ConfigError, DataError
from utils.output_files import file_name

OWN = ("masks", "scores", "labels", "overlays", "gallery")  # folders below --out


@dataclass(frozen=True)
class Query:
    """An image to segment.

    Attributes:
        path: where it lies.
        file: what tables call it: its path below the folder that the command names.
        name: of its answers, a relative path without suffix.
    """

    path: Path
    file: str
    name: str


@named_files()
def find_queries(given: Sequence[Path], out: Path) -> list[Query]:
    """The images that are given, files and all images below folders, in this order, each once.

    What lies in `out` is none of a folder's. A file that is not there is a query all the same, and
    fails where it is read.

    Raises:
        ConfigError: `out` is one of the folders, or a query is an answer in it.
        DataError: a folder holds no image, or two images would have the same name.
    """
    found: dict[tuple[str, str], tuple[Path, Path]] = {}
    for place in given:
        refuse_own(place, out)
        images = [place]
        if place.is_dir():
            images = listed(place, out) or some_images(place)
            where = f"with the suffixes {', '.join(IMAGE_SUFFIXES)}"
            warn_unread(place, images, f"images are read {where}", silent=[out.name])
        for image in images:
            key = os.path.realpath(image.parent), image.name
            found.setdefault(key, (image, place if place.is_dir() else image.parent))
    pairs = list(found.values())
    files = [image.relative_to(root).as_posix() for image, root in pairs]
    if max(Counter(files).values()) > 1:  # of folders of several days, for instance
        files = [f"{root.resolve().name}/{file}"
                 for (_, root), file in zip(pairs, files, strict=True)]  # fmt: skip
    names = output_names([PurePosixPath(file) for file in files])
    owners: dict[str, Path] = {}
    for (image, _), name in zip(pairs, names, strict=True):
        *above, last = name.split("/")
        other = owners.setdefault("/".join([*above, file_name(last)]), image)
        if other != image:
            remedy = "segment them into folders of their own, or name their common folder alone"
            raise DataError(f"{other} and {image}: their answers would have one name; {remedy}")
    about = zip(pairs, files, names, strict=True)
    return [Query(image, file, name) for (image, _), file, name in about]


def listed(place: Path, out: Path) -> list[Path]:
    """The images below a folder, sorted, but for answers that lie there."""
    return images_below(place, None if place.resolve().is_relative_to(out.resolve()) else out)


def refuse_own(place: Path, out: Path) -> None:
    """Raises ConfigError for a query, or folder of them, that `out` holds or would hold as an
    answer."""
    inner, folder = place.resolve(), out.resolve()
    if inner == folder:
        remedy = f"give a folder of its own, such as {out / 'segmented'}"
        raise ConfigError(f"--out {out} is the folder of the queries; {remedy}")
    if any(inner.is_relative_to(folder / name) for name in OWN):
        raise ConfigError(f"{place} holds answers of this command in --out {out}; give the images")
