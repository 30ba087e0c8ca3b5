"""Which labelled token a query token resembles most, over all layers at once: the prior without training.

Tokens are centred on the mean of the supports before the cosine is taken: what all of a surface has in common says
nothing about its defects. Each layer is normalised on its own, so that each has the same say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.priors import best_similarity

MOSTLY = 0.5


@dataclass(frozen=True)
class JointMemory:
    """Labelled tokens of all supports. B is 1 where one set of supports serves every query.

    Attributes:
        centre: (B, 1, C) mean token of the supports.
        foreground: (B, N, C) unit tokens that are mostly marked, or the most marked of their view; repeated up to N.
        background: (B, M, C) unit tokens without a marked pixel, one of them in the place of every other token.
        channels: C of each layer.
    """

    centre: Tensor
    foreground: Tensor
    background: Tensor
    channels: list[int]


def remember(features: list[Tensor], share: Tensor) -> JointMemory:
    """Labelled tokens of supports.

    Args:
        features: per layer (B * K, C_l, h, w), batch-major.
        share: (B, K, h, w) share of marked pixels per token.
    """
    channels = [f.shape[1] for f in features]
    raw = _concatenated(features).unflatten(0, share.shape[:2]).flatten(1, 2)
    centre = raw.mean(1, keepdim=True)
    return JointMemory(centre, *_labelled(_centred(raw, centre, channels), share.flatten(2)), channels)


def difference(features: list[Tensor], memory: JointMemory) -> Tensor:
    """Best cosine to the foreground minus best cosine to the background.

    Args:
        features: per layer (B, C_l, h, w) of the queries.
        memory: of one support set for all, or of one per query.

    Returns:
        (B, h, w) float32 in [-2, 2]; over 0 where a token looks more like the marked ones.
    """
    tokens = _centred(_concatenated(features), memory.centre, memory.channels)
    gap = best_similarity(tokens, memory.foreground) - best_similarity(tokens, memory.background)
    return gap.unflatten(-1, features[0].shape[-2:])


def _concatenated(features: list[Tensor]) -> Tensor:
    """Per layer (B, C_l, h, w) to (B, h * w, sum C_l) float32, unit length within each layer."""
    return torch.cat([F.normalize(f.float(), dim=1) for f in features], dim=1).flatten(2).transpose(1, 2)


def _centred(tokens: Tensor, centre: Tensor, channels: list[int]) -> Tensor:
    parts = (tokens - centre).split(channels, dim=-1)
    return torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1) / len(channels) ** 0.5


def _labelled(tokens: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Foreground (B, N, C) and background (B, M, C) of (B, M, C) tokens with shares (B, K, h * w).

    A token is replaced, not dropped, so that the sizes fit: a repeated token changes no maximum.
    """
    typical = share.where(share >= share.amax(-1, keepdim=True).clamp(max=MOSTLY), 0).flatten(1)
    share = share.flatten(1)
    weight, index = typical.topk(max(1, int((typical > 0).sum(-1).max())), dim=-1)
    index = index.where(weight > 0, index[:, :1])
    foreground = tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    normal = share.argmin(-1)
    filler = tokens[torch.arange(len(tokens), device=tokens.device), normal].unsqueeze(1)
    return foreground, tokens.where(share.unsqueeze(-1) == 0, filler)
