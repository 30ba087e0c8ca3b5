"""What neither the golden figures nor the loops in test_comparison.py show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.priors import downsample_mask, gather_foreground, normal_vote, unit_tokens
from tests.models.tiny import features

SCORE = st.floats(-1, 1, width=32)


@pytest.mark.parametrize("row", [0, 13, 55])
def test_one_defect_pixel_leaves_its_share_which_bilinear_resizing_loses(row):
    mask = torch.zeros(56, 56, dtype=torch.uint8)
    mask[row, 20] = 1
    share = downsample_mask(mask, 14)
    assert share.shape == (4, 4) and share.count_nonzero() == 1
    assert share[row // 14, 1] == pytest.approx(1 / 196)
    mask = torch.zeros(1, 1, 56, 56)
    mask[..., 20, 20] = 1
    assert downsample_mask(mask, 14, by_area=False).sum() == 0
    assert downsample_mask(torch.ones(1, 56, 56), 14, by_area=False).min() > 0.999


def test_gathering_keeps_the_marked_tokens_and_a_background_of_zero():
    tokens = unit_tokens(features(2)[0])
    share = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    share = share * (share > 0.6)
    kept, weight = gather_foreground(tokens, share)
    for i in range(2):
        marked = share[i] > 0
        order = share[i][marked].argsort(descending=True)
        assert torch.equal(kept[i][weight[i] > 0], tokens[i][marked][order])
        assert torch.equal(weight[i][weight[i] > 0], share[i][marked][order])
    assert (weight == 0).any(-1).all(), "the background's 0 must stay in the maximum"
    assert gather_foreground(tokens, torch.full((2, 12), 0.5))[1].shape == (2, 12)


@given(surroundings=SCORE, images=st.lists(SCORE, max_size=6), order=st.randoms())
def test_the_vote_lies_between_the_surroundings_and_the_mean_of_all(surroundings, images, order):
    """However many images there are, and in any order: a look-alike among many changes little."""
    own, others = torch.tensor([surroundings]), [torch.tensor([value]) for value in images]
    vote = normal_vote(own, others).item()
    mean = (surroundings + sum(images)) / (1 + len(images))
    assert vote == pytest.approx(max(surroundings, mean), abs=1e-6)
    order.shuffle(others)
    assert normal_vote(own, others).item() == pytest.approx(vote, abs=1e-6)
