"""Relations: maps that tell how the tokens of a window relate to a memory and to each other.

Unlike features they mean the same on every surface, so that what a head learns on them carries over
to surfaces and defects that it has not seen.

Shapes: B windows, L layers, N tokens of a window, C channels of all layers together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.memory import Memory
from models.priors import centred, normal_vote, unit_tokens

ROWS = 256  # tokens of a window that are compared at once, so that the products stay in the cache
NEAREST = 3  # tokens that a similarity is the mean of, where a single one is too much chance
SURE, LEAST = 0.5, 0.05  # a sure token has this share of the window's largest contrast, and so much
STEP = 3  # every so many tokens of a window one stands for what is common in it
CONTRAST, SELF_SUPPORT, COMMON = -4, -2, -1  # maps among those of `relations`


def count(layers: int) -> int:
    """Number of the maps of `relations`."""
    return 3 * layers + 8


def relations(features: list[Tensor], memory: Memory) -> Tensor:
    """Relation maps (B, 3 L + 8, h, w) float32 of windows, per layer (B, C_l, h, w), to one memory
    for all, or to one support set each.

    All are of cosines of tokens from which the supports' mean is taken, see
    `models.priors.centred`, in this order:

    - per layer the largest to the foreground; the largest to the background; their difference;
    - over all layers the largest to the foreground, the mean of the nearest three; the largest to
      the background, the mean of the nearest three;
    - contrast: the largest to the foreground less the nearest three of the background;
    - cosine to the mean foreground less that to the mean background;
    - self-support: the same, with the window's sure tokens joined to the foreground, and the half
      of the window's tokens of least contrast in place of the background (SSP, Fan et al. 2022);
      0 in a window without a sure token, in which there is most likely nothing;
    - how common a token is in the window: the nearest three among a third of that half.

    Normal images vote on what is background, see `models.priors.normal_vote`.
    """
    tokens = [unit_tokens(layer.float()) for layer in features]
    joint = centred(tokens, memory.mean)
    maps = _compared(joint, memory)
    foreground, background = memory.prototypes
    contrast = maps[..., -4] - maps[..., -1]
    to_foreground, to_background = ((joint * p).sum(-1) for p in (foreground, background))
    own = _of_window(joint, contrast, foreground)
    further = torch.stack([contrast, to_foreground - to_background, *own], dim=-1)
    return torch.cat([maps, further], -1).transpose(1, 2).unflatten(2, features[0].shape[-2:])


def _compared(joint: Tensor, memory: Memory) -> Tensor:
    """Similarities (B, N, 3 L + 4) of tokens (B, N, C) with a memory, see `relations`."""
    keys, layers, rows = memory.relation_keys, len(memory.mean), []
    widths = [mean.shape[-1] for mean in memory.mean]
    for part in joint.to(keys[0][0].dtype).split(ROWS, dim=1):
        queries = [q * layers for q in part.split(widths, dim=-1)]
        best, near = [], []
        for key, repeated in keys:  # foreground, background, and each normal image
            each = [
                q @ k.transpose(1, 2)
                for q, k in zip(queries, key.split(widths, dim=-1), strict=True)
            ]
            best.append([layer.amax(-1).float() for layer in each])
            total = sum(each[1:], each[0]) / layers
            near.append(_nearest(total, repeated))
        surroundings = zip(*best[1:], strict=True), zip(*near[1:], strict=True)
        far, common = ([normal_vote(s[0], s[1:]) for s in some] for some in surroundings)
        differences = [f - b for f, b in zip(best[0], far, strict=True)]
        rows.append(torch.stack([*best[0], *far, *differences, *near[0], *common], dim=-1))
    return torch.cat(rows, dim=1)


def _nearest(similarity: Tensor, repeated: Tensor | None) -> tuple[Tensor, Tensor]:
    """The largest of similarities (B, N, M) and the mean of the three largest, or of as many as
    there are, (B, N) each; repeated: (B or 1, M) bool, what does not count."""
    if repeated is not None:
        similarity = similarity.masked_fill(repeated.unsqueeze(1), -torch.inf)
    nearest = similarity.topk(min(NEAREST, similarity.shape[-1]), dim=-1).values.float()
    counts = nearest.isfinite()
    return nearest[..., 0], nearest.where(counts, 0).sum(-1) / counts.sum(-1)


def _of_window(joint: Tensor, contrast: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
    """Self-support and how common each token is, (B, N) each, of tokens (B, N, C) with a contrast
    (B, N) and the mean foreground (B or 1, 1, C)."""
    sure = contrast > (SURE * contrast.amax(-1, keepdim=True)).clamp(min=LEAST)
    normal = contrast <= contrast.median(-1, keepdim=True).values
    means = [
        (joint * chosen.unsqueeze(-1)).sum(1, keepdim=True)
        / chosen.sum(-1).clamp(min=1).view(-1, 1, 1)
        for chosen in (sure, normal)
    ]
    defect, background = F.normalize(means[0] + foreground, dim=-1), F.normalize(means[1], dim=-1)
    some = joint[:, ::STEP]
    similarity = joint @ some.transpose(1, 2)
    itself = torch.arange(joint.shape[1], device=joint.device)[:, None] == torch.arange(
        0, joint.shape[1], STEP, device=joint.device
    )
    similarity.masked_fill_(itself | ~normal[:, None, ::STEP], -1)
    common = similarity.topk(min(NEAREST, some.shape[1]), dim=-1).values.mean(-1)
    own = (joint * defect).sum(-1) - (joint * background).sum(-1)
    return own * sure.any(-1, keepdim=True), common
