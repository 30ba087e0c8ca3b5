"""Masks as cameras, annotation tools and editors save them: marked pixels, or class values."""

from __future__ import annotations

import logging

import numpy as np
from PIL import Image

from datasets.images import Picture, checked_array, loaded, opened, rgb_pixels, shown, turned
from utils.errors import DataError
from utils.warn_once import warn_once

MOST_CLASSES = 32  # distinct values of a mask of classes; more are shades
_MOSTLY = 0.9  # of its pixels: a mask that marks more is likely to be inverted
_UNSURE, _SMALL = (255, 65535), 32  # these mean "not sure" beside values below the other alone
_LOSS = 0.03  # share of the greatest value by which compression moves values
_LOSSY = ("JPEG", "MPO", "JPEG2000")
_MOST_SHADES = 256  # colours of a mask with a drawing in alpha; more are a photograph
_MOST_COLOURS = 4096  # of a mask; more are a photograph
_LOG = logging.getLogger(__name__)


def read_mask(picture: Picture, name: str = "") -> np.ndarray:
    """Binary mask of a mask file, a PIL image or an array, uint8 (h, w) in {0, 1}.

    A pixel is marked where any colour channel is not 0, or, of a palette without black, the index.
    What is transparent is not marked; where all that is visible has one colour, or is a photograph,
    the alpha channel is the mask. Values that are shades, as smoothing or lossy compression leaves
    them, are cut at half of the greatest one, with a warning. Another names a mask of over 90 %.
    name: what messages call a picture that is no file. Raises DataError as
    `datasets.images.read_image`, and where 255 seems to mean "not sure".
    """
    where = shown(picture, name)
    values, are_labels, lossy = _values(picture, where)
    bright = values.max(axis=2) if values.ndim == 3 else values
    most = int(bright.max())
    _refuse_unsure(bright, where)
    if are_labels or (not (lossy and _is_graded(bright)) and _are_labels(values, bright, most)):
        mask = (bright != 0).astype(np.uint8)
    else:
        share = 100 * np.count_nonzero((bright != 0) & (bright != most)) / bright.size
        text = f"{share:.2g} % of the mask's pixels lie between 0 and {most} (smoothed, or saved "
        text += f"with losses): those from {-(-most // 2)} on are taken for marked; save masks as "
        warn_once(_LOG, f"{where}: {text}PNG with two values")
        mask = (bright >= most / 2).astype(np.uint8)
    warn_inverted(where, np.count_nonzero(mask) / mask.size)
    return mask


def read_labels(picture: Picture, name: str = "") -> np.ndarray:
    """Class values of a mask, integers (h, w): grey values or palette indices; 0 is background.

    Raises DataError as read_mask, and for masks of true colours, of more than 32 values, or of a
    format that loses values, which are no classes.
    """
    where = shown(picture, name)
    values, _, lossy = _values(picture, where, classes=True)
    if values.ndim == 3:
        expected = "expected class values as grey values or palette indices"
        raise DataError(f"{where}: a coloured mask; {expected}")
    count = len(np.unique(values))
    if count > MOST_CLASSES or (lossy and _is_graded(values)):
        most = f", of which {MOST_CLASSES} are the most" if count > MOST_CLASSES else ""
        remedy = "saved with losses (JPEG); save the classes as PNG, without smooth resizing"
        text = f"{count} different values in a mask of classes{most}: it was smoothed, or {remedy}"
        raise DataError(f"{where}: {text}")
    _refuse_unsure(values, where)
    warn_inverted(where, np.count_nonzero(values) / values.size)
    return values


def warn_inverted(where: str, share: float) -> None:
    """Warn of a mask that marks most of its image, a share from 0 to 1, once for each `where`."""
    if share > _MOSTLY:
        marks = "every pixel" if share == 1 else f"{100 * share:.4g} % of its pixels"
        question = "the defect is what is not 0; are black and white exchanged?"
        warn_once(_LOG, f"{where}: the mask marks {marks}; {question}")


def _values(
    picture: Picture, where: str, *, classes: bool = False
) -> tuple[np.ndarray, bool, bool]:
    """Values of a mask, unsigned integers (h, w), of true colours (h, w, 3), whether these are
    surely labels, and whether their format loses values. classes: indices of palettes are wanted.
    """
    are_labels = lossy = False
    if isinstance(picture, np.ndarray):
        values = checked_array(picture, where)
    else:
        with opened(picture, where) as (image, turn):
            lossy = image.format in _LOSSY
            if image.mode in ("P", "PA"):
                values, are_labels = _of_palette(image, classes, where)
            else:
                values = _stored(image, where)
            values = turned(values, turn, undo=True)
    if values.dtype != np.uint8:
        kind = values.dtype.kind
        is_whole = kind in "bui" or (kind == "f" and bool((values == np.rint(values)).all()))
        if not is_whole or not 0 <= float(values.min()) <= float(values.max()) < 2**32:
            expected = "a mask of whole numbers, 0 for background and above 0 where the defect is"
            raise DataError(f"{where}: expected {expected}")
        values = values.astype(np.min_scalar_type(int(values.max())))
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values = _seen_through(values[:, :, :-1], values[:, :, -1], where)
    if values.ndim == 3 and all((row == row[:, :1]).all() for row in values):
        values = values[:, :, 0]
    return values, are_labels, lossy


