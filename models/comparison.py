"""What a batch of windows has in common with a memory: computed once, whichever methods ask."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from models.memory import Memory
from models.priors import centred, normal_vote, unit_tokens
from models.score import score

LENGTH_EPS = 1e-12


class Comparison:
    """Windows, per layer (B, C_l, h, w), beside one memory for all, or one support set for each."""

    def __init__(self, features: list[Tensor], memory: Memory) -> None:
        self.features, self.memory, self.grid = features, memory, features[0].shape[-2:]

    def priors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic and abnormal prior maps (paper, section 3.2), each (B, L, h, w) float32.

        Semantic: how much a token looks like the foreground, the mean over views of the largest
        cosine scaled by the share; a view's background counts as 0. Abnormal: how little it looks
        like any normal token, 1 - the largest cosine scaled by 1 - share. The queries' lengths are
        divided out of the maxima, which is the same and costs less than out of the queries.

        Args:
            weight: (B or 1, K) of each view in the mean of the semantic prior; 0 leaves it out.
        """
        memory, semantic, abnormal = self.memory, [], []
        share, count = memory.share, memory.share.shape[-1]
        marked, unmarked = (share > 0).float().unsqueeze(1), (1 - share).unsqueeze(1)
        floor = torch.zeros_like(weight).masked_fill(memory.covered, -torch.inf).unsqueeze(1)
        mean = (weight / weight.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(1)
        for layer, keys, normal in zip(self.features, memory.keys, memory.normal_keys, strict=True):
            queries = layer.flatten(2).transpose(1, 2)
            foreground, background = keys.compare(queries, count)
            length = torch.linalg.vector_norm(queries, dim=-1, dtype=torch.float32)
            length = length.clamp(min=LENGTH_EPS)
            best = self.by_view(foreground * marked) / length.unsqueeze(-1)
            semantic.append((torch.maximum(best, floor) * mean).sum(-1))
            surroundings = torch.maximum((foreground * unmarked).amax(-1), background)
            vote = normal_vote(surroundings, [image.compare(queries)[1] for image in normal])
            abnormal.append(1 - vote / length)
        return tuple(torch.stack(maps, 1).unflatten(-1, self.grid) for maps in (semantic, abnormal))

    def by_view(self, values: Tensor) -> Tensor:
        """The largest value in each view: (B, N, F) of the foreground tokens to (B, N, K)."""
        views = values.split(self.memory.sizes, dim=-1)
        return torch.stack([view.amax(-1) for view in views], dim=-1)

    @cached_property
    def anomaly(self) -> Tensor:
        """(B, h, w) float32 in [0, 2]: the largest abnormal prior over all layers."""
        nothing = torch.zeros_like(self.memory.covered, dtype=torch.float32)
        return self.priors(nothing)[1].amax(1).clamp(min=0)

    @cached_property
    def score(self) -> Tensor:
        """(B, h, w) float32, see `models.score`."""
        return score(self.features, self.memory)

    @cached_property
    def joint_prior(self) -> Tensor:
        """(B, h, w) float32 in [-2, 2]: best cosine to the foreground less that to the background.

        The cosines are over all layers at once, see `models.priors.centred`, and of further normal
        images each has a vote, see `models.priors.normal_vote`.
        """
        queries = centred([unit_tokens(m.float()) for m in self.features], self.memory.mean)
        foreground, background, *normal = self.memory.joint_keys
        votes = [image.compare(queries)[1] for image in normal]
        similarity = normal_vote(background.compare(queries)[1], votes)
        return (foreground.compare(queries)[1] - similarity).unflatten(-1, self.grid)
