"""What a batch of windows has in common with a memory: computed once, whichever methods ask."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from models.memory import Memory
from models.priors import LENGTH_EPS, centred, normal_vote, side_by_side
from models.score import score
from models.similarity import Keys, mean_of

NEAREST = 3  # background tokens that a similarity is the mean of, where one is too much chance


class Comparison:
    """Windows, per layer (B, C_l, h, w), beside one memory for all, or one support set for each."""

    def __init__(self, features: list[Tensor], memory: Memory) -> None:
        self.features, self.memory, self.grid = features, memory, features[0].shape[-2:]

    @cached_property
    def stacked(self) -> Tensor:
        """The windows' tokens as they are, all layers side by side: (B, sum C_l, h, w) in the type
        of the memory's tokens."""
        return side_by_side(self.features, self.memory.foreground[0].dtype)

    @cached_property
    def _lengths(self) -> list[Tensor]:
        """Per layer the lengths of the windows' tokens, (B, N) float32."""
        lengths = (torch.linalg.vector_norm(layer.float(), dim=1) for layer in self.features)
        return [length.flatten(1).clamp(min=LENGTH_EPS) for length in lengths]

    @cached_property
    def joint_tokens(self) -> Tensor:
        """(B, N, C) float32 over all layers, see `models.priors.centred`."""
        tokens = [layer.float().flatten(2).transpose(1, 2) for layer in self.features]
        return centred(tokens, self.memory.mean, self._lengths)

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer the windows' tokens (B, N, C_l) in the type of the memory's, and their lengths
        (B, N), which cost less to divide out of largest products than out of tokens."""
        tokens = self.stacked.flatten(2).transpose(1, 2)
        parts = tokens.split([layer.shape[1] for layer in self.features], dim=-1)
        return list(zip(parts, self._lengths, strict=True))

    def semantic_prior(self, weight: Tensor) -> Tensor:
        """How much a token looks like the foreground (paper, section 3.2): per layer the mean over
        views of the largest cosine scaled by the share, (B, L, h, w) float32; a view's background
        counts as 0.

        Args:
            weight: (B or 1, K) of each view in the mean; 0 leaves it out.
        """
        floor = torch.zeros_like(weight).masked_fill(self.memory.covered, -torch.inf).unsqueeze(1)
        mean = (weight / weight.sum(-1, keepdim=True).clamp(min=1)).unsqueeze(1)
        maps = [(torch.maximum(b, floor) * mean).sum(-1) for b, _ in self._beside_foreground]
        return torch.stack(maps, 1).unflatten(-1, self.grid)

    @cached_property
    def abnormal_prior(self) -> Tensor:
        """How little a token looks like any normal one (paper, section 3.2): per layer 1 - the
        largest cosine scaled by 1 - share, (B, L, h, w) float32."""
        memory, maps = self.memory, []
        for number, (_, partly) in enumerate(self._beside_foreground):
            tokens, length = self._layers[number]
            background, *images = (
                Keys(image[number]).largest(tokens, 1)[..., 0] / length
                for image in (memory.background, *memory.normal)
            )
            maps.append(1 - normal_vote(torch.maximum(partly, background), images))
        return torch.stack(maps, 1).unflatten(-1, self.grid)

    @cached_property
    def _beside_foreground(self) -> list[tuple[Tensor, Tensor]]:
        """Per layer the largest cosines of the windows' tokens to the foreground: to what is
        marked, in each view (B, N, K), and of all scaled by 1 - share (B, N)."""
        share, maxima = self.memory.share.unsqueeze(1), []
        for (tokens, length), keys in zip(self._layers, self.memory.foreground, strict=True):
            products = Keys(keys).products(tokens) / length.unsqueeze(-1)
            best = self.by_view(products * (share > 0).float())
            maxima.append((best, (products * (1 - share)).amax(-1)))
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
    def contrast(self) -> Tensor:
        """(B, N) float32: the largest cosine to the foreground less the mean of the nearest three
        of the background, over all layers; normal images vote on what is background, see
        `models.priors.normal_vote`."""
        foreground, background, *normal = map(mean_of, self._joint_largest)
        return foreground - normal_vote(background, normal)

    @cached_property
    def score(self) -> Tensor:
        """(B, h, w) float32, see `models.score`."""
        return score(self.contrast, self.joint_tokens, self.memory).unflatten(-1, self.grid)

    @cached_property
    def joint_prior(self) -> Tensor:
        """(B, h, w) float32 in [-2, 2]: as contrast, but to the nearest of the background alone."""
        foreground, background, *normal = (largest[..., 0] for largest in self._joint_largest)
        return (foreground - normal_vote(background, normal)).unflatten(-1, self.grid)

    @cached_property
    def _joint_largest(self) -> list[Tensor]:
        """The largest cosines of the windows' tokens over all layers, see `models.priors.centred`,
        in descending order: (B, N, 1) to the foreground, then (B, N, 3) to the background and to
        each normal image."""
        foreground, *background = self.memory.joint_keys
        tokens = self.joint_tokens.to(foreground.tokens.dtype)
        nearest = [keys.largest(tokens, NEAREST) for keys in background]
        return [foreground.largest(tokens, 1), *nearest]
