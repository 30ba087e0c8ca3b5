"""What the golden figures do not show of the loss."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.losses import MixedNormalDiceLoss


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_the_gradient_is_finite_at_the_borders(fill):
    target = torch.zeros(2, 5, 5, dtype=torch.uint8)
    target[0, 1:3, 2:4] = 1
    probability = torch.full((2, 5, 5), fill, requires_grad=True)
    loss = MixedNormalDiceLoss(1e5)(probability, target)
    loss.backward()
    assert probability.grad.isfinite().all() and probability.grad.any()
    assert_close(MixedNormalDiceLoss(1e5)(probability.bfloat16(), target), loss)
