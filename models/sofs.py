"""SOFS: frozen backbone, priors and head. Supports are encoded once, then asked as often as there are windows."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.comparison import Comparison
from models.head import Head
from models.priors import downsample_mask, gather_foreground, layer_prototype, upsample
from models.support_tokens import SupportTokens, comparison_dtype, label, ready


@dataclass(frozen=True)
class SupportSummary:
    """What the head keeps of the supports. B is 1 where one set of supports serves every window.

    Attributes:
        weight: (B, K) weight of each view in the means over views.
        prototype: (B, reduce_dim), reduced prototype, mean over views.
        tokens: (B, M, embed_dim), transformed support tokens of the foreground, times how often their view was given.
        shares: (B, M), their shares.
        support_prototype: (B, embed_dim), the classifier.
    """

    weight: Tensor
    prototype: Tensor
    tokens: Tensor
    shares: Tensor
    support_prototype: Tensor


@dataclass(frozen=True)
class SupportMemory:
    """What is kept of the supports.

    Attributes:
        known: tokens to compare with.
        summary: of the head; None where no method has one, or nothing is marked.
        windowed: the defect is small: queries are seen in windows at native resolution, not resized whole.
        thresholds: by method, the probability above which a pixel is defect, where it was chosen on these supports.
    """

    known: SupportTokens
    summary: SupportSummary | None
    windowed: bool = True
    thresholds: dict[str, float] = field(default_factory=dict)


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

    @property
    def needs_joint(self) -> bool:
        """Whether the head takes the joint prior."""
        return self.head.residual_scale is not None

    def shares(self, masks: Tensor) -> Tensor:
        """Share of marked pixels per token: masks (..., H, W) {0, 1} to (..., h, w)."""
        return downsample_mask(masks, self.backbone.stride, self.area_downsampling)

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
        share = self.shares(masks)
        return SupportMemory(
            ready(label(features, share), joint=self.needs_joint), self.summarise(features, share)
        )

    def summarise(
        self, features: list[Tensor], share: Tensor, counts: Tensor | None = None
    ) -> SupportSummary:
        """The head's summary of support views.

        Args:
            features: per layer (B * K, C_l, h, w), batch-major.
            share: (B, K, h, w) share of marked pixels per token.
            counts: (B, K) how often each view was given, where the same one came more than once; None: once.
        """
        b, k = share.shape[:2]
        flat = share.flatten(0, 1)
        weight = torch.ones_like(share[:, :, 0, 0]) if counts is None else counts
        if self.skip_empty_supports:
            weight = weight * share.flatten(2).any(-1)
        prototypes = torch.cat([layer_prototype(f, flat) for f in features], dim=1)
        transformed, reduced = self.head.embed_support(stacked(features), prototypes)
        embedded = transformed.flatten(2).transpose(1, 2).unflatten(0, (b, k))
        if (
            counts is not None
        ):  # what the tokens say is summed up: so much louder is a view that was given often
            embedded = embedded * counts[..., None, None].to(embedded.dtype)
        tokens, shares = gather_foreground(embedded.flatten(1, 2), share.flatten(1))
        return SupportSummary(
            weight=weight,
            prototype=weighted_mean(reduced.unflatten(0, (b, k)), weight),
            tokens=tokens,
            shares=shares,
            support_prototype=self._classifier(transformed, flat, weight),
        )

    def _classifier(self, transformed: Tensor, share: Tensor, weight: Tensor) -> Tensor:
        """Support prototype (B, embed_dim): share-weighted mean of the projected map, mean over supports."""
        if self.head.support_prototype is None:
            return transformed.new_zeros(weight.shape[0], transformed.shape[1])
        own = layer_prototype(self.head.support_prototype(transformed), share)
        return weighted_mean(own.unflatten(0, weight.shape), weight)

    def token_logits(self, compared: Comparison, summary: SupportSummary) -> tuple[Tensor, Tensor]:
        """Log-odds of defect and abnormal prior maps on the token grid: (B, h, w) and (B, L, h, w)."""
        semantic, abnormal = compared.priors(summary.weight)
        priors = torch.cat([semantic, abnormal], dim=1) if self.abnormal_to_head else semantic
        if not self.needs_joint:
            return self._head_logits(compared.features, summary, priors), abnormal
        logits = self._head_logits(
            compared.features, summary, torch.cat([priors, compared.gap.unsqueeze(1)], dim=1)
        )
        return self.head.corrected(compared.gap, logits), abnormal

    def episode_logits(
        self, query: list[Tensor], supports: list[Tensor], support_masks: Tensor
    ) -> Tensor:
        """Log-odds of defect (B, h, w) of queries, from their features, for training."""
        memory = self.remember(supports, support_masks)
        return self.token_logits(Comparison(query, memory.known), memory.summary)[0]

    def _head_logits(
        self, features: list[Tensor], summary: SupportSummary, priors: Tensor
    ) -> Tensor:
        query = self.head.embed_query(stacked(features), summary.prototype, priors)
        return self.head.logits(query, summary.tokens, summary.shares, summary.support_prototype)

    def segment(self, windows: Tensor, memory: SupportMemory) -> Tensor:
        """Segment windows.

        Args:
            windows: (B, 3, H, W) float, normalised.
            memory: of one support set for all windows, or of one per window.

        Returns:
            (B, H, W) float32: probability of defect; where no support pixel is marked, the largest abnormal prior.
        """
        return self.answer(
            Comparison(self.backbone(windows), memory.known), memory.summary, windows.shape[-2:]
        )

    def answer(
        self, compared: Comparison, summary: SupportSummary | None, size: tuple[int, int]
    ) -> Tensor:
        """As `segment`, for windows of `size` that are compared with the supports; the summary may be None where no
        support is marked."""
        if not compared.known.is_marked:
            return upsample(compared.anomaly, size)
        logits, abnormal = self.token_logits(compared, summary)
        probability = upsample(logits.float(), size).sigmoid()
        anomaly = upsample(abnormal.amax(1), size)
        return probability.where(compared.known.share.any(1)[:, None, None], anomaly)


def stacked(features: list[Tensor]) -> Tensor:
    """All layers as one map (B, sum C_l, h, w), in the type that autocast would give it, which costs less before."""
    dtype = comparison_dtype(features[0].device)
    return torch.cat([layer.to(dtype) for layer in features], dim=1)


def join_summaries(parts: list[SupportSummary]) -> SupportSummary:
    """One summary of all views out of several: means by their weights, tokens side by side."""
    joined = {
        f.name: torch.cat([getattr(p, f.name) for p in parts], dim=1)
        for f in fields(SupportSummary)
    }
    totals = torch.stack([p.weight.sum(1) for p in parts], dim=1)
    for name in ("prototype", "support_prototype"):
        joined[name] = weighted_mean(torch.stack([getattr(p, name) for p in parts], dim=1), totals)
    return SupportSummary(**joined)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of (B, K, C) over K with weights (B, K); zero where no weight is left."""
    return (values * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
