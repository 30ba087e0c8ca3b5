"""Masks that were drawn on a photograph as viewers turn it by EXIF, or have an EXIF orientation of
their own: brought to the stored pixels of their images."""

from __future__ import annotations

import logging

import numpy as np

from datasets.images import Picture, exif_orientation, image_size, shown, turned
from utils.errors import DataError
from utils.warn_once import warn_once

_LOG = logging.getLogger(__name__)
STORED = 1  # EXIF orientation of what is shown as it is stored


def frame_of_mask(
    image: Picture, size: tuple[int, int], mask: Picture | None = None
) -> tuple[int, int] | None:
    """How a mask (None: an annotation that is no file) of stored size (h, w) lies on its image.

    Two EXIF orientations: the mask is to be shown by the first, then the second is to be undone;
    None where no size fits. A mask with an orientation of its own lies on its image as viewers show
    both; one without refers to the stored pixels if it has their size. Where the sizes fit both
    ways, and it matters, a warning says so. An image that cannot be read contradicts nothing:
    whoever needs its pixels reports it. Raises DataError for a mask that cannot be read.
    """
    mask_turn = STORED if mask is None else exif_orientation(mask)
    try:
        stored, image_turn = image_size(image), exif_orientation(image)
    except DataError:
        return STORED, STORED
    fits_stored = stored == tuple(size)
    # orientations from 5 on exchange height and width
    fits_shown = tuple(size) == (stored if (image_turn > 4) == (mask_turn > 4) else stored[::-1])
    as_stored = fits_stored and (mask_turn == STORED or not fits_shown)
    if fits_stored and mask_turn != image_turn and (fits_shown or mask_turn != STORED):
        text = f"viewers turn the image by EXIF orientation {image_turn} and its mask by "
        text += f"{mask_turn}, and the sizes fit as stored: the mask is taken to lie on the pixels "
        text += f"as they are {'stored' if as_stored else 'shown'}; save images and masks without "
        name = shown(image if mask is None else mask)
        warn_once(_LOG, f"{name}: {text}EXIF orientation to be sure")
    if as_stored:
        return STORED, STORED
    return (mask_turn, image_turn) if fits_shown else None


def turned_back(mask: np.ndarray, image: Picture, file: Picture | None = None) -> np.ndarray:
    """A mask (h, w) in the frame of its image's stored pixels, contiguous; unchanged if none fits.

    file: where the mask was read from; None for an annotation. Raises DataError as frame_of_mask.
    """
    mask_turn, image_turn = frame_of_mask(image, mask.shape, file) or (STORED, STORED)
    return np.ascontiguousarray(turned(turned(mask, mask_turn), image_turn, undo=True))


def check_same_size(image: Picture, mask: Picture) -> None:
    """Raises DataError where image and mask differ in size, by their headers, turned or not."""
    if frame_of_mask(image, image_size(mask), mask) is None:
        texts = []
        for path in (mask, image):
            (height, width), turn = image_size(path), exif_orientation(path)
            suffix = f" with EXIF orientation {turn}" if turn != STORED else ""
            texts.append(f"{shown(path)} is {height} x {width} (h x w){suffix}")
        remedy = "a mask needs the size of its image, as stored or as viewers show both"
        raise DataError(f"{texts[0]}, but its image {texts[1]}; {remedy}")
