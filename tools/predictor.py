"""Supports and a query image in, mask and score at the original size out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.crops import cut, whole
from datasets.tiling import merge, tile
from datasets.transforms import prepare_image
from utils.precision import autocast


@dataclass(frozen=True)
class Segmentation:
    """The answer for one image.

    Attributes:
        label: (h, w) uint8 {0, 1}; with `reference` merging float32 votes, defect where 1.
        score: (h, w) float32 in [0, 1].
    """

    label: np.ndarray
    score: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool."""
        return self.label == 1


class Predictor:
    """Asks one or more methods that share a backbone: every support and window is encoded once for all of them.

    Args:
        methods: by name, with `remember(features, masks)` and `answer(features, memory, size)`; the backbone is that
            of the first.
        image_size: side of the network input, pixels.
        crop_size: side of the windows, native pixels.
        device: where the methods are.
        window_batch: windows per pass.
        merge: how windows join, see `datasets.tiling.merge`.
        threshold: probability above which a pixel is defect.
        precision: `fp32`, `bf16` or `fp16`.
    """

    def __init__(
        self,
        methods: dict[str, nn.Module],
        *,
        image_size: int,
        crop_size: int,
        device: torch.device,
        window_batch: int = 4,
        merge: str = "probability",
        threshold: float = 0.5,
        precision: str = "fp32",
    ) -> None:
        self.methods = methods
        self.backbone = next(iter(methods.values())).backbone
        self.image_size, self.crop_size, self.device = image_size, crop_size, device
        self.window_batch, self.merge, self.threshold, self.precision = window_batch, merge, threshold, precision

    @torch.inference_mode()
    def remember(self, supports: Tensor, masks: Tensor) -> dict[str, Any]:
        """Encode supports once: (K, 3, S, S) float32 and (K, S, S) {0, 1} to one memory per method."""
        masks = masks.unsqueeze(0).to(self.device)
        with autocast(self.device, self.precision):
            features = self._features(supports)
            return {name: method.remember(features, masks) for name, method in self.methods.items()}

    @torch.inference_mode()
    def segment(self, image: np.ndarray, memory: dict[str, Any], *, windowed: bool) -> dict[str, Segmentation]:
        """Segment an image.

        Args:
            image: (h, w, 3) uint8 RGB.
            memory: from `remember`.
            windowed: True: windows at native resolution; False: the image resized whole.

        Returns:
            One answer per method, at the image's size.
        """
        size = image.shape[:2]
        boxes = tile(*size, self.crop_size) if windowed else [whole(image)]
        maps: dict[str, list[Tensor]] = {name: [] for name in self.methods}
        for start in range(0, len(boxes), self.window_batch):
            batch = boxes[start : start + self.window_batch]
            windows = torch.stack([prepare_image(cut(image, box), self.image_size) for box in batch])
            with autocast(self.device, self.precision):
                features = self._features(windows)
                for name, method in self.methods.items():
                    maps[name] += method.answer(features, memory[name], windows.shape[-2:]).float().cpu()
        return {
            name: Segmentation(*merge(m, boxes, size, mode=self.merge, threshold=self.threshold))
            for name, m in maps.items()
        }

    def _features(self, images: Tensor) -> list[Tensor]:
        parts = [self.backbone(part.to(self.device)) for part in images.split(self.window_batch)]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]
