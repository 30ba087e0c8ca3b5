"""Masks as they come: files, PIL images or arrays, drawn in values, shades, colours, palette entries or alpha."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator

import cv2
import numpy as np
from PIL import Image

from datasets.image_faults import shown
from datasets.images import (
    Picture,
    checked_array,
    exif_orientation,
    loaded,
    loses_lower_bits,
    opened,
    rgb_pixels,
)
from utils.errors import DataError
from utils.notices import warn_once

MOST_CLASSES = 32  # distinct values of a mask of classes; more are shades
MOSTLY = 0.9  # of its pixels: a mask that marks more is likely to be inverted
_LABELS_BELOW = {
    1: 128,
    2: 128 * 257,
}  # by bytes a value: a few values that all lie below are labels
_LOSS = 0.03  # share of the greatest value by which compression moves values
_UNSURE, _SMALL = (255, 65535), 32  # these mean "not sure" beside values below the other alone
_PACKED = {";2": 85, ";4": 17}  # what Pillow multiplies grey values of fewer bits by
_LOSSY = ("JPEG", "MPO", "JPEG2000")
_MOST_SHADES = 256  # of a mask with a drawing in alpha; more are a photograph, too
_MOST_COLOURS = 4096  # more are a photograph
_ROWS = 256  # looked at together
_LOG = logging.getLogger(__name__)


def read_mask(picture: Picture, name: str = "") -> np.ndarray:
    """Binary mask of a mask file, a PIL image or an array, uint8 (h, w) in {0, 1}.

    A pixel is marked where it is not black: where any colour channel is not 0, or, of a palette without black, the
    index. What is transparent is not marked; where all that is visible has one colour, the alpha channel is the mask. A
    mask whose values are shades, as smoothing or lossy compression leaves them, is cut at half of its greatest value,
    with a warning; of a photograph the alpha channel is the mask, if it has one. A mask that marks over 90 % is named.
    name: what a picture that is no file is called in messages.
    Raises DataError as `datasets.images.read_image` does, and for values of which 255 seems to mean "not sure".
    """
    where = shown(picture, name)
    values, are_labels, lossy = _values(picture, where)
    bright = values.max(axis=2) if values.ndim == 3 else values
    most = int(bright.max())
    _refuse_unsure(bright, where)
    if are_labels or (_are_labels(values, bright, most) and not (lossy and _is_graded(bright))):
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


def read_labels(picture: Picture, name: str = "") -> np.ndarray:
    """Class values of a mask, integers (h, w): grey values as stored, or palette indices; 0 is background.

    Raises DataError as read_mask does, and for masks of true colours, of more than 32 values, or of a format that
    loses values, which are no classes.
    """
    where = shown(picture, name)
    values, _, lossy = _values(picture, where, classes=True)
    if values.ndim == 3:
        raise DataError(
            f"{where}: a coloured mask; expected class values as grey values or palette indices"
        )
    count = len(np.unique(values))
    if count > MOST_CLASSES or (lossy and _is_graded(values)):
        most = f", of which {MOST_CLASSES} are the most" if count > MOST_CLASSES else ""
        raise DataError(
            f"{where}: {count} different values in a mask of classes{most}: it was smoothed, or "
            "saved with losses (JPEG); save the classes as PNG, without resizing them smoothly"
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


def _is_graded(values: np.ndarray) -> bool:
    """Whether there is more than background and one other value."""
    return bool(((values != values.min()) & (values != values.max())).any())


def _values(
    picture: Picture, where: str, *, classes: bool = False
) -> tuple[np.ndarray, bool, bool]:
    """Values of a mask, unsigned integers (h, w), of true colours (h, w, 3); whether they are surely labels; and
    whether their format loses values."""
    are_labels = lossy = False
    if isinstance(picture, np.ndarray):
        values = checked_array(picture, where)
    else:
        with opened(picture, where) as image:
            lossy = image.format in _LOSSY
            if image.mode in ("P", "PA"):
                values, are_labels = _of_palette(image, classes, where)
            elif loses_lower_bits(image):
                values = _all_bits(picture, where)
            else:
                scale = _scale(image)
                values = _stored(loaded(image), where)
                values = values if scale == 1 else np.rint(values / scale).astype(values.dtype)
    values = _unsigned(values, where)
    if values.ndim == 3 and values.shape[2] in (2, 4):
        values = _seen_through(values[:, :, :-1], values[:, :, -1], where)
    if values.ndim == 3 and all((rows == rows[:, :, :1]).all() for rows in _strips(values)):
        values = values[:, :, 0]
    return values, are_labels, lossy


def _scale(image: Image.Image) -> float:
    """What Pillow multiplies the stored grey values by, to fill 8 or 16 bits."""
    if image.format == "PPM" and image.tile and isinstance(image.tile[0].args, tuple):
        greatest = image.tile[0].args[-1]  # of the file's values
        full = 65535 if image.mode == "I" else 255
        return full / greatest if isinstance(greatest, int) and 0 < greatest < full else 1
    packed = (
        scale
        for tile in getattr(image, "tile", ())
        for end, scale in _PACKED.items()
        if f"L{end}" in str(tile.args)
    )
    return next(packed, 1)


def _all_bits(picture: Picture, where: str) -> np.ndarray:
    """Values (h, w, channels) of colours of 16 bits, of which Pillow takes the upper 8."""
    read = (
        None
        if isinstance(picture, Image.Image)
        else cv2.imread(os.fspath(picture), cv2.IMREAD_UNCHANGED)
    )
    if read is None or read.dtype != np.uint16 or read.ndim != 3 or exif_orientation(picture) != 1:
        raise DataError(
            f"{where}: a mask of 16-bit colours, which the decoder shortens to 8; save it with 8 bits"
        )
    return read[:, :, [2, 1, 0, 3][: read.shape[2]]]


def _strips(values: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of an array, some at a time: what is compared as a whole takes as much memory again."""
    return (values[top : top + _ROWS] for top in range(0, len(values), _ROWS))


