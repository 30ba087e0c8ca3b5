"""A small set of tokens that stands for many: none of the many is far from all of the small set.

The tokens are drawn in rounds, each with a probability that grows with the squared distance to those drawn so far
(k-means||, Bahmani et al. 2012), which costs a few matrix products where farthest-point search takes a step per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH = 128
ROUNDS = 16
SEED = 54


def coreset(layers: list[Tensor], size: int) -> Tensor:
    """Choose tokens; the same ones for the same input.

    Args:
        layers: per layer (M, C_l) float, each with the same say.
        size: how many to choose, at most M.

    Returns:
        (size,) int64 indices, ascending.
    """
    points = _projected(layers)
    draw = torch.Generator().manual_seed(SEED)
    far = torch.full((len(points),), torch.inf, device=points.device)
    chosen: list[Tensor] = []
    for number in range(ROUNDS):
        count = size * (number + 1) // ROUNDS - size * number // ROUNDS
        new = _drawn(far, count, draw)
        chosen.append(new)
        far = torch.minimum(far, torch.cdist(points, points[new]).amin(1)) if count else far
        far[new] = 0
    return torch.cat(chosen).sort().values


def _projected(layers: list[Tensor]) -> Tensor:
    """Tokens (M, WIDTH) whose distances are about those over all layers together (Johnson and Lindenstrauss)."""
    draw = torch.Generator().manual_seed(SEED)
    projected = 0
    for layer in layers:
        axes = torch.randn(layer.shape[1], WIDTH, generator=draw) / WIDTH**0.5
        projected = projected + layer.float() @ axes.to(layer.device)
    return projected


def _drawn(far: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Indices of `count` tokens, none twice, by chances in proportion to `far` squared (Gumbel's trick)."""
    noise = -torch.log(-torch.log(torch.rand(len(far), generator=draw).clamp(1e-12, 1 - 1e-7)))
    chance = 2 * far.clamp(max=1e6).log()
    return (chance + noise.to(far.device)).topk(count).indices
