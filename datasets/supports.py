"""Support images as the views that a method is shown: crops around their defects, and all of what is normal."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.crops import cut, support_boxes, whole
from datasets.tiling import tile
from datasets.transforms import prepare_image, prepare_mask

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ViewSettings:
    """How samples become network inputs.

    Attributes:
        image_size: side of the square network input, pixels.
        crop_size: side of crops and windows, native pixels.
        resize_ratio: area share above which a defect is seen in the whole image; None: always.
        views: crops per support image around its defect.
        normal_views: further crops per support image around normal pixels.
        crops_may_miss: a support crop may miss its defect, as published.
    """

    image_size: int
    crop_size: int
    resize_ratio: float | None
    views: int
    normal_views: int = 0
    crops_may_miss: bool = False


@dataclass(frozen=True)
class SupportSet:
    """Support images with a defect, as they are shown to a method.

    Attributes:
        images, masks: prepared views, as many of each image, (K, 3, S, S) float32 and (K, S, S) uint8.
        windowed: queries are seen in windows at native resolution, not in the resized image.
        pairs: the images (h, w, 3) uint8 RGB and masks (h, w) uint8 {0, 1} themselves, for whoever needs them.
    """

    images: Tensor
    masks: Tensor
    windowed: bool = True
    pairs: tuple[Pair, ...] = ()


def support_set(
    pairs: Sequence[Pair], settings: ViewSettings, rng: random.Random, windowed: bool | None = None
) -> SupportSet:
    """Supports from images (h, w, 3) uint8 RGB with masks (h, w) uint8, all with a defect.

    Args:
        pairs: the images and masks.
        settings: how they become inputs.
        rng: source of the crops.
        windowed: scale of the queries; None: by the area share of the defects.
    """
    if windowed is None:
        windowed = is_windowed([mask for _, mask in pairs], settings.resize_ratio)
    views = [view for pair in pairs for view in support_views(*pair, settings, rng)]
    return SupportSet(*prepare_views(views, settings.image_size), windowed, tuple(pairs))


def support_views(
    image: np.ndarray, mask: np.ndarray, settings: ViewSettings, rng: random.Random
) -> list[Pair]:
    """Views of one support image with a defect, and of its mask, native pixels."""
    boxes = support_boxes(
        mask,
        views=settings.views,
        normal_views=settings.normal_views,
        side=settings.crop_size,
        resize_ratio=settings.resize_ratio,
        rng=rng,
        may_miss=settings.crops_may_miss,
    )
    return [(cut(image, box), cut(mask, box)) for box in boxes]


def normal_views(image: np.ndarray, settings: ViewSettings, windowed: bool) -> list[np.ndarray]:
    """Views that cover a support image without defect, (h, w, 3) native pixels: seen as the queries are, in windows or
    whole."""
    boxes = tile(*image.shape[:2], settings.crop_size) if windowed else [whole(image)]
    return [cut(image, box) for box in boxes]


def prepare_views(views: Sequence[Pair], size: int) -> tuple[Tensor, Tensor]:
    """Views to network inputs: (K, 3, size, size) float32 and (K, size, size) uint8."""
    images, masks = zip(
        *((prepare_image(i, size), prepare_mask(m, size)) for i, m in views), strict=True
    )
    return torch.stack(images), torch.stack(masks)


def is_windowed(masks: Sequence[np.ndarray], resize_ratio: float | None) -> bool:
    """Whether queries are seen in windows: the mean area share of the masks that mark something is not over
    `resize_ratio`; where none does, windows are the rule."""
    if resize_ratio is None:
        return False
    shares = [share for mask in masks if (share := float((mask > 0).mean()))]
    return not shares or float(np.mean(shares)) <= resize_ratio
