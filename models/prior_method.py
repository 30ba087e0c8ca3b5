"""The method without training: a pixel is defect where it looks more like the marked tokens than like the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models import joint_prior
from models.backbone import Backbone
from models.priors import downsample_mask
from models.sofs import upsample


@dataclass(frozen=True)
class PriorMemory:
    """Labelled tokens of one set of supports, and whether any of them is marked."""

    tokens: joint_prior.JointMemory
    marked: bool


class PriorMethod(nn.Module):
    """Nearest labelled token, the baseline of every evaluation.

    Args:
        backbone: frozen features.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def encode_support(self, images: Tensor, masks: Tensor) -> PriorMemory:
        """Encode one set of supports: images (1, K, 3, H, W) float, masks (1, K, H, W) {0, 1}."""
        return self.remember(self.backbone(images.flatten(0, 1)), masks)

    def remember(self, features: list[Tensor], masks: Tensor) -> PriorMemory:
        """The memory of supports whose features are known: per layer (K, C_l, h, w); masks (1, K, H, W)."""
        share = downsample_mask(masks, self.backbone.stride)
        return PriorMemory(joint_prior.remember(features, share), bool(share.any()))

    def segment(self, windows: Tensor, memory: PriorMemory) -> Tensor:
        """Segment windows (B, 3, H, W); see `answer`."""
        return self.answer(self.backbone(windows), memory, windows.shape[-2:])

    def answer(self, features: list[Tensor], memory: PriorMemory, size: tuple[int, int]) -> Tensor:
        """Score windows whose features are known.

        Returns:
            (B, *size) float32 in [0, 1], over 0.5 where the best cosine to the foreground exceeds that to the
            background: 0.5 + difference / 4. Without any marked token 0 everywhere: nothing is known of the defect.
        """
        if not memory.marked:
            return features[0].new_zeros(len(features[0]), *size, dtype=torch.float32)
        gap = joint_prior.difference(features, memory.tokens)
        return 0.5 + upsample(gap, size) / 4
