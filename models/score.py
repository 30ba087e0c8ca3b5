"""The score of tokens without training: how much more they look like the defect than like what is
normal, of the supports and of the window itself.

Shapes: B windows, N tokens of a window, C channels of all layers together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.memory import Memory

SURE, LEAST = 0.5, 0.05  # a sure token has this share of the window's largest contrast, and so much
OWN, PROBE = 0.3, 0.4  # weights of self-support and of the probe


def score(contrast: Tensor, joint: Tensor, memory: Memory) -> Tensor:
    """Scores (B, N) float32 of the tokens of windows (B, N, C) by one memory for all, or one
    support set each: contrast + 0.3 (self-support - `Memory.middle`) + 0.4 probe. A token is more
    likely defect than not where its score is positive.

    All are of cosines over all layers of tokens from which the supports' mean is taken, see
    `models.priors.centred`:

    - contrast (B, N): see `models.comparison.Comparison.contrast`;
    - self-support (SSP, Fan et al. 2022): cosine to the mean of the foreground joined by the
      window's sure tokens, less that to the mean of the half of the window's tokens of least
      contrast; 0 in a window without a sure token, in which there is most likely nothing;
    - probe: the linear discriminant of the supports' foreground and background, `Memory.probe`.
    """
    sure = contrast > (SURE * contrast.amax(-1, keepdim=True)).clamp(min=LEAST)
    middle = (contrast.shape[-1] - 1) // 2  # of the median, which cannot be exported
    normal_half = contrast <= contrast.sort(-1).values[..., middle : middle + 1]
    direction, border = memory.probe
    with torch.autocast(joint.device.type, enabled=False):  # products of bf16 are too coarse
        chosen = torch.stack([sure, normal_half], dim=1).float()
        means = chosen @ joint / chosen.sum(-1, keepdim=True).clamp(min=1)
        defect = F.normalize(means[:, :1] + memory.prototypes[0], dim=-1)
        axis = defect - F.normalize(means[:, 1:], dim=-1)
        axes = torch.cat([axis, direction.expand_as(axis)], dim=1)
        own, probe = (joint @ axes.transpose(1, 2)).unbind(-1)  # one pass over the tokens
    own = own * sure.any(-1, keepdim=True) - memory.middle.unsqueeze(-1)
    return contrast + OWN * own + PROBE * (probe - border.unsqueeze(-1))
