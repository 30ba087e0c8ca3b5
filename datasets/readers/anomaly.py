"""Anomaly detection data: normal training images, and test images with masks of their defects."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.episodes import derive_seed
from datasets.masks import read_mask
from datasets.orientation import turned_back
from utils.errors import DataError
from utils.warn_once import warn_once

_LOG = logging.getLogger(__name__)
NORMAL = "good"  # what the data sets call an image without defect


@dataclass(frozen=True)
class AnomalyImage:
    """A test image; its defect's kind is "good", and its mask None, where it is normal."""

    image: Path
    defect: str
    mask: Path | None

    @property
    def is_anomalous(self) -> bool:
        """Whether the image has a defect."""
        return self.defect != NORMAL


@dataclass(frozen=True)
class AnomalyObject:
    """The files of one object: normal training images and test images, each sorted, none empty."""

    name: str
    normal: list[Path]
    test: list[AnomalyImage]

    def files(self) -> list[Path]:
        """All images and masks."""
        pairs = [(item.image, item.mask) for item in self.test]
        return [*self.normal, *(path for pair in pairs for path in pair if path)]


def read_target(item: AnomalyImage, size: tuple[int, int]) -> np.ndarray:
    """What is abnormal in an image of size (h, w), uint8 (h, w) in {0, 1}; zeros if it is normal.

    A warning names a mask that marks nothing.
    """
    if item.mask is None:
        return np.zeros(size, np.uint8)
    mask = turned_back(read_mask(item.mask), item.image, item.mask)
    if not mask.any():
        doubt = f"its image is one of {item.defect}; mend the mask"
        warn_once(_LOG, f"{item.mask} marks nothing, but {doubt}")
    return mask


def draw_normal(
    images: Sequence[Path], name: str, shot: int, seed: int, key: str = "DATASET.shot"
) -> list[Path]:
    """`shot` different normal images of an object, drawn from the seed and its name alone.

    A larger shot starts with the images of a smaller one. Raises DataError where there are fewer
    images; it names `key`, the setting that holds shot.
    """
    if len(images) < shot:
        remedy = f"set it to at most {len(images)}"
        raise DataError(f"{name} has {len(images)} normal images, but {key} is {shot}; {remedy}")
    order = sorted(images)
    random.Random(derive_seed(seed, zlib.crc32(name.encode()))).shuffle(order)
    return order[:shot]
