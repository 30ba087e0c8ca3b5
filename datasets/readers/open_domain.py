"""Open domain: <root>/<object>/{support,query}, with support/{image,mask} or support/<type>/{...}.

The queries lie in query/image and, to measure, their masks in query/true_label; support/good holds
images without defect. support/mask may hold annotation files, whose labels are the types.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from datasets import folders
from datasets.annotations import read_annotation
from datasets.folders import ANY_PATH_KEY
from datasets.images import image_size
from datasets.masks import read_labels, read_mask
from datasets.orientation import turned_back
from utils.errors import ConfigError, DataError
from utils.warn_once import warn_once

kind = "open_domain"
_NORMAL = "good"  # folder of support images without defect
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenDomainObject:
    """The files of one object to segment; the only type of an object without types is ""."""

    name: str
    # (image, mask or annotation file) of each type, sorted by image
    supports: dict[str, list[tuple[Path, Path]]]
    normal: list[Path]  # images without defect
    queries: list[Path]
    true_labels: dict[str, dict[str, Path]]  # by type: the masks that are there, by query name

    def class_name(self, kind: str) -> str:
        """A type of defect, for people: object/type, or the object alone."""
        return f"{self.name}/{kind}" if kind else self.name


@folders.named_files()
def read_open_domain(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> OpenDomainObject:
    """Finds and matches the files of one object; pixels are read later.

    Raises DataError where folders or images are missing, a support has no mask, or a mask is not of
    its image's size.
    """
    folder = Path(root, object)
    if not folder.is_dir():
        keys = f"DATASET.open_domain_test_object and {key}"
        raise folders.missing_object(Path(root), [folder], keys)
    support, labels = folder / "support", folder / "query" / "true_label"
    folders.refuse_other_spelling(folder, "support", "query")
    folders.refuse_other_spelling(support, _NORMAL)  # it would be a type of defect
    folders.refuse_other_spelling(folder / "query", "true_label")
    types = _types(support)
    folders.refuse_other_spelling(labels, *types)
    supports, unmarked = {}, []
    for name in types or [""]:
        images = folders.some_images(support / name / "image")
        pairs = folders.pair_annotations(images, support / name / "mask")
        found, empty = _by_type(pairs, name)
        supports |= found
        unmarked += empty
    normal, inner = [], support / _NORMAL / "image"
    if inner.parent.is_dir():  # images in it and in image/ below; either may be missing
        normal = folders.list_images(inner) if inner.is_dir() else []
        normal = normal + folders.list_images(inner.parent) or folders.some_images(inner.parent)
    normal = [*normal, *unmarked]
    queries = folders.some_images(folder / "query" / "image")
    if list(supports) != [""] and labels.is_dir() and (flat := folders.list_images(labels)):
        remedy = f"put true labels into {labels}/TYPE, one of {', '.join(supports)}"
        raise DataError(f"{flat[0]} tells no type; {remedy}")
    read, true_labels = [*normal, *queries], {}
    for name, pairs in supports.items():
        masks = folders.match_masks(queries, labels / name)
        true_labels[name] = {query.name: mask for query, mask in masks.items()}
        read += [*chain(*pairs), *masks.values()]
    expected = (
        f"images are read from support/{'TYPE/' if types else ''}image, support/{_NORMAL} and "
        "query/image themselves, masks beside image/ and true labels from query/true_label"
    )
    folders.warn_unread(folder, read, expected, masks=["mask", "true_label"])
    return OpenDomainObject(object, supports, normal, queries, true_labels)


def _types(support: Path) -> list[str]:
    """Types of defect, one folder each, sorted; none where supports lie in support/image itself."""
    inside = sorted(support.iterdir()) if support.is_dir() else []
    others = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    others = [path for path in others if path.name not in (_NORMAL, "image", "mask")]
    types = [p.name for p in others if (p / "image").is_dir() or (p / "mask").is_dir()]
    if (support / "image").is_dir():
        if types:
            remedy = "keep supports in one of the two layouts"
            raise DataError(f"{support} has image/ and the types {', '.join(types)}; {remedy}")
        return []
    for folder in others:
        if folder.name not in types:
            found = "".join(f", but {path.name}/" for path in folders.subfolders(folder)[:1])
            fault = f"is no type of defect: it has no image/ and mask/{found}"
            warn_once(_LOG, f"{folder} {fault}")
    return types


def _by_type(
    pairs: list[tuple[Path, Path]], kind: str
) -> tuple[dict[str, list[tuple[Path, Path]]], list[Path]]:
    """Supports by type of defect, sorted, and images in which an annotation file marks nothing.
    `kind` is the type that their folder names, "" where labels tell."""
    supports, unmarked = defaultdict(list), []
    for image, file in pairs:
        kinds = [kind]
        if file.suffix.lower() in folders.ANNOTATION_SUFFIXES:
            found = read_annotation(file, image, image_size(image), kind)
            kinds = [kind] if kind and found else list(found)
            unmarked += [] if found else [image]
        for name in kinds:
            supports[name].append((image, file))
    if not supports:
        raise DataError(f"{pairs[0][1]}: marks nothing in any support image; mark a defect")
    if "" in supports and len(supports) > 1:
        files, others = supports.pop(""), ", ".join(sorted(supports))
        remedy = "give all supports labels, or none"
        raise DataError(f"{files[0][1]} names no type of defect, but others do: {others}; {remedy}")
    return dict(sorted(supports.items())), unmarked


def support_mask(
    image: Path, file: Path, kind: str, category: int, category_num: int
) -> np.ndarray:
    """Mask (h, w) uint8 {0, 1} of a support of a type of defect, on the stored pixels of its image.

    Raises as category_mask and read_annotation, and ConfigError for the category of an annotation
    file, whose labels are types.
    """
    if file.suffix.lower() not in folders.ANNOTATION_SUFFIXES:
        return turned_back(category_mask(file, category, category_num), image, file)
    if category_num > 1:
        key = "DATASET.open_domain_object_category_num"
        remedy = "which has types by its labels; leave it at 1"
        raise ConfigError(f"{key} is {category_num}, but {file} is an annotation file, {remedy}")
    (mask,) = read_annotation(file, image, image_size(image), kind).values()
    return mask


def category_mask(path: str | Path, category: int, category_num: int) -> np.ndarray:
    """Mask of one category of a support or a true label, uint8 (h, w) in {0, 1}.

    category_num 1: whatever is not 0. Above: the pixels of value category + 1, from category 0 on.
    Raises ConfigError for a category out of range, DataError for values that are no category.
    """
    key = "DATASET.open_domain_object_category_num"
    if not 0 <= category < category_num:
        expected = f"expected 0..{category_num - 1}, since {key} is {category_num}"
        raise ConfigError(f"DATASET.open_domain_specific_defect_category is {category}; {expected}")
    if category_num == 1:
        return read_mask(path)
    values = read_labels(path)
    if values.max() > category_num:
        raise DataError(
            f"{path}: value {values.max()}, but {key} is {category_num}: expected 0 for background "
            f"and 1..{category_num} for categories 0..{category_num - 1}"
        )
    return (values == category + 1).astype(np.uint8)
