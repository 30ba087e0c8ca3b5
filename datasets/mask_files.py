"""Masks as they come: files, PIL images or arrays, drawn in values, shades, colours, palette indices or alpha."""

from __future__ import annotations

import logging

import numpy as np
from PIL import Image

from datasets.images import ROWS, Picture, checked_array, loaded, opened, rgb_pixels, shown
from utils.errors import DataError
from utils.notices import warn_once

MOST_CLASSES = 32  # distinct values of a mask of classes; more are shades
MOSTLY = 0.9  # of its pixels: a mask that marks more is likely to be inverted
_LABELS_BELOW = {1: 128, 2: 128 * 257}  # by bytes a value: values that all lie below are labels, of which there are few
_UNSURE, _SMALL = 255, 32  # the one means "not sure" beside values below the other alone
_MOST_COLOURS = 4096  # more are a photograph
_LOG = logging.getLogger(__name__)


def read_mask(picture: Picture) -> np.ndarray:
    """Binary mask of a mask file, a PIL image or an array, uint8 (h, w) in {0, 1}.

    A pixel is marked where any colour channel, or the palette index, is not 0. What is transparent is not marked; where
    the colour is the same everywhere, the alpha channel is the mask. A mask whose values are shades, as smoothing or
    lossy compression leaves them, is cut at half of its greatest value, with a warning; so is one that marks over 90 %.
    Raises DataError as `datasets.images.read_image` does, and for values of which 255 seems to mean "not sure".
    """
    where = shown(picture)
    values, is_index = _values(picture, where)
    bright = values.max(axis=2) if values.ndim == 3 else values
    most = int(bright.max())
    _refuse_unsure(bright, where)
    if is_index or _are_labels(values, bright, most):
        mask = (bright != 0).astype(np.uint8)
    else:
        share = 100 * np.count_nonzero((bright != 0) & (bright != most)) / bright.size
        warn_once(
            _LOG,
            f"{where}: {share:.2g} % of the mask's pixels lie between 0 and {most} (smoothed, or saved with losses): "
            f"those from {-(-most // 2)} on are taken for marked; save masks as PNG with two values",
        )
        mask = (bright >= most / 2).astype(np.uint8)
    tell_inverted(where, np.count_nonzero(mask) / mask.size)
    return mask


def read_labels(picture: Picture) -> np.ndarray:
    """Class values of a mask, integers (h, w): grey values as stored, or palette indices; 0 is background.

    Raises DataError as read_mask does, and for masks of true colours or of more than 32 values, which are no classes.
    """
    where = shown(picture)
    values, _ = _values(picture, where)
    if values.ndim == 3:
        raise DataError(f"{where}: a coloured mask; expected class values as grey values or palette indices")
    count = len(np.unique(values))
    if count > MOST_CLASSES:
        raise DataError(
            f"{where}: {count} different values in a mask of classes, of which {MOST_CLASSES} are the most: it was "
            "smoothed, or saved with losses (JPEG); save the classes as PNG, without resizing them smoothly"
        )
    _refuse_unsure(values, where)
    tell_inverted(where, np.count_nonzero(values) / values.size)
    return values


def tell_inverted(where: str, share: float) -> None:
    """Warn of a mask that marks most of its image, a share from 0 to 1, once for each `where`."""
    if share > MOSTLY:
        marks = "every pixel" if share == 1 else f"{100 * share:.4g} % of its pixels"
        warn_once(
            _LOG,
            f"{where}: the mask marks {marks}; the defect is what is not 0; are black and white exchanged?",
        )


def _values(picture: Picture, where: str) -> tuple[np.ndarray, bool]:
    """Stored values, unsigned integers (h, w), of true colours (h, w, 3); and whether they are palette indices."""
    if isinstance(picture, np.ndarray):
        values, is_index = checked_array(picture), False
    else:
        with opened(picture) as image:
            values, is_index = _stored(loaded(image), where)
    values = _unsigned(values, where)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values = _seen_through(values[:, :, :-1], values[:, :, -1], where)
    if values.ndim == 3 and (values == values[:, :, :1]).all():
        values = values[:, :, 0]
    return values, is_index


