"""The score of tokens without training: how much more they look like the defect than like what is
normal, of the supports and of the window itself.

Shapes: B windows, N tokens of a window, C channels of all layers together.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from models.memory import Memory
from models.priors import centred, normal_vote, unit_tokens

NEAREST = 3  # background tokens that a similarity is the mean of, where one is too much chance
SURE, LEAST = 0.5, 0.05  # a sure token has this share of the window's largest contrast, and so much
OWN, PROBE = 0.3, 0.4  # weights of self-support and of the probe


def score(features: list[Tensor], memory: Memory) -> Tensor:
    """Scores (B, h, w) float32 of windows, per layer (B, C_l, h, w), by one memory for all, or one
    support set each: contrast + 0.3 (self-support - `Memory.middle`) + 0.4 probe. A token is more
    likely defect than not where its score is positive.

    All are of cosines over all layers of tokens from which the supports' mean is taken, see
    `models.priors.centred`:

    - contrast: the largest to the foreground less the mean of the nearest three of the background;
      normal images vote on what is background, see `models.priors.normal_vote`;
    - self-support (SSP, Fan et al. 2022): cosine to the mean of the foreground joined by the
      window's sure tokens, less that to the mean of the half of the window's tokens of least
      contrast; 0 in a window without a sure token, in which there is most likely nothing;
    - probe: the linear discriminant of the supports' foreground and background, `Memory.probe`.
    """
    joint = centred([unit_tokens(layer.float()) for layer in features], memory.mean)
    foreground, background, *normal = memory.joint_keys
    contrast = foreground.nearest(joint, 1) - normal_vote(
        background.nearest(joint, NEAREST), [image.nearest(joint, NEAREST) for image in normal]
    )
    own = _self_support(joint, contrast, memory.prototypes[0])
    direction, border = memory.probe
    probe = (joint * direction).sum(-1) - border.unsqueeze(-1)
    values = contrast + OWN * (own - memory.middle.unsqueeze(-1)) + PROBE * probe
    return values.unflatten(1, features[0].shape[-2:])


def _self_support(joint: Tensor, contrast: Tensor, foreground: Tensor) -> Tensor:
    """(B, N) of tokens (B, N, C) with a contrast (B, N) and the mean foreground (B or 1, 1, C)."""
    sure = contrast > (SURE * contrast.amax(-1, keepdim=True)).clamp(min=LEAST)
    middle = (contrast.shape[-1] - 1) // 2  # of the median, which cannot be exported
    normal = contrast <= contrast.sort(-1).values[..., middle : middle + 1]
    means = [
        (joint * chosen.unsqueeze(-1)).sum(1, keepdim=True)
        / chosen.sum(-1).clamp(min=1).view(-1, 1, 1)
        for chosen in (sure, normal)
    ]
    defect, background = F.normalize(means[0] + foreground, dim=-1), F.normalize(means[1], dim=-1)
    own = (joint * defect).sum(-1) - (joint * background).sum(-1)
    return own * sure.any(-1, keepdim=True)
