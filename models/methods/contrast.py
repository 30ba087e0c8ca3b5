"""Contrast, without training: a pixel is defect where it looks more like the foreground than like
the background, of the supports and of the window itself."""

from __future__ import annotations

from torch import Tensor

from models.comparison import Comparison
from models.head import RESIDUAL_SCALE
from models.methods import Method
from models.priors import upsample


class Contrast(Method):
    """Contrast to the nearest labelled tokens, self-support and probe, see `models.score`."""

    name = "contrast"
    gives_log_odds = True

    def answer(self, compared: Comparison, size: tuple[int, int]) -> Tensor:
        """The sigmoid of ten times the score, as a head begins with, see `models.score`; without a
        marked token the largest abnormal prior."""
        if not compared.memory.is_marked:
            return upsample(compared.anomaly, size)
        return (RESIDUAL_SCALE * upsample(compared.score, size)).sigmoid()
