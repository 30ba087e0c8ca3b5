"""Lists of pictures that a caller in Python gives: paths, PIL images and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from io import IOBase
from typing import Any

import numpy as np
from PIL import Image

from datasets.images import Picture, read_image, shown
from datasets.masks import read_mask
from datasets.orientation import turned_back
from utils.errors import DataError


def several(pictures: Any, name: str) -> Iterable[Any]:
    """The pictures as they are; raises DataError, with `name`, for none or a single one, which
    would be iterated row by row."""
    single = isinstance(pictures, str | bytes | os.PathLike | IOBase | Image.Image)
    single |= isinstance(pictures, np.ndarray) and pictures.ndim in (0, 2, 3)
    if single or not isinstance(pictures, Iterable):
        expected = "expected a list of paths, PIL images or arrays: put [...] around it"
        raise DataError(f"{name} is {shown(pictures)}; {expected}")
    return pictures


def read_supports(
    images: Sequence[Picture], masks: Sequence[Picture | None]
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Images (h, w, 3) uint8 RGB, copied, with their masks (h, w) uint8 {0, 1}, or None.

    Raises DataError where there is no image, an argument is no image or no mask, there are more of
    one than of the other, or a mask has another size than its image.
    """
    images, masks = list(several(images, "images")), list(several(masks, "masks"))
    if len(images) != len(masks) or not images:
        remedy = "give one mask per image, None for an image of the normal surface"
        remedy = remedy if images or masks else "no support image is given; give at least one"
        raise DataError(f"{len(images)} support images and {len(masks)} masks: {remedy}")
    pairs: list[tuple[np.ndarray, np.ndarray | None]] = []
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        # a copy, as the caller may use an array again
        pixels = read_image(image, f"support image {number}").copy()
        name, marked = f"mask {number}", None
        if mask is not None:
            marked = turned_back(read_mask(mask, name), image, mask)
            (height, width), (h, w) = pixels.shape[:2], marked.shape
            if (height, width) != (h, w):
                sizes = f"{h} x {w} pixels (h x w), its image {height} x {width}"
                remedy = "give a mask of the image's size"
                raise DataError(f"{shown(mask, name)} has {sizes}; {remedy}")
        pairs.append((pixels, marked))
    return pairs
