"""Open domain: <root>/<object>/support/{image,mask}, query/image and, to measure, query/true_label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.files import ANY_PATH_KEY, match_masks, missing_object, pair_masks, some_images
from datasets.images import read_labels, read_mask
from utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class OpenDomainObject:
    """The files of one object to segment.

    supports: (image, mask) paths, sorted by image.  queries: image paths, sorted.
    true_labels: mask path by the file name of the query (queries[i].name), for the queries that have one.
    """

    name: str
    supports: list[tuple[Path, Path]]
    queries: list[Path]
    true_labels: dict[str, Path]


def read_open_domain(root: str | Path, object: str, key: str = ANY_PATH_KEY) -> OpenDomainObject:
    """Finds and matches the files of one object; pixels are read later.

    The mask of NAME.jpg is NAME_mask or NAME with any image suffix. key: the setting that holds root, named in errors.
    Raises DataError where folders or images are missing, a support has no mask, or a mask is not of its image's size.
    """
    folder = Path(root) / object
    if not folder.is_dir():
        raise missing_object(Path(root), [folder], f"DATASET.open_domain_test_object and {key}")
    supports = pair_masks(some_images(folder / "support" / "image"), folder / "support" / "mask")
    queries = some_images(folder / "query" / "image")
    labels = match_masks(queries, folder / "query" / "true_label")
    return OpenDomainObject(object, supports, queries, {query.name: label for query, label in labels.items()})


def support_mask(path: str | Path, category: int, category_num: int) -> np.ndarray:
    """Mask of one category, uint8 (h, w) in {0, 1}.

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
