"""Views of an image as the network sees them: the resized whole for a large defect, crops at native
resolution for a small one; and the augmentation of training views."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from datasets.windows import Box, fitted_shape, tile

MASK_THRESHOLD = 0.1
TYPICAL = 60  # pixels, length from which on a typical defect is seen well in the whole image
LONGEST = 8192  # pixels, side of what is augmented, which takes up to 50 bytes a pixel
BLUR = 5  # pixels, side of the kernel
NORMALISED = v2.functional.normalize(
    torch.arange(256).expand(3, 1, 256).float() / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
)[:, 0].numpy()
Pair = tuple[np.ndarray, np.ndarray]  # image (h, w, 3) uint8 RGB and mask (h, w) uint8


@dataclass(frozen=True)
class ViewSettings:
    """How samples become network inputs."""

    image_size: int  # side of the square network input, pixels
    crop_size: int  # side of crops and windows, native pixels
    resize_ratio: float | None  # area share above which a defect is seen whole; None: always
    views: int  # crops per support image around its defect
    normal_views: int = 0  # further crops per support image around normal pixels
    crops_may_miss: bool = False  # a support crop may miss its defect, as published
    support_windows: bool = False  # in use supports are seen also in windows that cover them
    grids: tuple[int, ...] = ()  # windows along an image's shorter side, in place of crop_size


@dataclass(frozen=True)
class SupportSet:
    """Support images with a defect, as they are shown to a method: K prepared views."""

    images: Tensor  # (K, 3, S, S) float32, those of each image side by side
    masks: Tensor  # (K, S, S) uint8
    window: int  # side of the windows of queries, native pixels; 0: each is resized whole
    counts: tuple[int, ...] = ()  # how many views there are of each image
    pairs: tuple[Pair, ...] = ()  # the images and masks themselves, where they are needed
    coarse: SupportSet | None = None  # the same supports in larger windows, see `window_sides`


def support_set(
    pairs: Sequence[Pair],
    settings: ViewSettings,
    rng: random.Random,
    sides: Sequence[int] | None = None,
) -> SupportSet:
    """Supports from images with masks that mark something; `rng` draws the crops.

    With `support_windows` each image is seen in the windows that cover it, so that all of its
    normal surface is known, and in `views` crops that show its largest defects in their middle: the
    same views whichever set the image is in.

    sides: of the windows of queries, see `window_sides`; None: by the masks.
    """
    window, *larger = sides or window_sides([mask for _, mask in pairs], settings)
    views, counts = [], []
    for image, mask in pairs:
        if settings.support_windows:
            boxes = list(dict.fromkeys([*central_boxes(mask, settings.views, window),
                                        *tile(*mask.shape, window)]))  # fmt: skip
        else:
            boxes = support_boxes(mask, settings, rng, window if settings.grids else None)
        views += [(cut(image, box), cut(mask, box)) for box in boxes]
        counts.append(len(boxes))
    prepared = prepare_views(views, settings.image_size)
    coarse = support_set(pairs, settings, rng, larger) if larger else None
    return SupportSet(*prepared, window, tuple(counts), tuple(pairs), coarse)


def window_sides(masks: Sequence[np.ndarray], settings: ViewSettings) -> tuple[int, ...]:
    """Sides in native pixels of the windows in which queries are seen by supports with these masks,
    ascending; 0: each is resized whole. It is one, see `window_side`, or with `grids` up to two.

    With `grids` an image is parted into n windows along its shorter side, square and without
    padding: the first n with which a typical defect is at least TYPICAL / n pixels long in the
    network input, or the last. So more windows, which show less of the surroundings each, are for
    defects that would hardly be longer than a token. The next smaller number gives larger windows.
    """
    lengths = [length for mask in masks if (length := defect_length(mask))]
    if not (settings.grids and lengths):
        return (window_side(masks, settings),)
    shortest, length = min(min(mask.shape) for mask in masks), float(np.median(lengths))
    whole = length * settings.image_size / shortest
    enough = (i for i, n in enumerate(settings.grids) if whole * n >= TYPICAL / n)
    place = next(enough, len(settings.grids) - 1)
    chosen = settings.grids[max(0, place - 1) : place + 1]
    return tuple(dict.fromkeys(-(-shortest // n) for n in reversed(chosen)))


def defect_length(mask: np.ndarray) -> float:
    """Typical extent of the defects of a (h, w) mask in pixels: the square root of the area of the
    component in which the middle one of all marked pixels lies, by size; 0 without a mark."""
    count, labels = cv2.connectedComponents((mask > 0).astype(np.uint8), connectivity=8)
    areas = np.sort(np.bincount(labels.ravel(), minlength=count)[1:])
    if not areas.size:
        return 0.0
    return float(areas[np.searchsorted(areas.cumsum(), areas.sum() / 2)]) ** 0.5


def window_side(masks: Sequence[np.ndarray], settings: ViewSettings) -> int:
    """Side in native pixels of the windows in which queries are seen; 0: each is resized whole, as
    the mean area share of the masks that mark something is over `resize_ratio`. Windows are the
    rule where no mask marks anything."""
    shares = [share for mask in masks if (share := float((mask > 0).mean()))]
    ratio = settings.resize_ratio
    small = ratio is not None and (not shares or float(np.mean(shares)) <= ratio)
    return settings.crop_size if small else 0


def support_views(
    image: np.ndarray, mask: np.ndarray, settings: ViewSettings, rng: random.Random
) -> list[Pair]:
    """Views of one support image and of its mask, native pixels."""
    return [(cut(image, box), cut(mask, box)) for box in support_boxes(mask, settings, rng)]


def normal_views(image: np.ndarray, window: int) -> list[np.ndarray]:
    """Views (h, w, 3) that cover a support image without defect, as its queries are seen."""
    return [cut(image, box) for box in tile(*image.shape[:2], window)]


def support_boxes(
    mask: np.ndarray, settings: ViewSettings, rng: random.Random, side: int | None = None
) -> list[Box]:
    """Boxes of the views of one support image: `views` crops around random defect pixels of the
    (h, w) mask, then `normal_views` around normal ones (ours); all the whole for a large defect or
    none. side: of the crops, 0: the whole; None: by the mask, see `crop_side`."""
    whole = (0, mask.shape[0], 0, mask.shape[1])
    side = crop_side(mask, settings) if side is None else side
    if not side:
        return [whole] * (settings.views + settings.normal_views)
    may_miss = settings.crops_may_miss
    boxes = []
    for candidates, count in ((mask > 0, settings.views), (mask == 0, settings.normal_views)):
        for _ in range(count):
            pixel = random_pixel(candidates, rng)
            box = whole if pixel is None else crop_around(pixel, mask.shape, side, rng, may_miss)
            boxes.append(box)
    return boxes


def central_boxes(mask: np.ndarray, count: int, side: int) -> list[Box]:
    """Boxes of `side` native pixels (0: the whole) inside an image, by its (h, w) mask: up to
    `count`, whose middle is as near as can be to that of one of the largest defects each."""
    found = cv2.connectedComponentsWithStats((mask > 0).astype(np.uint8), connectivity=8)
    areas, middles = found[2][1:, cv2.CC_STAT_AREA], found[3][1:]
    boxes = []
    for number in np.argsort(-areas, kind="stable")[:count]:
        box = []
        for middle, length in zip(middles[number][::-1], mask.shape, strict=True):
            size = min(side or length, length)
            start = min(max(round(float(middle)) - size // 2, 0), length - size)
            box += [start, start + size]
        boxes.append(tuple(box))
    return boxes


def crop_side(mask: np.ndarray, settings: ViewSettings) -> int:
    """Side in native pixels of crops of an image, by its own mask; 0: it is seen whole, as its
    defect is large or it has none."""
    return window_sides([mask], settings)[0] if mask.any() else 0


def random_pixel(candidates: np.ndarray, rng: random.Random) -> tuple[int, int] | None:
    """A random true pixel (row, column) of a (h, w) bool array, by row-major number, or None."""
    # a list of all pixels would take 8 bytes each
    up_to = np.cumsum([np.count_nonzero(row) for row in candidates])
    if not up_to[-1]:
        return None
    number = rng.randint(0, int(up_to[-1]) - 1)
    row = int(np.searchsorted(up_to, number, side="right"))
    pixels = np.flatnonzero(candidates[row])
    return row, int(pixels[number - int(up_to[row])])  # counted from the row's end


def crop_around(
    pixel: tuple[int, int], shape: tuple[int, int], side: int, rng: random.Random,
    may_miss: bool = False,
) -> Box:  # fmt: skip
    """A random box of `side` native pixels around a pixel (row, column), moved inside an image of
    `shape` (h, w) and cut to it. may_miss: it may end just before the pixel, as published."""
    box: list[int] = []
    for position, length in zip(pixel, shape, strict=True):
        start = position + rng.randint(0 if may_miss else 1, side) - side
        start = min(max(start, 0), max(length - side, 0))
        box += [start, min(start + side, length)]
    return box[0], box[1], box[2], box[3]


def cut(array: np.ndarray, box: Box) -> np.ndarray:
    """The part of a (h, w) or (h, w, C) array inside a box."""
    return array[box[0] : box[1], box[2] : box[3]]


def prepare_views(views: Sequence[Pair], size: int) -> tuple[Tensor, Tensor]:
    """Views to network inputs: (K, 3, size, size) float32 and (K, size, size) uint8."""
    images = torch.stack([prepare_image(image, size) for image, _ in views])
    return images, torch.stack([prepare_mask(mask, size) for _, mask in views])


def prepare_image(image: np.ndarray, size: int) -> Tensor:
    """An image (h, w, 3) uint8 RGB as network input (3, size, size) float32: longer side resized
    (bilinear, antialiased), normalised with ImageNet mean and std, padded right and below with 0.
    """
    pixels = _resized(image, size)
    rows, columns = pixels.shape[:2]
    out = np.zeros((3, size, size), np.float32)
    # by a table and in NumPy: the threads that prepare images must not start threads of torch
    for channel, values in enumerate(NORMALISED):
        out[channel, :rows, :columns] = values[pixels[:, :, channel]]
    return torch.from_numpy(out)


def prepare_mask(mask: np.ndarray, size: int) -> Tensor:
    """A (h, w) uint8 mask resized as its image, (size, size) uint8 in {0, 1}: a pixel counts from a
    tenth of the largest value on, so that no defect vanishes."""
    resized = torch.from_numpy(_resized((mask > 0).astype(np.uint8) * 255, size)).float()
    small = (resized / resized.max().clamp(min=1) > MASK_THRESHOLD).to(torch.uint8)
    return F.pad(small, (0, size - small.shape[1], 0, size - small.shape[0]))


def denormalise(image: Tensor) -> np.ndarray:
    """A normalised (3, S, S) float image back to pixels, (S, S, 3) uint8 RGB."""
    std = torch.tensor(IMAGENET_DEFAULT_STD).view(3, 1, 1)
    pixels = image * std + torch.tensor(IMAGENET_DEFAULT_MEAN).view(3, 1, 1)
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _resized(array: np.ndarray, size: int) -> np.ndarray:
    """Pillow's antialiased bilinear resize of the longer side to `size`; a writable copy."""
    shape = fitted_shape(*array.shape[:2], size)
    if shape == array.shape[:2]:
        return array.copy()
    return np.array(Image.fromarray(array).resize(shape[::-1], Image.Resampling.BILINEAR))


