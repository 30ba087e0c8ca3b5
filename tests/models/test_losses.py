from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from models.losses import MixedNormalDiceLoss, cross_entropy, mixed_normal_dice


@pytest.fixture
def target():
    """One query with a defect, one without."""
    target = torch.zeros(2, 5, 5, dtype=torch.uint8)
    target[0, 1:3, 2:4] = 1
    return target


def test_perfect_prediction_costs_no_dice(target):
    assert_close(mixed_normal_dice(target.float(), target, 1.0), torch.zeros(2), rtol=0, atol=1e-6)


def test_wholly_wrong_prediction_costs_one(target):
    assert_close(
        mixed_normal_dice(1 - target.float(), target, 1e5), torch.ones(2), rtol=0, atol=1e-5
    )


def test_half_overlap_costs_half(target):
    """2 of 4 defect pixels found, 2 false ones: Dice 2 * 2 / (4 + 4)."""
    shifted = target.float().roll(1, 2)
    assert mixed_normal_dice(shifted, target, 1.0)[0] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("smooth_r", [0.5, 1.0, 1e5])
def test_query_without_defect_pays_by_its_summed_probability(target, smooth_r):
    probability = torch.full((2, 5, 5), 0.02)
    expected = 1 - 1 / (smooth_r * 25 * 0.02 + 1)
    assert mixed_normal_dice(probability, target, smooth_r)[1] == pytest.approx(expected, abs=1e-6)


def test_smooth_r_touches_only_queries_without_defect(target):
    probability = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    cheap, dear = (mixed_normal_dice(probability, target, r) for r in (1.0, 10.0))
    assert cheap[0] == dear[0]
    assert cheap[1] < dear[1]


def test_cross_entropy_is_torchs_away_from_the_borders(target):
    probability = 0.1 + 0.8 * torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    expected = F.binary_cross_entropy(probability, target.float())
    assert_close(cross_entropy(probability, target), expected, rtol=0, atol=1e-5)


def test_cross_entropy_of_a_sure_error_is_bounded():
    loss = cross_entropy(torch.zeros(1, 2, 2), torch.ones(1, 2, 2))
    assert float(loss) == pytest.approx(-math.log(1e-6), rel=1e-5)


def test_loss_is_the_weighted_sum_of_its_parts(target):
    probability = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    dice, entropy = (
        mixed_normal_dice(probability, target, 2.0).mean(),
        cross_entropy(probability, target),
    )
    assert_close(
        MixedNormalDiceLoss(2.0, 0.7, 0.3)(probability, target), 0.7 * dice + 0.3 * entropy
    )
    assert_close(MixedNormalDiceLoss(2.0)(probability, target), dice + 0.01 * entropy)


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_gradient_is_finite_at_the_borders(target, fill):
    probability = torch.full((2, 5, 5), fill, requires_grad=True)
    MixedNormalDiceLoss(1e5)(probability, target).backward()
    assert probability.grad.isfinite().all()
    assert probability.grad.count_nonzero()


def test_half_precision_is_computed_in_float32(target):
    probability = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    loss = MixedNormalDiceLoss(1.0)(probability, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, MixedNormalDiceLoss(1.0)(probability.float(), target))
