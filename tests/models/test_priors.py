from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models import products
from models.comparison import Comparison
from models.priors import downsample_mask, gather_foreground, layer_prototype, unit_tokens
from models.support_tokens import label, ready


@pytest.fixture
def tokens():
    """Unit tokens of queries (2, 9, 8) and supports (2, 3, 9, 8), and shares (2, 3, 9) with much background."""
    generator = torch.Generator().manual_seed(0)
    query, support = (
        unit_tokens(torch.randn(*s, 8, 3, 3, generator=generator)) for s in ((2,), (2, 3))
    )
    share = torch.rand(2, 3, 9, generator=generator)
    return query, support, share * (share > 0.6)


def dense_semantic(query, support, share):
    """Over all tokens, none left out."""
    cosine = torch.einsum("bqc,bknc->bkqn", query, support) * (share > 0)[:, :, None]
    return cosine.amax(-1).mean(1)


def dense_abnormal(query, support, share):
    cosine = torch.einsum("bqc,bknc->bqkn", query, support) * (1 - share)[:, None]
    return 1 - cosine.flatten(2).amax(-1)


def maps(tokens):
    """Tokens (..., 9, 8) as a map of 3 x 3: (..., 8, 3, 3)."""
    return tokens.transpose(-1, -2).unflatten(-1, (3, 3))


def prior_maps(query, support, share, weight=None):
    """Semantic and abnormal prior, each (B, 9)."""
    known = ready(label([maps(support.flatten(0, 1))], share.unflatten(-1, (3, 3))), joint=False)
    weight = torch.ones(share.shape[:2]) if weight is None else weight
    return tuple(p[:, 0].flatten(1) for p in Comparison([maps(query)], known).priors(weight))


@pytest.mark.parametrize("row", [0, 13, 55])
def test_one_defect_pixel_leaves_its_share(row):
    mask = torch.zeros(56, 56, dtype=torch.uint8)
    mask[row, 20] = 1
    share = downsample_mask(mask, 14)
    assert share.shape == (4, 4)
    assert share[row // 14, 1] == pytest.approx(1 / 196)
    assert share.count_nonzero() == 1


def test_area_shares_are_means_of_patches():
    mask = (torch.rand(2, 3, 28, 42, generator=torch.Generator().manual_seed(0)) > 0.7).to(
        torch.uint8
    )
    patches = mask.double().unflatten(2, (2, 14)).unflatten(4, (3, 14))
    assert_close(downsample_mask(mask, 14).double(), patches.mean((3, 5)), rtol=0, atol=1e-6)


def test_bilinear_downsampling_loses_what_area_keeps():
    mask = torch.zeros(1, 1, 56, 56)
    mask[..., 20, 20] = 1
    assert downsample_mask(mask, 14, by_area=False).sum() == 0
    assert downsample_mask(mask, 14).sum() > 0
    assert_close(downsample_mask(torch.ones(1, 56, 56), 14, by_area=False), torch.ones(1, 4, 4))


def test_prototype_is_the_weighted_mean_of_the_marked_tokens():
    features = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    share = torch.zeros(2, 3, 3)
    share[0, 1, 2], share[0, 0, 0] = 0.75, 0.25
    ours = layer_prototype(features, share)
    expected = (0.75 * features[0, :, 1, 2] + 0.25 * features[0, :, 0, 0]) / 1.0005
    assert_close(ours[0], expected)
    assert ours[1].count_nonzero() == 0


def test_unit_tokens_are_row_major_and_of_unit_length():
    features = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    tokens = unit_tokens(features)
    assert_close(tokens.norm(dim=-1), torch.ones(2, 12))
    assert_close(tokens[1, 1 * 4 + 2], features[1, :, 1, 2] / features[1, :, 1, 2].norm())


def test_gathering_keeps_exactly_the_marked_tokens(tokens):
    _, support, share = tokens
    kept, weight = gather_foreground(support[:, 0], share[:, 0])
    for i in range(2):
        marked = share[i, 0] > 0
        assert (weight[i] > 0).sum() == marked.sum()
        order = share[i, 0][marked].argsort(descending=True)
        assert torch.equal(kept[i][weight[i] > 0], support[i, 0][marked][order])
        assert torch.equal(weight[i][weight[i] > 0], share[i, 0][marked][order])
    assert (weight == 0).any(-1).all(), "the background's 0 must stay in the maximum"


def test_gathering_a_fully_marked_map_keeps_all(tokens):
    kept, weight = gather_foreground(tokens[1][:, 0], torch.full((2, 9), 0.5))
    assert kept.shape == (2, 9, 8)
    assert weight.min() == 0.5


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_priors_are_those_of_a_dense_computation(tokens, monkeypatch, chunk):
    monkeypatch.setattr(products, "CHUNK", chunk)
    semantic, abnormal = prior_maps(*tokens)
    assert_close(semantic, dense_semantic(*tokens))
    assert_close(abnormal, dense_abnormal(*tokens))


def test_priors_of_views_without_marks_and_without_background(tokens):
    query, support, share = tokens
    share = share.clone()
    share[0, 0], share[1, 2], share[0, 1] = 0, 0, 0.5
    semantic, abnormal = prior_maps(query, support, share)
    assert_close(semantic, dense_semantic(query, support, share))
    assert_close(abnormal, dense_abnormal(query, support, share))


def test_priors_do_not_depend_on_the_order_of_supports(tokens):
    query, support, share = tokens
    order = torch.tensor([2, 0, 1])
    for ours, shuffled in zip(
        prior_maps(*tokens), prior_maps(query, support[:, order], share[:, order]), strict=True
    ):
        assert_close(ours, shuffled)


def test_a_support_given_twice_changes_nothing(tokens):
    query, support, share = tokens
    twice = prior_maps(query, support.repeat(1, 2, 1, 1), share.repeat(1, 2, 1))
    for ours, theirs in zip(prior_maps(*tokens), twice, strict=True):
        assert_close(ours, theirs)


def test_supports_of_weight_zero_are_left_out_of_the_semantic_prior(tokens):
    query, support, share = tokens
    weights = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    ours, abnormal = prior_maps(*tokens, weights)
    assert_close(ours[0], prior_maps(query[:1], support[:1, [0, 2]], share[:1, [0, 2]])[0][0])
    assert ours[1].count_nonzero() == 0
    assert_close(abnormal, prior_maps(*tokens)[1])


def test_one_memory_serves_a_batch_of_queries(tokens):
    query, support, share = tokens
    shared = prior_maps(query, support[:1], share[:1])
    for one, two in zip(
        shared,
        prior_maps(query, support[:1].repeat(2, 1, 1, 1), share[:1].repeat(2, 1, 1)),
        strict=True,
    ):
        assert_close(one, two)


def test_a_query_token_seen_unmarked_is_normal_and_one_seen_marked_is_alike(tokens):
    _, support, _ = tokens
    share = torch.zeros(2, 1, 9)
    share[:, :, 4] = 1
    alike, abnormal = prior_maps(support[:, 0], support[:, :1], share)
    assert_close(alike[:, 4], torch.ones(2))
    normal = [i for i in range(9) if i != 4]
    assert_close(abnormal[:, normal], torch.zeros(2, 8), rtol=0, atol=1e-6)
    assert (abnormal[:, 4] > 0.05).all()
