"""Masks of photographs that a viewer turns: annotations refer to the stored pixels, but some tools draw on the turned
image, and some save masks that are to be turned themselves. Where it can be told, such a mask is brought to the stored
pixels of its image."""

from __future__ import annotations

import logging

import numpy as np

from datasets.image_faults import shown
from datasets.images import Picture, exif_orientation, image_size
from utils.errors import DataError
from utils.warn_once import warn_once

_LOG = logging.getLogger(__name__)
STORED = 1  # EXIF orientation of what is shown as it is stored
_SHOWN = {  # by EXIF orientation: the way from the stored pixels to what a viewer shows (EXIF 2.32, 4.6.4)
    1: lambda mask: mask,
    2: np.fliplr,
    3: lambda mask: np.rot90(mask, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda mask: np.rot90(mask, -1),
    7: lambda mask: np.rot90(mask, 2).T,
    8: np.rot90,
}
_BACK = _SHOWN | {6: _SHOWN[8], 8: _SHOWN[6]}  # the other way; all but these two undo themselves
_SWAPPED = (5, 6, 7, 8)  # orientations in which the sides change places


def orientation_of_annotation(image: Picture, size: tuple[int, int]) -> int | None:
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
        if found in (2, 3, 4) or (found in _SWAPPED and stored[0] == stored[1]):
            warn_once(
                _LOG,
                f"{shown(image)}: viewers turn it (EXIF orientation {found}) and its annotation has the same size "
                "either way: taken to refer to the pixels as stored; save images without EXIF orientation to be sure",
            )
        return STORED
    return found if found in _SWAPPED and stored == tuple(size)[::-1] else None


def orientations_of_mask(
    image: Picture, mask: Picture, size: tuple[int, int]
) -> tuple[int, int] | None:
    """How a mask lies to its image, by the headers alone. size: (h, w) of the mask as stored.

    A mask with an EXIF orientation of its own is taken to lie on its image as a viewer shows the two; where that does
    not fit but the stored sizes do, its orientation is left aside.

    Returns:
        Two EXIF orientations: as the first one the stored mask is to be shown, and the second one is to be undone
        then, to get to the stored pixels of the image. None where no size fits. Images that cannot be read: as in
        `orientation_of_annotation`.
    Raises DataError for a mask that cannot be read.
    """
    own = exif_orientation(mask, search=True)
    if own == STORED:
        found = orientation_of_annotation(image, size)
        return None if found is None else (STORED, found)
    try:
        stored = image_size(image)
        found = exif_orientation(image, search=True)
    except DataError:
        return STORED, STORED
    fits_stored = stored == tuple(size)
    if _shown_size(size, own) == _shown_size(stored, found):
        if fits_stored and own != found:
            warn_once(
                _LOG,
                f"{shown(mask)}: viewers turn it by its EXIF orientation {own}, its image by {found}: taken to fit as "
                "both are shown; save masks and images without EXIF orientation to be sure",
            )
        return own, found
    if fits_stored:
        warn_once(
            _LOG,
            f"{shown(mask)}: turned by its EXIF orientation {own}, it does not fit its image, shown by {found}: taken "
            "as it is stored; save masks without EXIF orientation to be sure",
        )
        return STORED, STORED
    return None


def turned_back(mask: np.ndarray, image: Picture, file: Picture | None = None) -> np.ndarray:
    """A mask (h, w) in the frame of its image's stored pixels, contiguous; as it is where it fits none.

    file: where the mask was read from, as stored; None for an annotation that is no image file.
    Raises DataError for a file that cannot be read.
    """
    if file is None:
        ways = STORED, orientation_of_annotation(image, mask.shape)
    else:
        ways = orientations_of_mask(image, file, mask.shape) or (STORED, None)
    own, found = ways
    return np.ascontiguousarray(_BACK[found or STORED](_SHOWN[own](mask)))


def _shown_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    height, width = size
    return (width, height) if orientation in _SWAPPED else (height, width)
