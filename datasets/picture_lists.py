"""Lists of pictures that a caller in Python gives: paths, PIL images and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from io import IOBase
from itertools import zip_longest
from typing import Any

import numpy as np
from PIL import Image

from datasets.images import Picture, read_image, shown
from datasets.masks import read_mask
from datasets.orientation import turned_back
from utils.errors import DataError


def several(pictures: Any, name: str) -> Iterable[Any]:
    """The pictures as they are; `name` is for the error.

    Raises:
        DataError: they are a single picture, which would be iterated row by row, or none.
    """
    single = isinstance(pictures, str | bytes | os.PathLike | IOBase | Image.Image)
    single |= isinstance(pictures, np.ndarray) and pictures.ndim in (0, 2, 3)
    if single or not isinstance(pictures, Iterable):
        raise DataError(
            f"{name} is {shown(pictures)}; expected a list of paths, PIL images or arrays: put "
            "[...] around it"
        )
    return pictures


def read_supports(
    images: Sequence[Picture], masks: Sequence[Picture | None]
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Images (h, w, 3) uint8 RGB, copied, with their masks (h, w) uint8 {0, 1}, or None.

    Raises:
        DataError: there is no image, an argument is no image or no mask, there are more of one than
            of the other, or a mask has another size than its image.
    """
    pairs: list[tuple[np.ndarray, np.ndarray | None]] = []
    missing = object()
    both = zip_longest(several(images, "images"), several(masks, "masks"), fillvalue=missing)
    for number, (image, mask) in enumerate(both):
        if image is missing or mask is missing:
            more, fewer = ("masks", "images") if image is missing else ("images", "masks")
            raise DataError(
                f"there are {number} {fewer}, but more {more}; give one mask per image, None for "
                "an image of the normal surface"
            )
        # a copy, as the caller may use an array again
        pixels = read_image(image, f"support image {number}").copy()
        name, marked = f"mask {number}", None
        if mask is not None:
            marked = turned_back(read_mask(mask, name), image, mask)
            (height, width), (h, w) = pixels.shape[:2], marked.shape
            if (height, width) != (h, w):
                raise DataError(
                    f"{shown(mask, name)} has {h} x {w} pixels (h x w), its image "
                    f"{height} x {width}; give a mask of the image's size"
                )
        pairs.append((pixels, marked))
    if not pairs:
        raise DataError("no support image is given; give at least one")
    return pairs