class _Blur(v2.GaussianBlur):
    """Leaves alone what is too small: torch mirrors half a kernel beyond the border."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return super().transform(inpt, params) if min(inpt.shape[-2:]) > BLUR // 2 else inpt


class TrainingCrops:
    """Augmented crops of training images.

    The augmentation is the published one: colour jitter (0.4, 0.4, 0.4, 0.1) with probability 0.3;
    rotation with probability 0.5, the image filled with the ImageNet mean colour and the mask with
    0; 5 x 5 Gaussian blur with probability 0.3; horizontal flip with probability 0.5. It draws from
    torch's generator only.

    Args:
        crop_ratio: range of the random factor on the crop size of a query.
        normal_probability: that a query crop is centred on a normal pixel (alpha of the paper).
        degrees: range of the rotation.
    """

    def __init__(
        self, settings: ViewSettings, *, crop_ratio: tuple[float, float],
        normal_probability: float, degrees: Sequence[float],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.crop_ratio, self.normal_probability = crop_ratio, normal_probability
        mean_colour = [round(255 * m) for m in IMAGENET_DEFAULT_MEAN]
        fill = {tv_tensors.Image: mean_colour, tv_tensors.Mask: 0}
        rotation = v2.RandomRotation(list(degrees), InterpolationMode.BILINEAR, fill=fill)
        self.pipeline = v2.Compose([
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.3),
            v2.RandomApply([rotation], p=0.5),
            v2.RandomApply([_Blur(BLUR)], p=0.3),
            v2.RandomHorizontalFlip(p=0.5),
        ])  # fmt: skip

    def query(self, image: np.ndarray, mask: np.ndarray, rng: random.Random) -> Pair:
        """One query view, native pixels, not augmented yet: the whole image for a large defect,
        else a crop around a random defect pixel or, with `normal_probability`, a normal one."""
        factor = rng.uniform(*self.crop_ratio)
        if side := crop_side(mask, self.settings):
            normal = rng.random() < self.normal_probability
            if pixel := random_pixel((mask == 0) if normal else (mask > 0), rng):
                box = crop_around(pixel, mask.shape, max(1, round(side * factor)), rng)
                return cut(image, box), cut(mask, box)
        return image, mask

    def augment(self, image: np.ndarray, mask: np.ndarray) -> Pair:
        """Augment an image and its mask alike; a side over LONGEST is shrunk to it."""
        if max(mask.shape) > LONGEST:
            small = _resized((mask > 0) * np.uint8(255), LONGEST) > 0
            image, mask = _resized(image, LONGEST), small.astype(np.uint8)
        picture = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        marks = tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask)))
        picture, marks = self.pipeline(picture, marks)
        return picture.permute(1, 2, 0).numpy(), marks.numpy()

    def augmented(self, views: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        """Views to augmented network inputs: (K, 3, S, S) float32 and (K, S, S) uint8."""
        return prepare_views([self.augment(*view) for view in views], self.settings.image_size)
