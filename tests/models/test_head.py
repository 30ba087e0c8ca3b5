"""What the golden figures do not show of the head: dropout, and our correction of the prior."""

from __future__ import annotations

import torch
from torch import nn
from torch.testing import assert_close

from models.head import MOST_CORRECTION, TRUST, Head


def make_head(**options):
    torch.manual_seed(0)
    return Head(20, 4, reduce_dim=8, embed_dim=16, **options)


def test_dropout_and_reductions_drop_whole_channels():
    head = make_head()
    assert [m.p for m in head.transformer.modules() if type(m) is nn.Dropout] == [0.1] * 4
    dropped = head.support_reduce[2](torch.ones(8, 64, 3, 3)).flatten(2)
    assert ((dropped == 0).all(-1) | (dropped == 2).all(-1)).all()
    assert 0.4 < (dropped == 0).float().mean() < 0.6


def test_the_correction_of_the_prior_is_bounded_and_damped_in_use():
    head = make_head(prior_residual=True)
    gap, logits = torch.linspace(-1, 1, 12).view(1, 3, 4), torch.full((1, 3, 4), 1e4)
    prior = head.residual_scale * gap
    assert_close(head.corrected(gap, logits) - prior, head.own_scale * logits)
    head.eval()
    for sign in (-1, 1):
        assert_close(head.corrected(gap, sign * logits), prior + sign * MOST_CORRECTION)
    damped = head.corrected(gap, 1e-4 * logits) - prior
    assert_close(damped, TRUST * head.own_scale.expand(1, 3, 4), rtol=1e-2, atol=0)
