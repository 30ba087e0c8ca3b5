"""What a batch of windows has in common with a memory: computed once, whichever methods ask."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from models.memory import Memory
from models.priors import LENGTH_EPS, centred, normal_vote, unit_tokens
from models.score import score
from models.similarity import Keys


class Comparison:
    """Windows, per layer (B, C_l, h, w), beside one memory for all, or one support set for each."""

    def __init__(self, features: list[Tensor], memory: Memory) -> None:
        self.features, self.memory, self.grid = features, memory, features[0].shape[-2:]

    def semantic_prior(self, weight: Tensor) -> Tensor:
        """How much a token looks like the foreground (paper, section 3.2): per layer the mean over
        views of the largest cosine scaled by the share, (B, L, h, w) float32; a view's background
        counts as 0.

        Args:
            weight: (B or 1, K) of each view in the mean; 0 leaves it out.
        """
        floor = torch.zeros_like(weight).masked_fill(self.memory.covered, -torch.inf).unsqueeze(1)
        mean = (weight / weight.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(1)
        maps = [
            (torch.maximum(best / length.unsqueeze(-1), floor) * mean).sum(-1)
            for length, best, _ in self._beside_foreground
        ]
        return torch.stack(maps, 1).unflatten(-1, self.grid)

    @cached_property
    def abnormal_prior(self) -> Tensor:
        """How little a token looks like any normal one (paper, section 3.2): per layer 1 - the
        largest cosine scaled by 1 - share, (B, L, h, w) float32."""
        memory, maps = self.memory, []
        for number, (length, _, partly) in enumerate(self._beside_foreground):
            queries = self.features[number].flatten(2).transpose(1, 2)
            background, *images = (
                Keys(image[number]).nearest(queries, 1)
                for image in (memory.background, *memory.normal)
            )
            vote = normal_vote(torch.maximum(partly, background), images)
            maps.append(1 - vote / length)
        return torch.stack(maps, 1).unflatten(-1, self.grid)

    @cached_property
    def _beside_foreground(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per layer the lengths of the windows' tokens (B, N), and their largest products with the
        foreground: with what is marked, in each view (B, N, K), and of all scaled by 1 - share
        (B, N). Lengths are divided out of maxima, which is the same and costs less than out of
        tokens."""
        share, maxima = self.memory.share.unsqueeze(1), []
        for layer, foreground in zip(self.features, self.memory.foreground, strict=True):
            queries = layer.flatten(2).transpose(1, 2)
            length = torch.linalg.vector_norm(queries, dim=-1, dtype=torch.float32)
            products = Keys(foreground).products(queries)
            best = self.by_view(products * (share > 0).float())
            partly = (products * (1 - share)).amax(-1)
            maxima.append((length.clamp(min=LENGTH_EPS), best, partly))
        return maxima

    def by_view(self, values: Tensor) -> Tensor:
        """The largest value in each view: (B, N, F) of the foreground tokens to (B, N, K)."""
        views = values.split(self.memory.sizes, dim=-1)
        return torch.stack([view.amax(-1) for view in views], dim=-1)

    @property
    def anomaly(self) -> Tensor:
        """(B, h, w) float32 in [0, 2]: the largest abnormal prior over all layers."""
        return self.abnormal_prior.amax(1).clamp(min=0)

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
        votes = [image.nearest(queries, 1) for image in normal]
        similarity = normal_vote(background.nearest(queries, 1), votes)
        return (foreground.nearest(queries, 1) - similarity).unflatten(-1, self.grid)
