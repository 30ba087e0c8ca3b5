"""What neither the golden figures nor the loops in test_comparison.py show."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.priors import downsample_mask, gather_foreground, normal_vote, unit_tokens
from tests.models.tiny import features

SCORE = st.floats(-1, 1, width=32)


@given(st.integers(0, 55), st.integers(0, 55))
def test_one_defect_pixel_leaves_its_share(row, column):
    mask = torch.zeros(56, 56, dtype=torch.uint8)
    mask[row, column] = 1
    share = downsample_mask(mask, 14)
    assert share.shape == (4, 4) and share.count_nonzero() == 1
    assert share[row // 14, column // 14] == pytest.approx(1 / 196)


def test_gathering_keeps_the_marked_tokens_and_a_background_of_zero():
    tokens = unit_tokens(features(2)[0])
    share = torch.rand(2, 12, generator=torch.Generator().manual_seed(0))
    share = share * (share > 0.6)
    kept, weight = gather_foreground(tokens, share)
    for i in range(2):
        order = share[i].argsort(descending=True)[: int((share[i] > 0).sum())]
        assert torch.equal(kept[i][weight[i] > 0], tokens[i][order])
        assert torch.equal(weight[i][weight[i] > 0], share[i][order])
    assert (weight == 0).any(-1).all(), "the background's 0 must stay in the maximum"
    assert gather_foreground(tokens, torch.full((2, 12), 0.5))[1].shape == (2, 12)


@given(surroundings=SCORE, images=st.lists(SCORE, max_size=6), order=st.randoms())
def test_the_vote_lies_between_the_surroundings_and_the_mean_of_all(surroundings, images, order):
    """However many images there are, and in any order: a look-alike among many changes little."""
    others = [torch.tensor([value]) for value in images]
    order.shuffle(others)
    vote = normal_vote(torch.tensor([surroundings]), others).item()
    mean = (surroundings + sum(images)) / (1 + len(images))
    assert vote == pytest.approx(max(surroundings, mean), abs=1e-6)
