from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from models.priors import (
    centred,
    downsample_mask,
    gather_foreground,
    layer_prototype,
    normal_vote,
    typical_foreground,
    unit_tokens,
    upsample,
)
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
    assert_close(downsample_mask(torch.ones(1, 56, 56), 14, by_area=False), torch.ones(1, 4, 4))


def test_area_shares_are_means_of_patches():
    mask = torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(0)) > 0.7
    patches = mask.double().unflatten(2, (2, 14)).unflatten(4, (3, 14))
    assert_close(downsample_mask(mask, 14).double(), patches.mean((3, 5)), rtol=0, atol=1e-6)


def test_prototype_is_the_weighted_mean_of_the_marked_tokens():
    maps, share = features(2)[0], torch.zeros(2, 3, 4)
    share[0, 1, 2], share[0, 0, 0] = 0.75, 0.25
    prototype = layer_prototype(maps, share)
    assert_close(prototype[0], (0.75 * maps[0, :, 1, 2] + 0.25 * maps[0, :, 0, 0]) / 1.0005)
    assert prototype[1].count_nonzero() == 0


def test_unit_tokens_are_row_major_and_of_unit_length():
    maps = features(2)[1]
    tokens = unit_tokens(maps)
    assert_close(tokens.norm(dim=-1), torch.ones(2, 12))
    assert_close(tokens[1, 1 * 4 + 2], maps[1, :, 1, 2] / maps[1, :, 1, 2].norm())


def test_centred_tokens_give_the_mean_cosine_of_the_layers():
    tokens = [unit_tokens(layer) for layer in features(1)]
    mean = [layer.mean(1, keepdim=True) for layer in tokens]
    joint = centred(tokens, mean)[0]
    pairs = [(t[0, 2] - m[0, 0], t[0, 7] - m[0, 0]) for t, m in zip(tokens, mean, strict=True)]
    cosines = [torch.cosine_similarity(u, v, dim=0) for u, v in pairs]
    assert_close(joint[2] @ joint[7], sum(cosines) / 2)


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


def test_typical_foreground_is_mostly_marked_or_the_most_marked_of_its_view():
    share = torch.tensor([[0.9, 0.5, 0.4, 0.3, 0.3, 0.1, 0.0]])
    expected = [True, True, False, True, True, False, False]
    assert typical_foreground(share, [3, 3, 1]).tolist() == [expected]


@given(surroundings=SCORE, images=st.lists(SCORE, max_size=6), order=st.randoms())
def test_the_vote_lies_between_the_surroundings_and_the_mean_of_all(surroundings, images, order):
    """However many images there are, and in any order: a look-alike among many changes little."""
    own, others = torch.tensor([surroundings]), [torch.tensor([value]) for value in images]
    vote = normal_vote(own, others).item()
    mean = (surroundings + sum(images)) / (1 + len(images))
    assert vote == pytest.approx(max(surroundings, mean), abs=1e-6)
    order.shuffle(others)
    assert normal_vote(own, others).item() == pytest.approx(vote, abs=1e-6)


def test_upsampling_keeps_constants_and_centres():
    assert_close(upsample(torch.full((2, 4, 4), 0.3), (56, 56)), torch.full((2, 56, 56), 0.3))
    maps = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert_close(upsample(maps, (9, 9))[:, 1::3, 1::3], maps)
