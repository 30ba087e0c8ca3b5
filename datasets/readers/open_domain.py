"""Open domain: <root>/<object>/support/{image,mask} or, for several types of defect, support/<type>/{image,mask};
query/image and, to measure, query/true_label; support/good holds images without defect."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.folders import (
    ANY_PATH_KEY,
    list_images,
    match_masks,
    missing_object,
    named_files,
    pair_masks,
    refuse_other_spelling,
    some_images,
    subfolders,
    tell_unread,
)
from datasets.masks import read_labels, read_mask
from utils.errors import ConfigError, DataError
from utils.warn_once import warn_once

NORMAL = "good"  # folder of support images without defect
_LOG = logging.getLogger(__name__)
RESERVED = (NORMAL, "image", "mask")  # folders of support that are no types


@dataclass(frozen=True)
class OpenDomainObject:
    """The files of one object to segment.

    supports: (image, mask) paths of each type of defect, sorted by image; the type of an object that has but one is "".
    normal: images without defect.  queries: image paths, sorted.
    true_labels: by type, mask path by the file name of the query (queries[i].name), for the queries that have one.
    """

    name: str
    supports: dict[str, list[tuple[Path, Path]]]
    normal: list[Path]
    queries: list[Path]
    true_labels: dict[str, dict[str, Path]]

    def class_name(self, kind: str) -> str:
        """A type of defect, for people: object/type, or the object alone."""
        return f"{self.name}/{kind}" if kind else self.name


@named_files()
def read_open_domain(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> OpenDomainObject:
    """Finds and matches the files of one object; pixels are read later.

    The mask of NAME.jpg is NAME_mask or NAME with any image suffix. key: the setting that holds root, named in errors.
    Raises DataError where folders or images are missing, a support has no mask, or a mask is not of its image's size.
    """
    folder = Path(root) / object
    if not folder.is_dir():
        raise missing_object(Path(root), [folder], f"DATASET.open_domain_test_object and {key}")
    support, labels = folder / "support", folder / "query" / "true_label"
    refuse_other_spelling(folder, "support", "query")
    refuse_other_spelling(support, NORMAL)  # it would be a type of defect
    refuse_other_spelling(folder / "query", "true_label")
    kinds = _kinds(support)
    refuse_other_spelling(labels, *kinds)
    supports = {
        kind: pair_masks(some_images(support / kind / "image"), support / kind / "mask")
        for kind in kinds or [""]
    }
    queries = some_images(folder / "query" / "image")
    if kinds and labels.is_dir() and (flat := list_images(labels)):
        raise DataError(
            f"{flat[0]} tells no type; put true labels into {labels}/TYPE, one of {', '.join(kinds)}"
        )
    known = {kind: match_masks(queries, labels / kind) for kind in supports}
    true_labels = {kind: {q.name: m for q, m in found.items()} for kind, found in known.items()}
    normal = _normal(support / NORMAL)
    pairs = [path for files in supports.values() for pair in files for path in pair]
    read = [
        *pairs,
        *normal,
        *queries,
        *(path for found in known.values() for path in found.values()),
    ]
    types = "support/TYPE/image" if kinds else "support/image"
    expected = f"images are read from {types}, support/{NORMAL} and query/image themselves, masks beside image/"
    tell_unread(
        folder,
        read,
        f"{expected} and true labels from query/true_label",
        masks=["mask", "true_label"],
    )
    return OpenDomainObject(object, supports, normal, queries, true_labels)


def _kinds(support: Path) -> list[str]:
    """Types of defect, one folder each, sorted; none where the supports lie in support/image itself. A folder of
    another content is no type, and named in a warning."""
    inside = support.iterdir() if support.is_dir() else []
    folders = sorted(
        p for p in inside if p.is_dir() and p.name not in RESERVED and not p.name.startswith(".")
    )
    kinds = [p.name for p in folders if (p / "image").is_dir() or (p / "mask").is_dir()]
    if (support / "image").is_dir():
        if kinds:
            raise DataError(
                f"{support} has image/ and the types {', '.join(kinds)}; keep supports in one of the two layouts"
            )
        return []
    for folder in folders:
        if folder.name not in kinds:
            found = "".join(f", but {p.name}/" for p in subfolders(folder)[:1])
            warn_once(_LOG, f"{folder} is no type of defect: it has no image/ and mask/{found}")
    return kinds


def _normal(folder: Path) -> list[Path]:
    """Images of a folder and of image/ in it, of which either may be missing; no folder, no images."""
    if not folder.is_dir():
        return []
    inner = folder / "image"
    return (list_images(inner) if inner.is_dir() else []) + list_images(folder) or some_images(
        folder
    )


def category_mask(path: str | Path, category: int, category_num: int) -> np.ndarray:
    """Mask of one category in the mask file of a support or in a true label, uint8 (h, w) in {0, 1}.

    category_num 1: whatever is not 0. Above: the pixels of value category + 1, category counted from 0.
    Raises ConfigError for a category out of range, DataError for values that stand for no category.
    """
    if not 0 <= category < category_num:
        raise ConfigError(
            f"DATASET.open_domain_specific_defect_category is {category}; expected 0..{category_num - 1}, "
            f"since DATASET.open_domain_object_category_num is {category_num}"
        )
    if category_num == 1:
        return read_mask(path)
    values = read_labels(path)
    if values.max() > category_num:
        raise DataError(
            f"{path}: value {values.max()}, but DATASET.open_domain_object_category_num is {category_num}: "
            f"expected 0 for background and 1..{category_num} for categories 0..{category_num - 1}"
        )
    return (values == category + 1).astype(np.uint8)