def _stored(image: Image.Image, where: str) -> np.ndarray:
    """Values (h, w) or (h, w, channels) of a PIL image, alpha last."""
    rawmodes = " ".join(str(tile.args) for tile in getattr(image, "tile", ()))
    image = loaded(image)
    if image.mode == "F":
        raise DataError(f"{where}: a mask of floating point values; expected 8-bit grey values")
    if image.mode not in ("1", "L", "LA", "RGBA") and not image.mode.startswith("I"):
        return rgb_pixels(image)
    # Pillow stretches grey values of 2 and 4 bits to 8
    packed = 85 if "L;2" in rawmodes else 17 if "L;4" in rawmodes else 1
    return np.array(image) // np.uint8(packed) if packed > 1 else np.array(image)


def _of_palette(image: Image.Image, classes: bool, where: str) -> tuple[np.ndarray, bool]:
    """Values of a palette image, (h, w) or with alpha (h, w, 2), and whether they are labels.

    Programs that reduce the colours of a mask put them into any order, so black is the background
    wherever it stands; without black index 0 is. classes: the indices themselves are wanted.
    """
    image.load()
    indices = np.array(image)
    indices = indices[:, :, 0] if image.mode == "PA" else indices
    if classes:
        return indices, True
    *colours, alpha = np.moveaxis(np.array(image.convert("RGBA")), 2, 0)
    bright = np.maximum.reduce(colours)
    is_grey = bool((np.minimum.reduce(colours) == bright).all())
    has_black = bright.min() == 0
    if not is_grey:
        _refuse_unsure(indices, where)
    values = np.where(bright > 0, indices + np.uint16(1), 0) if has_black else indices
    values = bright if has_black and is_grey else values
    if alpha.min() != alpha.max():
        values = np.dstack([values, alpha.astype(values.dtype)])
    return values, not (is_grey and has_black)


def _seen_through(values: np.ndarray, alpha: np.ndarray, where: str) -> np.ndarray:
    """Values (h, w, channels) without what is transparent; or alpha itself, where it is the mask:
    where all that is visible has one colour, or so many that it is a photograph."""
    if alpha.min() == alpha.max():
        return values
    first = values[np.unravel_index(int((alpha > 0).argmax()), alpha.shape)]
    rows, kind = zip(values, alpha, strict=True), ""
    if all(((row == first).all(axis=1) | (seen == 0)).all() for row, seen in rows):
        kind = "has one colour"
    elif alpha.min() == 0 and not _is_graded(alpha):
        codes = _codes(values if values.shape[2] == 3 else values[:, :, 0])
        kind = "is a photograph" if len(np.unique(codes[alpha != 0])) > _MOST_SHADES else ""
    if kind:
        fact = f"what is visible {kind}, so the mask is taken from its alpha channel"
        warn_once(_LOG, f"{where}: {fact}")
        return alpha
    return np.where(alpha[:, :, None] == 0, values.dtype.type(0), values)


def _is_graded(values: np.ndarray) -> bool:
    """Whether there is more than background and one other value."""
    return bool(((values != values.min()) & (values != values.max())).any())


def _are_labels(values: np.ndarray, bright: np.ndarray, most: int) -> bool:
    """Whether the values of a mask, (h, w) or colours (h, w, 3), are classes, not shades of one.

    Labels below the brightest, `most`, fill areas of their own. Shades are steps between background
    and the brightest, so that each lies beside other ones; what compression leaves of 0 and the
    brightest is scattered. A few values in the lower half of the range are labels in any case.
    """
    codes = _codes(values)
    between = (codes != 0) & (bright != most)
    found, counts = np.unique(codes[between], return_counts=True)
    lower_half = 128 if bright.itemsize == 1 else 128 * 257
    if not len(found) or (len(found) < MOST_CLASSES and most < lower_half):
        return True
    if len(found) > _MOST_COLOURS:
        return False
    beside, amid = _neighbours(codes)
    scattered = ((bright <= _LOSS * most) | (bright >= most - _LOSS * most)) & ~amid
    odd = codes[between & (beside | scattered)]
    odd_counts = np.bincount(np.searchsorted(found, odd), minlength=len(found))
    graded = np.count_nonzero(odd_counts > counts / 2)
    return graded <= len(found) / 2 and len(odd) <= counts.sum() / 2


def _codes(values: np.ndarray) -> np.ndarray:
    """One number (h, w) for each value or colour; 0 for background."""
    if values.ndim == 2:
        return values
    bits, kind = 8 * values.itemsize, np.uint32 if values.itemsize == 1 else np.uint64
    return values.astype(kind) @ np.array([1 << 2 * bits, 1 << bits, 1], kind)


def _neighbours(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) bool each: pixels next to another mark (4 neighbours), and those amid equal ones."""
    beside, amid = np.zeros(codes.shape, bool), np.ones(codes.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = codes[one] != codes[other]
        marks = differ & (codes[one] != 0) & (codes[other] != 0)
        for side in (one, other):
            beside[side] |= marks
            amid[side] &= ~differ
    return beside, amid


def _refuse_unsure(values: np.ndarray, where: str) -> None:
    """Raises DataError where 255 or 65535, the greatest value, is likely to be no class: where the
    other ones are small, and fill areas or lie within it."""
    unsure = int(values.max())
    chosen = (values != 0) & (values != unsure)
    if unsure not in _UNSURE or not chosen.any() or values[chosen].max() >= _SMALL:
        return
    amid = _neighbours(values)[1]
    by_background = _neighbours((values == 0).astype(np.uint8) + 1)[0]
    if np.count_nonzero(chosen & (amid | ~by_background)) > np.count_nonzero(chosen) / 2:
        listed = ", ".join(map(str, np.unique(values[chosen])[:5].tolist()))
        remedy = "save the mask with 0 where there is no defect, and elsewhere with"
        text = f"which stands for 'not sure' in most tools; {remedy} {unsure} alone or class values"
        raise DataError(f"{where}: holds {listed} and {unsure}, {text} alone")
