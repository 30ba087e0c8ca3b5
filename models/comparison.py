"""What a batch of windows looks like beside the supports: computed once, whichever methods ask."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from models import joint_prior
from models.priors import prior_maps, unit_tokens
from models.support_tokens import SupportTokens


class Comparison:
    """Windows and what their tokens have in common with those of the supports.

    Args:
        features: per layer (B, C_l, h, w) of the windows.
        known: tokens of one support set for all windows, or of one per window.
    """

    def __init__(self, features: list[Tensor], known: SupportTokens) -> None:
        self.features, self.known = features, known
        self.grid = features[0].shape[-2:]

    def priors(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic and abnormal prior maps, each (B, L, h, w) float32.

        Args:
            weight: (B or 1, K) of each support view in the mean of the semantic prior.
        """
        known = self.known
        maps = [
            prior_maps(
                layer.flatten(2).transpose(1, 2),
                keys,
                known.share,
                known.sizes,
                known.covered,
                weight,
                normal,
            )
            for layer, keys, normal in zip(
                self.features, known.ready_keys, known.ready_normal, strict=True
            )
        ]
        semantic, abnormal = (
            torch.stack(layers, 1).unflatten(-1, self.grid) for layers in zip(*maps, strict=True)
        )
        return semantic, abnormal

    @cached_property
    def anomaly(self) -> Tensor:
        """(B, h, w) float32 in [0, 2]: how little a token looks like anything normal, the largest over the layers."""
        return (
            self.priors(torch.zeros_like(self.known.covered, dtype=torch.float32))[1]
            .amax(1)
            .clamp(min=0)
        )

    @cached_property
    def gap(self) -> Tensor:
        """(B, h, w) float32, see `models.joint_prior.difference`; the supports must have been made ready for it."""
        tokens = [unit_tokens(layer.float()) for layer in self.features]
        return joint_prior.difference(tokens, self.known.joint).unflatten(-1, self.grid)
