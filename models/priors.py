"""What the supports say about a query without any learning: shares, prototypes and prior maps (paper, section 3).

Shapes: B queries, K supports per query, C channels, h x w tokens, N the largest number of foreground tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PROTOTYPE_EPS = 0.0005
CHUNK = 1 << 22


def downsample_mask(mask: Tensor, patch: int, by_area: bool = True) -> Tensor:
    """Bring a mask to the token grid.

    Args:
        mask: (..., H, W), any dtype, {0, 1}; H and W multiples of `patch`.
        patch: side of a token in pixels.
        by_area: prototype intensity downsampling: the share of foreground pixels, so that one pixel leaves
            1 / patch^2; False: bilinear interpolation.

    Returns:
        (..., H / patch, W / patch) float32 in [0, 1].
    """
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    grid = (mask.shape[-2] // patch, mask.shape[-1] // patch)
    small = F.avg_pool2d(flat, patch) if by_area else F.interpolate(flat, grid, mode="bilinear", align_corners=True)
    return small.reshape(*mask.shape[:-2], *grid)


def layer_prototype(features: Tensor, share: Tensor) -> Tensor:
    """Weighted mean of the foreground: sum(feature * share) / (sum(share) + 0.0005).

    Args:
        features: (..., C, h, w).
        share: (..., h, w).

    Returns:
        (..., C); zero where nothing is marked.
    """
    weighted = (features * share.unsqueeze(-3)).sum((-2, -1))
    return weighted / (share.sum((-2, -1)).unsqueeze(-1) + PROTOTYPE_EPS)


def unit_tokens(features: Tensor) -> Tensor:
    """Tokens of unit length: (..., C, h, w) to (..., h * w, C)."""
    return F.normalize(features.flatten(-2).transpose(-2, -1), dim=-1)


def gather_foreground(tokens: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the tokens of positive share; background tokens weigh nothing in what follows.

    Args:
        tokens: (B, M, C).
        share: (B, M).

    Returns:
        tokens (B, N, C) and shares (B, N), padded with share 0, so that the largest product with a share keeps the 0
        of the background wherever there is background.
    """
    n = min(int((share > 0).sum(-1).max()) + 1, share.shape[-1])
    weight, index = share.topk(n, dim=-1)
    return tokens.gather(-2, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])), weight


def best_similarity(queries: Tensor, keys: Tensor) -> Tensor:
    """Largest dot product of each query token with any key, computed in pieces of bounded memory.

    Args:
        queries: (B, M, C).
        keys: (B or 1, N, C).

    Returns:
        (B, M) float32. Under autocast the products are taken in its type: the inputs have unit length, so half
        precision moves a similarity by a few thousandths.
    """
    device = queries.device.type
    if torch.is_autocast_enabled(device):
        queries, keys = (t.to(torch.get_autocast_dtype(device)) for t in (queries, keys))
    rows = max(1, CHUNK // (queries.shape[0] * keys.shape[-2]))
    transposed = keys.transpose(-2, -1)
    return torch.cat([(part @ transposed).amax(-1) for part in queries.split(rows, dim=-2)], dim=-1).float()


def semantic_prior(query: Tensor, foreground: Tensor, valid: Tensor) -> Tensor:
    """How much a query token looks like the marked tokens.

    Args:
        query: (B, M, C) unit tokens.
        foreground: (B or 1, K, N, C) unit tokens, zero where `gather_foreground` padded.
        valid: (B or 1, K) weights of the supports; a support of weight 0 is left out of the mean.

    Returns:
        (B, M): mean over supports of the largest cosine; the padding, like the background, counts as 0.
    """
    best = torch.stack([best_similarity(query, foreground[:, k]) for k in range(foreground.shape[1])], dim=1)
    return (best * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def abnormal_prior(query: Tensor, background: Tensor) -> Tensor:
    """How little a query token looks like any normal token.

    Args:
        query: (B, M, C) unit tokens.
        background: (B or 1, K * h * w, C) unit tokens of all supports scaled by 1 - share.

    Returns:
        (B, M): 1 - the largest scaled cosine.
    """
    return 1 - best_similarity(query, background)
