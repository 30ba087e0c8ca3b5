"""Where to look in an image: the resized whole for a large defect, crops at native resolution for a small one."""

from __future__ import annotations

import random

import numpy as np

from datasets.tiling import Box


def whole(mask: np.ndarray) -> Box:
    """The box of the whole image of a (h, w) mask."""
    return (0, mask.shape[0], 0, mask.shape[1])


def random_pixel(candidates: np.ndarray, rng: random.Random) -> tuple[int, int] | None:
    """A random true pixel (row, column) of a (h, w) bool array, in row-major order; None where there is none."""
    up_to = np.cumsum(
        [np.count_nonzero(row) for row in candidates]
    )  # a list of all pixels would take 8 bytes each
    if not up_to[-1]:
        return None
    number = rng.randint(0, int(up_to[-1]) - 1)
    row = int(np.searchsorted(up_to, number, side="right"))
    pixels = np.flatnonzero(candidates[row])
    return row, int(pixels[number - int(up_to[row])])  # counted from the row's end


def crop_around(
    pixel: tuple[int, int],
    shape: tuple[int, int],
    side: int,
    rng: random.Random,
    *,
    may_miss: bool = False,
) -> Box:
    """A random box of `side` native pixels around a pixel, moved inside the image and cut to it.

    Args:
        pixel: (row, column) that the box contains.
        shape: (height, width) of the image.
        side: of the box, pixels.
        rng: drawn from twice, rows first.
        may_miss: offsets of 0 to `side`, as published, of which 0 leaves the pixel just outside; else 1 to `side`.
    """
    low = 0 if may_miss else 1
    box: list[int] = []
    for position, length in zip(pixel, shape, strict=True):
        start = position + rng.randint(low, side) - side
        start = min(max(start, 0), max(length - side, 0))
        box += [start, min(start + side, length)]
    return box[0], box[1], box[2], box[3]


def support_boxes(
    mask: np.ndarray,
    *,
    views: int,
    side: int,
    resize_ratio: float | None,
    rng: random.Random,
    normal_views: int = 0,
    may_miss: bool = False,
) -> list[Box]:
    """Boxes of the views of one support image.

    Args:
        mask: (h, w), non-zero is defect.
        views: crops per image (`s_in_shot`).
        side: of a crop, native pixels.
        resize_ratio: area share above which the defect is seen in the whole image; None: always.
        rng: source of the crops.
        normal_views: further crops around random normal pixels, which show what else is not a defect (ours).
        may_miss: see `crop_around`.

    Returns:
        `views + normal_views` boxes; all the whole image for a large defect, or for a mask without defect.
    """
    if not needs_crops(mask, resize_ratio):
        return [whole(mask)] * (views + normal_views)
    boxes = []
    for candidates, count in ((mask > 0, views), (mask == 0, normal_views)):
        for _ in range(count):
            pixel = random_pixel(candidates, rng)
            boxes.append(
                whole(mask)
                if pixel is None
                else crop_around(pixel, mask.shape, side, rng, may_miss=may_miss)
            )
    return boxes


def training_query_box(
    mask: np.ndarray,
    *,
    side: int,
    resize_ratio: float | None,
    normal_probability: float,
    rng: random.Random,
) -> Box:
    """Box of a training query: the whole image for a large defect, else a crop around a random defect pixel, or, with
    `normal_probability` (alpha of the paper), around a random normal pixel."""
    if not needs_crops(mask, resize_ratio):
        return whole(mask)
    normal = rng.random() < normal_probability
    pixel = random_pixel((mask == 0) if normal else (mask > 0), rng)
    return whole(mask) if pixel is None else crop_around(pixel, mask.shape, side, rng)


def needs_crops(mask: np.ndarray, resize_ratio: float | None) -> bool:
    """Whether a defect is small: its share of the image is not over `resize_ratio`, and there is one."""
    return (
        resize_ratio is not None and bool(mask.any()) and float((mask > 0).mean()) <= resize_ratio
    )


def cut(array: np.ndarray, box: Box) -> np.ndarray:
    """The part of a (h, w) or (h, w, C) array inside a box."""
    return array[box[0] : box[1], box[2] : box[3]]
