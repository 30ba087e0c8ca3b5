"""The training loss: mixed normal Dice plus a little cross entropy, on probabilities of the token
grid.
"""

from __future__ import annotations

from torch import Tensor, nn

DICE_EPS = 1e-5
LOG_EPS = 1e-6


def mixed_normal_dice(probability: Tensor, target: Tensor, smooth_r: float) -> Tensor:
    """Dice loss that stays defined for queries without defect.

    With a defect: 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e), e = 1e-5. Without: 1 - 1 /
    (smooth_r sum(p) + 1).

    Args:
        probability: (B, h, w) float.
        target: (B, h, w), {0, 1}.
        smooth_r: eta of the paper; the larger, the dearer a false alarm on a normal query.

    Returns:
        (B,) loss per query.
    """
    p, t = probability.flatten(1), target.flatten(1).to(probability.dtype)
    dice = 1 - (2 * (p * t).sum(1) + DICE_EPS) / (p.sum(1) + t.sum(1) + DICE_EPS)
    normal = 1 - 1 / (smooth_r * p.sum(1) + 1)
    return dice.where(t.any(1), normal)


def cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """Mean binary cross entropy of probabilities, -log(p + 1e-6): (B, h, w) each to a scalar."""
    t = target.to(probability.dtype)
    return -(t * (probability + LOG_EPS).log() + (1 - t) * (1 - probability + LOG_EPS).log()).mean()


class MixedNormalDiceLoss(nn.Module):
    """dice_weight * mean over queries of the mixed normal Dice + ce_weight * cross entropy."""

    def __init__(self, smooth_r: float, dice_weight: float = 1.0, ce_weight: float = 0.01) -> None:
        super().__init__()
        self.smooth_r, self.dice_weight, self.ce_weight = smooth_r, dice_weight, ce_weight

    def forward(self, probability: Tensor, target: Tensor) -> Tensor:
        """Loss of (B, h, w) probabilities against (B, h, w) targets in {0, 1}; always in
        float32.
        """
        probability = probability.float()
        dice = mixed_normal_dice(probability, target, self.smooth_r).mean()
        return self.dice_weight * dice + self.ce_weight * cross_entropy(probability, target)
