"""SOFS: frozen backbone, priors and head. Supports are encoded once, then asked as often as there are windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import joint_prior
from models.backbone import Backbone
from models.head import Head
from models.joint_prior import JointMemory
from models.priors import (
    abnormal_prior,
    downsample_mask,
    gather_foreground,
    layer_prototype,
    semantic_prior,
    unit_tokens,
)


@dataclass(frozen=True)
class SupportMemory:
    """What is kept of the supports. B is 1 where one set of supports serves every window.

    Attributes:
        marked: (B,) bool, whether any support has a marked pixel.
        weight: (B, K) weight of each support in the means over supports.
        foreground: per layer (B, K, N, C_l), unit tokens of positive share, padded with zeros.
        background: per layer (B, K * h * w, C_l), unit tokens scaled by 1 - share.
        prototype: (B, reduce_dim), reduced prototype, mean over supports.
        tokens: (B, M, embed_dim), transformed support tokens of the foreground.
        shares: (B, M), their shares.
        support_prototype: (B, embed_dim), the classifier.
        joint: labelled tokens over all layers, where the head takes the joint prior.
    """

    marked: Tensor
    weight: Tensor
    foreground: list[Tensor]
    background: list[Tensor]
    prototype: Tensor
    tokens: Tensor
    shares: Tensor
    support_prototype: Tensor
    joint: JointMemory | None


class SOFS(nn.Module):
    """Few-shot defect segmentation (arXiv 2407.21351).

    Args:
        backbone: frozen features.
        head: the trained part.
        abnormal_to_head: feed the abnormal prior to the query mixing, beside the semantic prior.
        area_downsampling: bring masks to tokens by area share (True) or bilinear interpolation.
        skip_empty_supports: leave a support view without defect pixel out of every mean. False averages it in as
            zero, which is what the published code does (it dilutes the prototype of the others).
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head,
        *,
        abnormal_to_head: bool = True,
        area_downsampling: bool = True,
        skip_empty_supports: bool = True,
    ) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.abnormal_to_head = abnormal_to_head
        self.area_downsampling = area_downsampling
        self.skip_empty_supports = skip_empty_supports

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportMemory:
        """Encode supports once.

        Args:
            images: (B, K, 3, H, W) float, normalised.
            masks: (B, K, H, W), {0, 1}.

        Returns:
            The memory that `segment` asks.
        """
        return self.remember(self.backbone(images.flatten(0, 1)), masks)

    def remember(self, features: list[Tensor], masks: Tensor) -> SupportMemory:
        """The memory of supports whose features are known: per layer (B * K, C_l, h, w), batch-major."""
        b, k = masks.shape[:2]
        share = downsample_mask(masks, self.backbone.stride, self.area_downsampling)
        flat = share.flatten(0, 1)
        valid = (share.flatten(2).sum(-1) > 0).float()
        weight = valid if self.skip_empty_supports else torch.ones_like(valid)
        foreground, background = zip(*(_split(unit_tokens(f.float()), flat, b) for f in features), strict=True)
        joint = joint_prior.remember(features, share) if self.head.residual_scale is not None else None
        prototypes = torch.cat([layer_prototype(f, flat) for f in features], dim=1)
        transformed, reduced = self.head.embed_support(torch.cat(features, dim=1), prototypes)
        tokens, shares = gather_foreground(
            transformed.flatten(2).transpose(1, 2).unflatten(0, (b, k)).flatten(1, 2), share.flatten(1)
        )
        return SupportMemory(
            marked=valid.any(1),
            weight=weight,
            foreground=list(foreground),
            background=list(background),
            prototype=weighted_mean(reduced.unflatten(0, (b, k)), weight),
            tokens=tokens,
            shares=shares,
            support_prototype=self._classifier(transformed, flat, weight),
            joint=joint,
        )

    def _classifier(self, transformed: Tensor, share: Tensor, weight: Tensor) -> Tensor:
        """Support prototype (B, embed_dim): share-weighted mean of the projected map, mean over supports."""
        if self.head.support_prototype is None:
            return transformed.new_zeros(weight.shape[0], transformed.shape[1])
        own = layer_prototype(self.head.support_prototype(transformed), share)
        return weighted_mean(own.unflatten(0, weight.shape), weight)

    def priors(self, features: list[Tensor], memory: SupportMemory) -> tuple[Tensor, Tensor]:
        """Semantic and abnormal prior maps of queries, each (B, L, h, w) float32."""
        grid = features[0].shape[-2:]
        tokens = [unit_tokens(f.float()) for f in features]
        semantic = [semantic_prior(t, f, memory.weight) for t, f in zip(tokens, memory.foreground, strict=True)]
        abnormal = [abnormal_prior(t, g) for t, g in zip(tokens, memory.background, strict=True)]
        return torch.stack(semantic, 1).unflatten(-1, grid), torch.stack(abnormal, 1).unflatten(-1, grid)

    def token_logits(self, features: list[Tensor], memory: SupportMemory) -> tuple[Tensor, Tensor]:
        """Log-odds of defect and abnormal prior maps on the token grid: (B, h, w) and (B, L, h, w)."""
        semantic, abnormal = self.priors(features, memory)
        priors = torch.cat([semantic, abnormal], dim=1) if self.abnormal_to_head else semantic
        if memory.joint is None:
            return self._head_logits(features, memory, priors), abnormal
        gap = joint_prior.difference(features, memory.joint)
        logits = self._head_logits(features, memory, torch.cat([priors, gap.unsqueeze(1)], dim=1))
        return self.head.own_scale * logits.float() + self.head.residual_scale * gap, abnormal

    def _head_logits(self, features: list[Tensor], memory: SupportMemory, priors: Tensor) -> Tensor:
        query = self.head.embed_query(torch.cat(features, dim=1), memory.prototype, priors)
        return self.head.logits(query, memory.tokens, memory.shares, memory.support_prototype)

    def segment(self, windows: Tensor, memory: SupportMemory) -> Tensor:
        """Segment windows.

        Args:
            windows: (B, 3, H, W) float, normalised.
            memory: of one support set for all windows, or of one per window.

        Returns:
            (B, H, W) float32: probability of defect; where no support pixel is marked, the largest abnormal prior.
        """
        return self.answer(self.backbone(windows), memory, windows.shape[-2:])

    def answer(self, features: list[Tensor], memory: SupportMemory, size: tuple[int, int]) -> Tensor:
        """As `segment`, for windows of `size` whose features are known."""
        logits, abnormal = self.token_logits(features, memory)
        probability = upsample(logits.float(), size).sigmoid()
        anomaly = upsample(abnormal.amax(1), size)
        return probability.where(memory.marked[:, None, None], anomaly)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of (B, h, w) maps."""
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of (B, K, C) over K with weights (B, K); zero where no weight is left."""
    return (values * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)


def _split(tokens: Tensor, share: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Unit tokens (B * K, h * w, C) to those of positive share, and to all scaled by the share of background."""
    flat = share.flatten(1)
    foreground, weight = gather_foreground(tokens, flat)
    background = tokens * (1 - flat).unsqueeze(-1)
    return (foreground * (weight > 0).unsqueeze(-1)).unflatten(0, (batch, -1)), background.unflatten(
        0, (batch, -1)
    ).flatten(1, 2)