def _unsigned(values: np.ndarray, where: str) -> np.ndarray:
    """The same in the smallest unsigned type that holds them."""
    if values.dtype == np.uint8:
        return values
    whole = values.dtype.kind in "bui" or (
        values.dtype.kind == "f" and bool((values == np.rint(values)).all())
    )
    if not whole or not 0 <= float(values.min()) <= float(values.max()) < 2**32:
        raise DataError(
            f"{where}: expected a mask of whole numbers, 0 for background and above 0 where the defect is"
        )
    return values.astype(np.min_scalar_type(int(values.max())))


def _stored(image: Image.Image, where: str) -> np.ndarray:
    """Values of a PIL image whose pixels are in memory: (h, w), or (h, w, channels) with alpha last."""
    if image.mode == "F":
        raise DataError(f"{where}: a mask of floating point values; expected 8-bit grey values")
    if image.mode in ("1", "L", "LA", "RGBA") or image.mode.startswith("I"):
        return np.array(image)
    return rgb_pixels(image)


def _of_palette(image: Image.Image, classes: bool, where: str) -> tuple[np.ndarray, bool]:
    """Values of a palette image, (h, w), or with alpha (h, w, 2); and whether they are labels, not greys.

    Programs that reduce the colours of a mask put them into any order, so black is the background wherever it stands;
    without black index 0 is. classes: the indices themselves are wanted.
    """
    image.load()
    indices = np.array(image)
    alpha = indices[:, :, 1] if image.mode == "PA" else None
    indices = indices if alpha is None else indices[:, :, 0]
    used = np.unique(indices)
    shown_as = image.copy()
    shown_as.apply_transparency()
    colours = np.zeros((256, 4), np.uint8)
    known = np.array(shown_as.getpalette("RGBA"), np.uint8).reshape(-1, 4)
    colours[: len(known)] = known
    black, grey = ~colours[:, :3].any(axis=1), (colours[used, 0:2] == colours[used, 1:3]).all()
    if classes:
        return indices, True
    if not grey:
        _refuse_unsure(indices, where)
    if not black[used].any():
        values = indices
    elif grey:
        values = colours[:, 0][indices]
    else:
        values = np.where(black, 0, np.arange(1, 257)).astype(np.uint16)[indices]
    alpha = colours[:, 3][indices] if alpha is None else alpha
    with_alpha = alpha.min() != alpha.max()
    return np.dstack([values, alpha.astype(values.dtype)]) if with_alpha else values, not (
        grey and black[used].any()
    )


