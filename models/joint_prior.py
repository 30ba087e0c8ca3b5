"""Which labelled token a query token resembles most, over all layers at once: the prior without training.

Tokens are centred on the mean of the supports before the cosine is taken: what all of a surface has in common says
nothing about its defects. Each layer is normalised on its own, so that each has the same say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.priors import normal_vote
from models.products import Keys, as_keys, best_similarity

MOSTLY = 0.5


@dataclass(frozen=True)
class JointTokens:
    """Labelled tokens over all layers. B is 1 where one set of supports serves every query, C the sum of all C_l.

    Attributes:
        centre: per layer (B, 1, C_l) mean token of the supports.
        foreground: (B, F, C) unit tokens that are mostly marked, or the most marked of their view, repeated up to F.
        background: (B, M, C) unit tokens without a marked pixel, or zero.
        normal: of each further image without defect, (1, N, C) unit tokens.
    """

    centre: list[Tensor]
    foreground: Keys
    background: Keys
    normal: list[Keys]


def prepare(
    keys: list[Tensor],
    share: Tensor,
    sizes: list[int],
    centre: list[Tensor],
    normal: Sequence[list[Tensor]] = (),
) -> JointTokens:
    """Labelled tokens over all layers, see `models.support_tokens.LabelledTokens`.

    Args:
        keys: per layer (B, F + M, C_l) unit tokens, the F marked ones first, in the type of the comparison.
        share: (B, F) their shares of marked pixels.
        sizes: length of each view's block of marked tokens.
        centre: per layer (B, 1, C_l).
        normal: of each further image without defect, per layer (1, N, C_l).
    """
    tokens, f = centred(keys, centre), share.shape[1]
    every = torch.arange(f, device=share.device).expand_as(share)
    index = every.where(_typical(share, sizes), share.argmax(1, keepdim=True))
    foreground = tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    background = tokens[:, f:] * keys[0][:, f:].any(-1, keepdim=True)
    dtype = keys[0].dtype
    further = [as_keys(centred(image, centre).to(dtype)) for image in normal]
    return JointTokens(
        centre, as_keys(foreground.to(dtype)), as_keys(background.to(dtype)), further
    )


def difference(tokens: list[Tensor], known: JointTokens) -> Tensor:
    """Best cosine to the foreground minus best cosine to the background, see `normal_vote` for normal images.

    Args:
        tokens: per layer (B, M, C_l) unit tokens of the queries.
        known: of one support set for all, or of one per query.

    Returns:
        (B, M) float32 in [-2, 2]; over 0 where a token looks more like the marked ones.
    """
    query = centred(tokens, known.centre)
    background = best_similarity(query, known.background)
    background = normal_vote(background, [best_similarity(query, image) for image in known.normal])
    return best_similarity(query, known.foreground) - background


def centred(tokens: list[Tensor], centre: list[Tensor]) -> Tensor:
    """Per layer (B, M, C_l) to (B, M, C) of unit length, each layer centred and with the same say."""
    parts = [F.normalize(t.float() - c, dim=-1) for t, c in zip(tokens, centre, strict=True)]
    return torch.cat(parts, dim=-1) / len(parts) ** 0.5


def _typical(share: Tensor, sizes: list[int]) -> Tensor:
    """(B, F) bool: mostly marked tokens, and the most marked ones of each view."""
    views = [
        view >= view.amax(-1, keepdim=True).clamp(max=MOSTLY) for view in share.split(sizes, dim=-1)
    ]
    return torch.cat(views, dim=-1) & (share > 0)
