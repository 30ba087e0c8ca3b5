"""Contrast with self-support, without training: a pixel is defect where it looks more like the
foreground than like the background, of the supports and of the window itself."""

from __future__ import annotations

from torch import Tensor

from models.comparison import Comparison
from models.methods import Method
from models.priors import upsample
from models.relations import CONTRAST, SELF_SUPPORT

WEIGHT = 0.3  # of self-support


class Contrast(Method):
    """Contrast to the nearest labelled tokens plus self-support, see `models.relations`."""

    name = "contrast"

    def answer(self, compared: Comparison, size: tuple[int, int]) -> Tensor:
        """0.5 + (contrast + 0.3 (self-support - middle)) / 2, bounded to [0, 1], see
        `Memory.middle`; without a marked token the largest abnormal prior."""
        if not compared.memory.is_marked:
            return upsample(compared.anomaly, size)
        maps = compared.relations
        support = maps[:, SELF_SUPPORT] - compared.memory.middle.view(-1, 1, 1)
        score = maps[:, CONTRAST] + WEIGHT * support
        return (0.5 + upsample(score, size) / 2).clamp(0, 1)
