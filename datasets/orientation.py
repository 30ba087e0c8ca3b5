"""Masks of photographs that a viewer turns: annotations refer to the stored pixels, but some tools draw on the turned
image. Where the sizes tell, such a mask is turned back."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from datasets.images import exif_orientation, image_size
from utils.errors import DataError
from utils.notices import warn_once

_LOG = logging.getLogger(__name__)
STORED = 1  # EXIF orientation of what is shown as it is stored
_BACK = {  # EXIF orientations that swap the sides: the way from the turned to the stored pixels (EXIF 2.32, 4.6.4)
    5: np.transpose,
    6: np.rot90,
    7: lambda mask: np.rot90(mask, 2).T,
    8: lambda mask: np.rot90(mask, -1),
}


def orientation_of_annotation(image: Path, size: tuple[int, int]) -> int | None:
    """How an annotation of size (h, w) lies to its image, by the headers alone.

    Returns:
        1 where it refers to the stored pixels, the EXIF orientation (5 to 8) where it refers to the turned ones, None
        where it has neither size. An image that cannot be read contradicts nothing: whoever needs its pixels reports
        it, so that one broken image does not stop the reading of an index.
    """
    try:
        stored = image_size(image)
        found = exif_orientation(image, search=stored != tuple(size))
    except DataError:
        return STORED
    if stored == tuple(size):
        if found in (2, 3, 4) or (found in _BACK and stored[0] == stored[1]):
            warn_once(
                _LOG,
                f"{image}: viewers turn it (EXIF orientation {found}) and its annotation has the same size either way: "
                "taken to refer to the pixels as stored; save the image without EXIF orientation to be sure",
            )
        return STORED
    return found if found in _BACK and stored == tuple(size)[::-1] else None


def turned_back(mask: np.ndarray, image: str | Path) -> np.ndarray:
    """A mask (h, w) in the frame of its image's stored pixels, contiguous; as it is where it fits none."""
    how = orientation_of_annotation(Path(image), mask.shape)
    return np.ascontiguousarray(_BACK[how](mask)) if how in _BACK else mask
