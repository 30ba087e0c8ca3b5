"""The baseline, without training: a pixel is defect where it looks more like the foreground than
like the background."""

from __future__ import annotations

from torch import Tensor

from models.comparison import Comparison
from models.methods import Method
from models.priors import upsample


class Prior(Method):
    """Nearest labelled token."""

    name = "prior"

    def answer(self, compared: Comparison, size: tuple[int, int]) -> Tensor:
        """0.5 + joint prior / 4, in [0, 1]; without a marked token the largest abnormal prior."""
        if not compared.memory.is_marked:
            return upsample(compared.anomaly, size)
        return 0.5 + upsample(compared.joint_prior, size) / 4
