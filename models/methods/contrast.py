"""Contrast, without training: a pixel is defect where it looks more like the foreground than like
the background, of the supports and of the window itself."""

from __future__ import annotations

from torch import Tensor

from models.comparison import Comparison
from models.methods import Method
from models.priors import upsample


class Contrast(Method):
    """Contrast to the nearest labelled tokens, self-support and probe, see `models.score`."""

    name = "contrast"

    def answer(self, compared: Comparison, size: tuple[int, int]) -> Tensor:
        """0.5 + score / 2, bounded to [0, 1], see `models.score`; without a marked token the
        largest abnormal prior."""
        if not compared.memory.is_marked:
            return upsample(compared.anomaly, size)
        return (0.5 + upsample(compared.score, size) / 2).clamp(0, 1)
