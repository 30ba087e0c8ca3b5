"""What the golden figures do not show of the loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from models.losses import MixedNormalDiceLoss, mixed_normal_dice


@pytest.fixture
def target():
    """One query with a defect of four tokens, one without."""
    target = torch.zeros(2, 5, 5, dtype=torch.uint8)
    target[0, 1:3, 2:4] = 1
    return target


@pytest.mark.parametrize("smooth_r", [0.5, 1.0, 1e5])
def test_dice_of_a_defect_and_of_a_false_alarm(target, smooth_r):
    """Half overlap: 2 * 2 / (4 + 4); a query without defect pays by its summed probability."""
    p = target.float().roll(1, 2) + torch.tensor([0.0, 0.02]).view(2, 1, 1)
    expected = torch.tensor([0.5, 1 - 1 / (smooth_r * 25 * 0.02 + 1)])
    assert_close(mixed_normal_dice(p, target, smooth_r), expected, rtol=0, atol=1e-5)
    assert_close(mixed_normal_dice(target.float(), target, smooth_r), torch.zeros(2))


def test_the_loss_is_the_weighted_sum_of_its_parts_in_float32(target):
    p = (0.1 + 0.8 * torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))).bfloat16()
    loss = MixedNormalDiceLoss(2.0, 0.7, 0.3)(p, target)
    dice = mixed_normal_dice(p.float(), target, 2.0).mean()
    expected = 0.7 * dice + 0.3 * F.binary_cross_entropy(p.float(), target.float())
    assert_close(loss, expected, rtol=0, atol=1e-5)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_the_gradient_is_finite_at_the_borders(target, fill):
    probability = torch.full((2, 5, 5), fill, requires_grad=True)
    MixedNormalDiceLoss(1e5)(probability, target).backward()
    assert probability.grad.isfinite().all() and probability.grad.any()
