"""What the supports say about a query without any learning: shares, prototypes and prior maps (paper, section 3).

Shapes: B queries, K supports per query, C channels, h x w tokens, N the largest number of foreground tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.products import Keys

PROTOTYPE_EPS = 0.0005
LENGTH_EPS = 1e-12


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
    small = (
        F.avg_pool2d(flat, patch)
        if by_area
        else F.interpolate(flat, grid, mode="bilinear", align_corners=True)
    )
    return small.reshape(*mask.shape[:-2], *grid)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring (B, h, w) maps of the token grid to pixels, bilinear: (B, *size)."""
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


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


def normal_vote(own: Tensor, images: Sequence[Tensor]) -> Tensor:
    """How much tokens look like normal ones, with further normal images at hand.

    The largest similarity to many tokens grows with their number, also where there is a defect. So each image has one
    vote: the mean of the images' largest similarities, those to the defects' own surroundings among them, where it
    exceeds these. However many images there are, it is at most the larger of `own` and their mean.

    Args:
        own: largest similarity to what surrounds the supports' defects, any shape.
        images: largest similarity to each further image without defect, the same shape.
    """
    return torch.maximum(own, torch.stack([own, *images]).mean(0)) if images else own


def prior_maps(
    queries: Tensor,
    keys: Keys,
    share: Tensor,
    sizes: list[int],
    covered: Tensor,
    weight: Tensor,
    normal: Sequence[Keys] = (),
) -> tuple[Tensor, Tensor]:
    """Semantic and abnormal prior of one layer, from one product of the query with all support tokens.

    The queries' lengths are divided out of the maxima, which is the same and costs less than out of the queries.

    Semantic: how much a token looks like the marked ones, the mean over views of the largest cosine; a view's unmarked
    tokens count as 0. Abnormal: how little it looks like any normal token, 1 - the largest cosine scaled by 1 - share.

    Args:
        queries: (B, M, C) tokens of any length.
        keys: (B or 1, F + N, C) unit tokens, F marked ones in a block per view, then N of share 0.
        share: (B or 1, F) shares of the marked ones.
        sizes: length of each view's block.
        covered: (B or 1, K) bool, views without an unmarked token.
        weight: (B or 1, K) of each view in the mean; 0 leaves it out.
        normal: unit tokens of further images without defect.

    Returns:
        two (B, M) float32.
    """
    own, best_normal = keys.compare(queries, share.shape[-1])
    length = torch.linalg.vector_norm(queries, dim=-1, keepdim=True, dtype=torch.float32).clamp(
        min=LENGTH_EPS
    )
    marked, unmarked = (share > 0).float().unsqueeze(1), (1 - share).unsqueeze(1)
    floor = torch.zeros_like(weight).masked_fill(covered, -torch.inf).unsqueeze(1)
    mean = (weight / weight.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(1)
    best = (
        torch.stack([view.amax(-1) for view in (own * marked).split(sizes, dim=-1)], dim=-1)
        / length
    )
    semantic = (torch.maximum(best, floor) * mean).sum(-1)
    surroundings = torch.maximum((own * unmarked).amax(-1), best_normal)
    return semantic, 1 - normal_vote(
        surroundings, [image.compare(queries)[1] for image in normal]
    ) / length[..., 0]