def _seen_through(values: np.ndarray, alpha: np.ndarray, where: str) -> np.ndarray:
    """Values (h, w, channels) without what is transparent; the alpha (h, w) itself where all else has one colour, or so
    many that it is a photograph."""
    if alpha.min() == alpha.max():
        return values
    first = values[np.unravel_index(int((alpha > 0).argmax()), alpha.shape)]
    pairs = zip(_strips(values), _strips(alpha), strict=True)
    if all(((rows == first).all(axis=2) | (seen == 0)).all() for rows, seen in pairs):
        warn_once(
            _LOG,
            f"{where}: all that is visible has one colour, so the mask is taken from its alpha channel",
        )
        return alpha
    two = alpha.min() == 0 and not _is_graded(alpha)
    if (
        two
        and len(np.unique(_codes(values if values.shape[2] == 3 else values[:, :, 0])[alpha != 0]))
        > _MOST_SHADES
    ):
        warn_once(
            _LOG,
            f"{where}: what is visible is a photograph, so the mask is taken from its alpha channel",
        )
        return alpha
    visible = values.copy()
    visible[alpha == 0] = 0
    return visible


def _are_labels(values: np.ndarray, bright: np.ndarray, most: int) -> bool:
    """Whether the values of a mask, (h, w) or colours (h, w, 3), stand for classes, not for shades of one.

    Labels below the brightest, `most`, fill areas of their own. Shades are steps between the background and the
    brightest, so that each lies beside other ones; what compression leaves of 0 and the brightest is scattered.
    """
    pixels, odd = Counter[int](), Counter[int]()
    loss = _LOSS * most
    for top in range(0, len(values), _ROWS):
        rows = slice(max(0, top - 1), top + _ROWS + 1)
        inner = slice(top - rows.start, top - rows.start + _ROWS)
        codes, light = _codes(values[rows]), bright[rows]
        between = (codes != 0) & (light != most)
        beside, amid = _neighbours(codes)
        scattered = ((light <= loss) | (light >= most - loss)) & ~amid
        for found, chosen in ((pixels, between), (odd, between & (beside | scattered))):
            seen, counts = np.unique(codes[inner][chosen[inner]], return_counts=True)
            found.update(dict(zip(seen.tolist(), counts.tolist(), strict=True)))
        if len(pixels) > _MOST_COLOURS:
            return False
    few = len(pixels) < MOST_CLASSES
    if not pixels or (few and most < _LABELS_BELOW.get(bright.itemsize, _LABELS_BELOW[2])):
        return True
    graded = sum(odd[code] > count / 2 for code, count in pixels.items())
    return graded <= len(pixels) / 2 and odd.total() <= pixels.total() / 2


def _codes(values: np.ndarray) -> np.ndarray:
    """One number (h, w) for each value or colour; 0 for background."""
    if values.ndim == 2:
        return values
    bits, kind = 8 * values.itemsize, np.uint32 if values.itemsize == 1 else np.uint64
    return values.astype(kind) @ np.array([1 << 2 * bits, 1 << bits, 1], kind)


def _neighbours(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, w) bool each: pixels beside another mark (above, below, left or right), and those amid equal ones."""
    beside, amid = np.zeros(codes.shape, bool), np.ones(codes.shape, bool)
    for one, other in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = codes[one] != codes[other]
        marks = differ & (codes[one] != 0) & (codes[other] != 0)
        beside[one] |= marks
        beside[other] |= marks
        amid[one] &= ~differ
        amid[other] &= ~differ
    return beside, amid


def _refuse_unsure(values: np.ndarray, where: str) -> None:
    """Raises DataError for class values of which the greatest, 255 or 65535, is likely to be none: small ones fill
    areas, or lie within it."""
    unsure = int(values.max())
    if unsure not in _UNSURE:
        return
    found = np.unique(values)
    small = found[(found != 0) & (found != unsure)]
    if not len(small) or int(small.max()) >= _SMALL:
        return
    chosen = (values != 0) & (values != unsure)
    amid = _neighbours(values)[1]
    by_background = _neighbours((values == 0).astype(np.uint8) + 1)[0]
    if np.count_nonzero(chosen & (amid | ~by_background)) > np.count_nonzero(chosen) / 2:
        raise DataError(
            f"{where}: holds {', '.join(map(str, small[:5].tolist()))} and {unsure}, which stands for 'not sure' in "
            f"most tools; save the mask with 0 where there is no defect, and elsewhere with {unsure} alone or class "
            "values alone"
        )
