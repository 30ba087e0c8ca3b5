"""Masks as run lengths (pycocotools' compressed form) and the shapes of COCO annotations that become them."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco

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
from utils.warn_once import warn_once

Rle = dict[
    str, Any
]  # {"size": [h, w], "counts": str}: pycocotools' compressed run lengths, decoded so that it is JSON
_WHOLE_STRING = re.compile(
    "[0-o]*[0-O]"
)  # 6 bits a character from "0" on; after the last one no more follow
_LONGEST_RUN = 60  # bits; a broken string may hold one number of millions of digits
_FARTHEST = (
    2**24
)  # pixels; cv2.fillPoly computes in 16.16 fixed point, so far larger coordinates wrap around


def polygon_corners(polygon: Sequence[float]) -> np.ndarray:
    """Corners (x, y) of a COCO polygon [x0, y0, x1, y1, ...], int32 (n, 2) in pixels, truncated towards 0.

    Raises DataError for a polygon that is not pairs of finite numbers.
    """
    is_numbers = isinstance(polygon, list | tuple) and {type(value) for value in polygon} <= {
        int,
        float,
    }
    if not is_numbers or len(polygon) % 2:
        raise DataError("a polygon must be a list of pairs of numbers [x0, y0, x1, y1, ...]")
    if not all(abs(value) < _FARTHEST for value in polygon):
        raise DataError(f"a polygon has a coordinate that is no number below {_FARTHEST}")
    return np.array(polygon, np.float64).astype(np.int32).reshape(-1, 2)


def rle_of_polygons(polygons: Iterable[np.ndarray], size: tuple[int, int]) -> Rle:
    """Run lengths of the union of polygons, given by their corners (n, 2), in an image of size (h, w).

    Polygons are filled including their border, as the publishers' figures have it; two corners make a line, one a
    pixel, and parts outside the image are cut off. Only the largest polygon's bounding box is ever held as pixels.
    """
    spans = _union([_spans(corners, size) for corners in polygons])
    area = size[0] * size[1]
    counts = np.diff(spans.ravel(), prepend=0, append=area)
    ends_marked = len(spans) and spans[-1, 1] == area
    return _as_json(
        coco.frPyObjects(
            {"size": list(size), "counts": counts[:-1] if ends_marked else counts}, *size
        )
    )


def rle_encode(mask: np.ndarray) -> Rle:
    """Run lengths of a mask (h, w) of any integer or boolean type; whatever is not 0 counts as marked."""
    rle = coco.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    return _as_json(rle)


def rle_decode(rle: Rle) -> np.ndarray:
    """Mask of run lengths, uint8 (h, w) in {0, 1}, contiguous. Raises DataError if the runs do not fill the size."""
    height, width = rle["size"]
    runs = _runs_of_string(rle["counts"])
    _check_runs(runs, (height, width))  # pycocotools would write past its memory
    columns = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def is_rle(value: dict) -> bool:
    """Whether a mapping has the form of run lengths; that they fill their size is seen when they are decoded."""
    size, counts = value.get("size"), value.get("counts")
    sides = (
        isinstance(size, list)
        and len(size) == 2
        and all(type(side) is int and side > 0 for side in size)
    )
    return sides and isinstance(counts, str) and bool(_WHOLE_STRING.fullmatch(counts))


def rle_area(rle: Rle) -> int:
    """Number of marked pixels."""
    return int(coco.area(rle))


def rle_box(rle: Rle) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is marked, pixels; zeros for an empty mask."""
    left, top, width, height = coco.toBbox(rle).tolist()
    return left, top, left + width, top + height


def rle_merge(rles: Sequence[Rle]) -> Rle:
    """Union of one or more masks of the same size."""
    return _as_json(coco.merge(list(rles)))


def rle_of_annotation(segmentation: Rle, size: tuple[int, int]) -> Rle:
    """Compressed run lengths of a COCO annotation's RLE, whose counts are a list of runs or a compressed string.

    Raises DataError if its size differs from the image's size (h, w), or if the runs do not fill it exactly.
    """
    own_size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(own_size, list) or own_size != list(size):
        raise DataError(f"run lengths of size {own_size}, but the image is {list(size)} (h, w)")
    if isinstance(counts, list):
        _check_runs(counts, size)
        return _as_json(coco.frPyObjects({"size": list(size), "counts": counts}, *size))
    if isinstance(counts, str):
        _check_runs(_runs_of_string(counts), size)
        return {"size": list(size), "counts": counts}
    raise DataError(
        f"run lengths have counts of type {type(counts).__name__}, expected a list or a string"
    )


def _check_runs(runs: list[int], size: tuple[int, int]) -> None:
    area = size[0] * size[1]
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != area:
        raise DataError(
            f"run lengths are broken: expected integers >= 0 that sum up to {size[0]} x {size[1]} pixels"
        )


def _runs_of_string(counts: str) -> list[int]:
    """Runs of a compressed string: 5 bits a character, bit 5 set if more follow; from the fourth run on differences."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(
                f"run lengths hold the character {character!r}, which no compressed string has"
            )
        value |= (bits & 31) << shift
        shift += 5
        if shift > _LONGEST_RUN:
            raise DataError("run lengths hold a number that no image needs; the string is broken")
        if bits < 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise DataError("run lengths end within a number; the string was cut off")
    return runs


def _spans(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[start, end) of what a filled polygon marks in each column, int64 (m, 2), ascending.

    Like run lengths, they count the pixels of an image of size (h, w) column after column.
    """
    height, width = size
    left, top = np.maximum(corners.min(axis=0, initial=_FARTHEST), 0)
    right, bottom = np.minimum(corners.max(axis=0, initial=-_FARTHEST) + 1, (width, height))
    if right <= left or bottom <= top:
        return np.empty((0, 2), np.int64)
    box = np.zeros(
        (bottom - top + 2, right - left), np.uint8
    )  # an unmarked row on either side bounds every span
    cv2.fillPoly(box[1:-1], [corners - np.array([left, top], np.int32)], 1)
    rows, columns = np.divmod(np.flatnonzero(box[1:] != box[:-1]), right - left)
    return np.sort((columns + left) * height + rows + top).reshape(-1, 2)


def _union(spans: Sequence[np.ndarray]) -> np.ndarray:
    """The same pixels as ascending spans (m, 2) that neither overlap nor touch."""
    joined = np.concatenate([np.empty((0, 2), np.int64), *spans])
    if not len(joined):
        return joined
    starts, ends = joined[np.argsort(joined[:, 0])].T
    ends = np.maximum.accumulate(ends)
    gaps = np.flatnonzero(starts[1:] > ends[:-1])
    return np.stack([starts[np.append(0, gaps + 1)], ends[np.append(gaps, -1)]], axis=1)


def _as_json(rle: Rle) -> Rle:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


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
