"""Shares, prototypes and priors: parts of a comparison without learning (paper, section 3).

Shapes: B queries, K support views per query, C channels, h x w tokens, F foreground tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

PROTOTYPE_EPS = 0.0005
LENGTH_EPS = 1e-12


def downsample_mask(mask: Tensor, patch: int, by_area: bool = True) -> Tensor:
    """Bring a mask to the token grid: (..., H / patch, W / patch) float32 in [0, 1].

    Args:
        mask: (..., H, W), any dtype, {0, 1}; H and W multiples of `patch`.
        patch: side of a token in pixels.
        by_area: prototype intensity downsampling: the share of foreground pixels, so that one pixel
            leaves 1 / patch^2; False: bilinear interpolation.
    """
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    grid = (mask.shape[-2] // patch, mask.shape[-1] // patch)
    if by_area:
        small = F.avg_pool2d(flat, patch)
    else:
        small = F.interpolate(flat, grid, mode="bilinear", align_corners=True)
    return small.reshape(*mask.shape[:-2], *grid)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring (B, h, w) maps of the token grid to pixels, bilinear: (B, *size)."""
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def layer_prototype(features: Tensor, share: Tensor) -> Tensor:
    """Weighted mean of the foreground, sum(feature * share) / (sum(share) + 0.0005): features
    (..., C, h, w) and shares (..., h, w) to (..., C), zero where nothing is marked.
    """
    weighted = (features * share.unsqueeze(-3)).sum((-2, -1))
    return weighted / (share.sum((-2, -1)).unsqueeze(-1) + PROTOTYPE_EPS)


def unit_tokens(features: Tensor) -> Tensor:
    """Tokens of unit length: (..., C, h, w) to (..., h * w, C)."""
    return F.normalize(features.flatten(-2).transpose(-2, -1), dim=-1)


def side_by_side(features: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """All layers (B, C_l, h, w) as one map (B, sum C_l, h, w) of a type, with the channels of a
    token side by side in memory."""
    widths = [layer.shape[1] for layer in features]
    b, _, h, w = features[0].shape
    joined = torch.empty(b, h, w, sum(widths), dtype=dtype, device=features[0].device)
    joined = joined.permute(0, 3, 1, 2)
    for part, layer in zip(joined.split(widths, dim=1), features, strict=True):
        part.copy_(layer)  # as it is cast: half the time of copies that are then joined
    return joined


def centred(
    tokens: Sequence[Tensor], mean: Sequence[Tensor], lengths: Sequence[Tensor] | None = None
) -> Tensor:
    """Unit tokens over all layers, each layer centred, normalised and of the same weight: per layer
    (B, M, C_l) and means (B or 1, 1, C_l) to (B, M, sum C_l) float32.

    The centre is the mean of the supports: what all of a surface has in common tells no defect.

    Args:
        lengths: per layer (B, M) of tokens that are not of unit length.
    """
    widths = [layer.shape[-1] for layer in tokens]
    shape = (*tokens[0].shape[:2], sum(widths))
    joint = torch.empty(shape, dtype=torch.float32, device=tokens[0].device)
    parts = joint.split(widths, dim=-1)
    # in place: memory that is new for each step takes longer than the steps
    for number, part in enumerate(parts):
        if lengths is None:
            torch.sub(tokens[number], mean[number], out=part)
        else:
            shorter = 1 / lengths[number].unsqueeze(-1)
            torch.addcmul(-mean[number], tokens[number], shorter, out=part)
        length = torch.linalg.vector_norm(part, dim=-1, keepdim=True).clamp(min=LENGTH_EPS)
        part /= length * len(parts) ** 0.5
    return joint


def gather_foreground(tokens: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Keep the tokens (B, M, C) of positive share (B, M): (B, N, C) and shares (B, N), padded with
    such of share 0.
    """
    n = min(int((share > 0).sum(-1).max()) + 1, share.shape[-1])
    weight, index = share.topk(n, dim=-1)
    return taken(tokens, index), weight


def taken(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens (B, n, C) of (B, M, C) at the indices (B, n)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def normal_vote(surroundings: Tensor, images: Sequence[Tensor]) -> Tensor:
    """How much tokens look like normal ones: by their largest similarity to what surrounds the
    supports' defects, of any shape, and to each further image without defect.

    The largest similarity to many tokens grows with their number, also where there is a defect. So
    each image has one vote: the mean of all counts where it exceeds that to the surroundings.
    """
    if not images:
        return surroundings
    return torch.maximum(surroundings, torch.stack([surroundings, *images]).mean(0))
