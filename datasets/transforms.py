"""Pixels to network input: resizing, normalisation, padding, and the augmentation of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as TF

from datasets.tiling import fitted_shape

MASK_THRESHOLD = 0.1
LONGEST = 8192  # pixels, side of what is augmented, which takes up to 50 bytes a pixel
BLUR = 5  # pixels, side of the kernel
NORMALISED = TF.normalize(
    torch.arange(256).expand(3, 1, 256).float() / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
)[:, 0].numpy()
MEAN_COLOUR = [round(255 * m) for m in IMAGENET_DEFAULT_MEAN]


def prepare_image(image: np.ndarray, size: int) -> Tensor:
    """Resize the longer side (bilinear, antialiased), normalise with ImageNet mean and std, pad right and below with 0.

    Args:
        image: (h, w, 3) uint8 RGB.
        size: side of the network input, pixels.

    Returns:
        (3, size, size) float32.
    """
    pixels = _resized(image, size)
    rows, columns = pixels.shape[:2]
    out = np.zeros((3, size, size), np.float32)
    for channel, values in enumerate(
        NORMALISED
    ):  # a table, in NumPy: threads that prepare start no threads of torch
        out[channel, :rows, :columns] = values[pixels[:, :, channel]]
    return torch.from_numpy(out)


def prepare_mask(mask: np.ndarray, size: int) -> Tensor:
    """Resize a mask as its image; a pixel counts from a tenth of the largest value on, so that no defect vanishes.

    Args:
        mask: (h, w) uint8, non-zero is defect.
        size: side of the network input, pixels.

    Returns:
        (size, size) uint8 in {0, 1}.
    """
    if not mask.any():
        return torch.zeros(size, size, dtype=torch.uint8)
    resized = torch.from_numpy(_resized((mask > 0).astype(np.uint8) * 255, size)).float()
    return _padded((resized / resized.max().clamp(min=1) > MASK_THRESHOLD).to(torch.uint8), size)


def _resized(array: np.ndarray, size: int) -> np.ndarray:
    """Pillow's antialiased bilinear resize of the longer side to `size`; a writable copy."""
    shape = fitted_shape(*array.shape[:2], size)
    if shape == array.shape[:2]:
        return array.copy()
    return np.array(Image.fromarray(array).resize(shape[::-1], Image.Resampling.BILINEAR))


def _padded(tensor: Tensor, size: int) -> Tensor:
    return F.pad(tensor, (0, size - tensor.shape[-1], 0, size - tensor.shape[-2]))


class _Blur(v2.GaussianBlur):
    """Leaves alone what is too small to be blurred: torch mirrors half a kernel beyond the border."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return super().transform(inpt, params) if min(inpt.shape[-2:]) > BLUR // 2 else inpt


class TrainTransform:
    """Augmentation of a crop and its mask, as published.

    Colour jitter (0.4, 0.4, 0.4, 0.1) with probability 0.3; rotation with probability 0.5, the image filled with the
    ImageNet mean colour and the mask with 0; 5 x 5 Gaussian blur with probability 0.3; horizontal flip with
    probability 0.5. Draws from torch's generator only.

    Args:
        degrees: range of the rotation.
    """

    def __init__(self, degrees: Sequence[float]) -> None:
        fill = {tv_tensors.Image: MEAN_COLOUR, tv_tensors.Mask: 0}
        rotation = v2.RandomRotation(
            list(degrees), interpolation=InterpolationMode.BILINEAR, fill=fill
        )
        self.pipeline = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.3),
                v2.RandomApply([rotation], p=0.5),
                v2.RandomApply([_Blur(BLUR)], p=0.3),
                v2.RandomHorizontalFlip(p=0.5),
            ]
        )

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Augment a (h, w, 3) uint8 image and its (h, w) uint8 mask alike; where a side is longer than LONGEST, shrunk
        to it."""
        if max(mask.shape) > LONGEST:
            image, mask = (
                _resized(image, LONGEST),
                (_resized((mask > 0) * np.uint8(255), LONGEST) > 0).astype(np.uint8),
            )
        picture = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
        picture, marks = self.pipeline(
            picture, tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(mask)))
        )
        return picture.permute(1, 2, 0).numpy(), marks.numpy()


def denormalise(image: Tensor) -> np.ndarray:
    """A normalised (3, S, S) float image back to pixels, (S, S, 3) uint8 RGB."""
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    return ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