def _unsigned(values: np.ndarray, where: str) -> np.ndarray:
    """The same in the smallest unsigned type that holds them."""
    if values.dtype == np.uint8:
        return values
    whole = values.dtype.kind in "bui" or (values.dtype.kind == "f" and bool((values == np.rint(values)).all()))
    if not whole or not 0 <= values.min() <= values.max() < 2**32:
        raise DataError(f"{where}: expected a mask of whole numbers, 0 for background and above 0 where the defect is")
    return values.astype(np.min_scalar_type(int(values.max())))


def _stored(image: Image.Image, where: str) -> tuple[np.ndarray, bool]:
    """Values of a PIL image whose pixels are in memory: (h, w), or (h, w, channels) with alpha last."""
    is_index = image.mode in ("P", "PA")
    if image.mode == "F":
        raise DataError(f"{where}: a mask of floating point values; expected 8-bit grey values")
    if image.mode in ("1", "L", "P", "LA", "PA") or image.mode.startswith("I"):
        return np.array(image), is_index
    return np.array(image) if image.mode == "RGBA" else rgb_pixels(image), is_index


def _seen_through(values: np.ndarray, alpha: np.ndarray, where: str) -> np.ndarray:
    """Values (h, w, channels) without what is transparent; the alpha (h, w) itself where they are all the same."""
    if alpha.min() == alpha.max():
        return values
    if (values == values[0, 0]).all():
        warn_once(_LOG, f"{where}: its colour is the same everywhere, so the mask is taken from its alpha channel")
        return alpha
    visible = values * (alpha > 0)[:, :, None].astype(values.dtype)
    return visible if visible.any() else values


def _are_labels(values: np.ndarray, bright: np.ndarray, most: int) -> bool:
    """Whether the values of a mask, (h, w) or colours (h, w, 3), stand for classes, not for shades of one.

    Labels below the brightest, `most`, fill areas of their own. Shades are steps between the background and the
    brightest, so that each lies beside other ones.
    """
    if most < _LABELS_BELOW.get(bright.itemsize, most + 1):
        return True
    pixels: dict[int, int] = {}
    beside: dict[int, int] = {}
    for top in range(0, len(values), ROWS):
        rows = slice(max(0, top - 1), top + ROWS + 1)
        inner = slice(top - rows.start, top - rows.start + ROWS)
        codes = _codes(values[rows])
        between = (codes[inner] != 0) & (bright[rows][inner] != most)
        for found, chosen in ((pixels, between), (beside, between & _beside_others(codes)[inner])):
            for code, count in zip(*np.unique(codes[inner][chosen], return_counts=True), strict=True):
                found[int(code)] = found.get(int(code), 0) + int(count)
        if len(pixels) > _MOST_COLOURS:
            return False
    if not pixels:
        return True
    graded = sum(beside.get(code, 0) > count / 2 for code, count in pixels.items())
    return graded <= len(pixels) / 2 and sum(beside.values()) <= sum(pixels.values()) / 2


def _codes(values: np.ndarray) -> np.ndarray:
    """One number (h, w) for each value or colour; 0 for background."""
    return values if values.ndim == 2 else values.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def _beside_others(codes: np.ndarray) -> np.ndarray:
    """(h, w) bool: pixels with a neighbour above, below, left or right that is marked and has another code."""
    beside = np.zeros(codes.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (codes[one] != codes[other]) & (codes[one] != 0) & (codes[other] != 0)
        beside[one] |= differ
        beside[other] |= differ
    return beside


def _refuse_unsure(values: np.ndarray, where: str) -> None:
    """Raises DataError for class values of which 255 is likely to be none."""
    if int(values.max()) != _UNSURE:
        return
    others = np.unique(values[(values != 0) & (values != _UNSURE)])
    if len(others) and int(others.max()) < _SMALL:
        raise DataError(
            f"{where}: holds {', '.join(map(str, others[:5].tolist()))} and 255, which stands for 'not sure' in most "
            "tools; save the mask with 0 where there is no defect, and elsewhere with 255 alone or class values alone"
        )
