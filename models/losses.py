"""The training loss: mixed normal Dice plus a little cross entropy, on the token grid."""

from __future__ import annotations

from torch import Tensor, nn

DICE_EPS, LOG_EPS = 1e-5, 1e-6


def mixed_normal_dice(probability: Tensor, target: Tensor, smooth_r: float) -> Tensor:
    """Dice loss (B,) of queries, by probabilities (B, h, w) float and targets (B, h, w) {0, 1}.

    With a defect: 1 - (2 sum(p t) + e) / (sum(p) + sum(t) + e), e = 1e-5. Without: 1 - 1 /
    (smooth_r sum(p) + 1); the larger smooth_r, eta of the paper, the dearer is a false alarm.
    """
    p, t = probability.flatten(1), target.flatten(1).to(probability.dtype)
    dice = 1 - (2 * (p * t).sum(1) + DICE_EPS) / (p.sum(1) + t.sum(1) + DICE_EPS)
    normal = 1 - 1 / (smooth_r * p.sum(1) + 1)
    return dice.where(t.any(1), normal)


class MixedNormalDiceLoss(nn.Module):
    """dice_weight * mean mixed normal Dice + ce_weight * mean binary cross entropy -log(p + 1e-6).

    Both arguments of a call are (B, h, w): probabilities, and targets in {0, 1}. The scalar is
    computed in float32.
    """

    def __init__(self, smooth_r: float, dice_weight: float = 1.0, ce_weight: float = 0.01) -> None:
        super().__init__()
        self.smooth_r, self.dice_weight, self.ce_weight = smooth_r, dice_weight, ce_weight

    def forward(self, probability: Tensor, target: Tensor) -> Tensor:
        p, t = probability.float(), target.float()
        dice = mixed_normal_dice(p, target, self.smooth_r).mean()
        entropy = -(t * (p + LOG_EPS).log() + (1 - t) * (1 - p + LOG_EPS).log()).mean()
        return self.dice_weight * dice + self.ce_weight * entropy
