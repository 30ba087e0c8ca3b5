"""SOFS (arXiv 2407.21351): priors and a trained head on a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from models.backbone import Backbone
from models.comparison import Comparison
from models.head import Head
from models.memory import comparison_type, label
from models.methods import Method
from models.priors import (
    downsample_mask,
    gather_foreground,
    layer_prototype,
    side_by_side,
    upsample,
)


class SOFS(Method):
    """Few-shot defect segmentation with a trained head.

    What it keeps of the supports beside their tokens; B is 1 where one set of supports serves all:
    `weight` (B, K) of each view in means over views; `prototype` (B, reduce_dim), mean over views;
    `tokens` (B, M, embed_dim), transformed foreground tokens, times how often their view was given;
    `shares` (B, M) of these; `support_prototype` (B, embed_dim), the classifier.

    Args:
        backbone: frozen features.
        head: the trained part.
        abnormal_to_head: feed the abnormal prior to the query mixing, beside the semantic prior.
        area_downsampling: bring masks to tokens by area share; False: bilinear interpolation.
        skip_empty_supports: leave a support view without defect pixel out of every mean; False:
            average it in as zero, as published (it dilutes the others' prototype).
    """

    name = "SOFS"
    needs_training = gives_log_odds = True

    def __init__(
        self, backbone: Backbone, head: Head, *, abnormal_to_head: bool = True,
        area_downsampling: bool = True, skip_empty_supports: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(backbone)
        self.head, self.abnormal_to_head = head, abnormal_to_head
        self.area_downsampling, self.skip_empty_supports = area_downsampling, skip_empty_supports

    @classmethod
    def from_config(cls, cfg: CfgNode, backbone: Backbone) -> SOFS:
        """The published architecture by TRAIN.SOFS, with a random head."""
        keys = cfg.TRAIN.SOFS
        head = Head(
            sum(backbone.channels), len(backbone.layers) * (2 if keys.normal_sim_aug else 1),
            reduce_dim=keys.reduce_dim, embed_dim=keys.transformer_embed_dim,
            num_heads=keys.transformer_nums_heads, num_stages=keys.transformer_num_stages,
            temperature=keys.target_semantic_temperature, meta_cls=keys.meta_cls,
            prior_residual=keys.prior_residual,
        )  # fmt: skip
        return cls(
            backbone, head, abnormal_to_head=keys.normal_sim_aug,
            area_downsampling=keys.conv_vit_down_sampling,
            skip_empty_supports=cfg.TEST.protocol == "ours",
        )  # fmt: skip

    def shares(self, masks: Tensor) -> Tensor:
        return downsample_mask(masks, self.backbone.stride, self.area_downsampling)

    def encode(
        self, features: list[Tensor], share: Tensor, counts: Tensor | None = None
    ) -> dict[str, Tensor]:
        b, k = share.shape[:2]
        flat = share.flatten(0, 1)
        weight = torch.ones_like(share[:, :, 0, 0]) if counts is None else counts
        if self.skip_empty_supports:
            weight = weight * share.flatten(2).any(-1)
        prototypes = torch.cat([layer_prototype(f, flat) for f in features], dim=1)
        stacked = side_by_side(features, comparison_type(share.device))
        transformed, reduced = self.head.embed_support(stacked, prototypes)
        embedded = transformed.flatten(2).transpose(1, 2).unflatten(0, (b, k))
        if counts is not None:  # the fusion adds tokens up: a repeated view counts repeatedly
            embedded = embedded * counts[..., None, None].to(embedded.dtype)
        tokens, shares = gather_foreground(embedded.flatten(1, 2), share.flatten(1))
        classifier = transformed.new_zeros(b, transformed.shape[1])
        if self.head.support_prototype is not None:
            each = layer_prototype(self.head.support_prototype(transformed), flat)
            classifier = _weighted_mean(each.unflatten(0, (b, k)), weight)
        prototype = _weighted_mean(reduced.unflatten(0, (b, k)), weight)
        return {
            "weight": weight, "prototype": prototype, "tokens": tokens, "shares": shares,
            "support_prototype": classifier,
        }  # fmt: skip

    def join(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Means over all views by their weights, tokens side by side."""
        joined = super().join(parts)
        totals = torch.stack([part["weight"].sum(1) for part in parts], dim=1)
        for name in ("prototype", "support_prototype"):
            joined[name] = _weighted_mean(torch.stack([p[name] for p in parts], dim=1), totals)
        return joined

    def token_logits(self, compared: Comparison, kept: dict[str, Tensor]) -> Tensor:
        """Log-odds of defect (B, h, w); `kept`: of `encode`."""
        priors = [compared.semantic_prior(kept["weight"])]
        if self.abnormal_to_head:
            priors.append(compared.abnormal_prior)
        if self.head.prior_residual:
            priors.append(compared.score.unsqueeze(1))
        maps = torch.cat(priors, dim=1)
        query = self.head.embed_query(compared.stacked, kept["prototype"], maps)
        logits = self.head.logits(query, kept["tokens"], kept["shares"], kept["support_prototype"])
        if self.head.prior_residual:
            logits = self.head.corrected(compared.score, logits)
        return logits

    def episode_logits(
        self, query: list[Tensor], supports: list[Tensor], support_masks: Tensor
    ) -> Tensor:
        """Log-odds (B, h, w) of a training batch, on the token grid."""
        share = self.shares(support_masks)
        memory = label(supports, share).in_type(comparison_type(share.device))
        return self.token_logits(Comparison(query, memory), self.encode(supports, share))

    def answer(self, compared: Comparison, size: tuple[int, int]) -> Tensor:
        """Probability of defect; where no support pixel is marked, the largest abnormal prior."""
        memory = compared.memory
        if not memory.is_marked:
            return upsample(compared.anomaly, size)
        logits = self.token_logits(compared, memory.extras[self.name])
        probability = upsample(logits.float(), size).sigmoid()
        if len(memory.share) == 1:
            return probability
        marked = memory.share.any(1)[:, None, None]
        return probability.where(marked, upsample(compared.anomaly, size))


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of (B, K, C) over K with weights (B, K); zero where no weight is left."""
    return (values * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)
