from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.backbone import Backbone
from models.comparison import Comparison
from models.head import MOST_CORRECTION, TRUST, Head
from models.prior_method import PriorMethod
from models.priors import downsample_mask, upsample
from models.sofs import SOFS
from models.support_tokens import label, ready

GRID = (4, 4)


def gap_of(query, support, masks):
    """Difference of the joint prior (B, h, w)."""
    return Comparison(query, ready(label(support, downsample_mask(masks, 14)), joint=True)).gap


@pytest.fixture
def backbone(make_vit):
    return Backbone(make_vit(), [1, 2], 14)


@torch.no_grad()
def test_score_is_the_difference_mapped_to_one_half_at_equality(backbone, episode):
    query, support, masks = episode
    method = PriorMethod(backbone)
    score = method.segment(query, method.encode_support(support, masks))
    gap = upsample(gap_of(backbone(query), backbone(support[0]), masks), (56, 56))
    assert score.shape == (3, 56, 56) and score.dtype == torch.float32
    assert_close(score, 0.5 + gap / 4)
    assert score.min() >= 0 and score.max() <= 1 and score.std() > 0.01


@torch.no_grad()
def test_a_support_finds_its_own_defect(backbone, episode):
    _, support, _ = episode
    masks = torch.zeros(1, 1, 56, 56, dtype=torch.uint8)
    masks[0, 0, 14:42, 28:] = 1
    method = PriorMethod(backbone)
    memory = method.encode_support(support[:, :1], masks)
    score = method.answer(Comparison(backbone(support[0, :1]), memory), None, GRID)
    assert torch.equal(score[0] > 0.5, downsample_mask(masks, 14)[0, 0] > 0)


@torch.no_grad()
def test_windows_one_by_one_and_supports_in_any_order(backbone, episode):
    query, support, masks = episode
    method = PriorMethod(backbone)
    together = method.segment(query, method.encode_support(support, masks))
    order = [3, 1, 0, 2]
    memory = method.encode_support(support[:, order], masks[:, order])
    for i in range(3):
        assert_close(method.segment(query[i : i + 1], memory)[0], together[i], rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_marked_pixel_gives_the_abnormal_prior(backbone, episode):
    """By hand: per layer one minus the largest cosine to any support token, the largest over the layers."""
    query, support, masks = episode
    method = PriorMethod(backbone)
    score = method.segment(query, method.encode_support(support, torch.zeros_like(masks)))
    layers = []
    for asked, known in zip(backbone(query), backbone(support[0]), strict=True):
        tokens, keys = (torch.nn.functional.normalize(f, dim=1).flatten(2) for f in (asked, known))
        cosine = torch.einsum("bcm,kcn->bmkn", tokens, keys).flatten(2).amax(-1)
        layers.append((1 - cosine).unflatten(1, asked.shape[-2:]))
    assert_close(score, upsample(torch.stack(layers).amax(0), (56, 56)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_half_precision_moves_a_score_by_no_more_than_its_rounding(backbone, episode):
    query, support, masks = episode
    method = PriorMethod(backbone)
    known, asked = ([f.bfloat16() for f in backbone(images)] for images in (support[0], query))
    exact = (
        0.5
        + upsample(gap_of([a.float() for a in asked], [k.float() for k in known], masks), (56, 56))
        / 4
    )
    with torch.autocast("cpu", torch.bfloat16):
        memory = ready(label(known, method.shares(masks)), joint=True)
        score = method.answer(Comparison(asked, memory), None, (56, 56))
    assert score.dtype == torch.float32
    assert (
        score - exact
    ).abs().max() <= 2**-9  # two cosines, each rounded by at most 2**-8, over 4


@torch.no_grad()
def test_head_with_prior_residual_starts_from_the_prior(backbone, episode):
    """Without its own say the head's logits are the difference, scaled; with it they are not."""
    query, support, masks = episode
    model = SOFS(backbone, Head(48, 4, reduce_dim=16, embed_dim=16, prior_residual=True)).eval()
    features, memory = backbone(query), model.encode_support(support, masks)
    gap = gap_of(features, backbone(support[0]), masks)
    mixed, _ = model.token_logits(Comparison(features, memory.known), memory.summary)
    model.head.own_scale.zero_()
    logits, _ = model.token_logits(Comparison(features, memory.known), memory.summary)
    assert_close(logits, model.head.residual_scale * gap)
    assert not torch.allclose(mixed, logits, atol=1e-3)


def test_gradient_reaches_both_scales_of_the_residual(backbone, episode):
    query, support, masks = episode
    model = SOFS(backbone, Head(48, 4, reduce_dim=16, embed_dim=16, prior_residual=True)).train()
    memory = model.encode_support(support, masks)
    model.token_logits(Comparison(backbone(query), memory.known), memory.summary)[
        0
    ].square().sum().backward()
    assert model.head.residual_scale.grad and model.head.own_scale.grad


def test_head_corrects_the_prior_within_a_bound_in_use():
    """However sure the head is, the correction stays within its bound; where it is unsure it is damped."""
    head = Head(48, 4, reduce_dim=16, embed_dim=16, prior_residual=True)
    gap, logits = torch.linspace(-1, 1, 12).view(1, 3, 4), torch.full((1, 3, 4), 1e4)
    prior = head.residual_scale * gap
    assert_close(head.corrected(gap, logits) - prior, head.own_scale * logits)
    head.eval()
    for sign in (-1, 1):
        assert_close(head.corrected(gap, sign * logits), prior + sign * MOST_CORRECTION)
    damped = head.corrected(gap, 1e-4 * logits) - prior
    assert_close(damped, TRUST * head.own_scale.expand(1, 3, 4), rtol=1e-2, atol=0)
