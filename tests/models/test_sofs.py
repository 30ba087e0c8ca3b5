from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from models.priors import upsample
from models.sofs import weighted_mean


@pytest.fixture(autouse=True)
def _no_graph(request):
    """Only the tests of gradients build one."""
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def priors(features, memory):
    return Comparison(features, memory.known).priors(memory.summary.weight)


@pytest.mark.parametrize("meta_cls", [True, False])
def test_one_memory_for_many_windows_is_that_of_each(make_model, episode, meta_cls):
    model, (query, support, masks) = make_model(meta_cls), episode
    memory = model.encode_support(support, masks)
    together = model.segment(query, memory)
    for i in range(3):
        alone = model.segment(query[i : i + 1], model.encode_support(support, masks))
        assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)
    each_its_own = model.encode_support(support.repeat(3, 1, 1, 1, 1), masks.repeat(3, 1, 1, 1))
    assert_close(model.segment(query, each_its_own), together, rtol=0, atol=1e-6)


def test_batch_with_different_supports_is_that_of_each(make_model, episode):
    """Padding of the marked tokens of one item does not touch the others."""
    model, (query, support, masks) = make_model(), episode
    other, fewer = support.flip(1) * 0.5, masks.clone()
    fewer[0, :, 25:] = 0
    pairs = [(support, masks), (other, fewer)]
    memory = model.encode_support(
        torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
    )
    together = model.segment(query[:2], memory)
    for i, pair in enumerate(pairs):
        assert_close(
            together[i : i + 1], model.segment(query[i : i + 1], model.encode_support(*pair))
        )


def test_answer_is_a_probability_that_depends_on_query_support_and_mask(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    answer = model.segment(query, model.encode_support(support, masks))
    assert answer.shape == (3, 56, 56)
    assert answer.dtype == torch.float32
    assert ((answer > 0) & (answer < 1)).all()
    for images, marks in ((support.flip(2), masks), (support, masks.flip(3))):
        assert (
            model.segment(query, model.encode_support(images, marks)) - answer
        ).abs().max() > 1e-4


def test_order_of_supports_does_not_matter(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    order = [2, 0, 3, 1]
    shuffled = model.segment(query, model.encode_support(support[:, order], masks[:, order]))
    assert_close(
        shuffled, model.segment(query, model.encode_support(support, masks)), rtol=0, atol=1e-6
    )


def test_empty_support_views_are_skipped_but_count_as_normal(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    masks = masks.clone()
    masks[0, 2] = 0
    full, kept = model.encode_support(support, masks), [0, 1, 3]
    fewer = model.encode_support(support[:, kept], masks[:, kept])
    assert full.summary.weight.tolist() == [[1, 1, 0, 1]]
    assert_close(full.summary.prototype, fewer.summary.prototype)
    assert_close(full.summary.support_prototype, fewer.summary.support_prototype)
    summary = dataclasses.replace(fewer.summary, weight=full.summary.weight)
    same_normality = dataclasses.replace(full, summary=summary)
    assert_close(
        model.segment(query, full), model.segment(query, same_normality), rtol=0, atol=1e-6
    )
    features = model.backbone(query)
    assert (priors(features, full)[1] <= priors(features, fewer)[1] + 1e-6).all()


def test_published_averaging_dilutes_by_empty_views(make_model, episode):
    _, support, masks = episode
    masks = masks.clone()
    masks[0, 2] = 0
    skipped = make_model().encode_support(support, masks)
    averaged = make_model(skip_empty_supports=False).encode_support(support, masks)
    assert_close(averaged.summary.support_prototype, skipped.summary.support_prototype * 3 / 4)


def test_no_marked_pixel_gives_the_abnormal_prior(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    memory = model.encode_support(support, torch.zeros_like(masks))
    _, abnormal = priors(model.backbone(query), memory)
    assert_close(model.segment(query, memory), upsample(abnormal.amax(1), (56, 56)))
    seen_before = model.segment(support[:, 0], memory)
    assert_close(seen_before, torch.zeros_like(seen_before), rtol=0, atol=1e-5)


def test_one_marked_pixel_is_enough(make_model, episode):
    model, (_, support, masks) = make_model(), episode
    masks = torch.zeros_like(masks)
    masks[0, 1, 30, 30] = 1
    memory = model.encode_support(support, masks)
    assert memory.known.share.any()
    assert memory.summary.shares.max() == pytest.approx(1 / 196)


def test_semantic_prior_asks_whether_a_token_is_marked_not_how_much(make_model, episode):
    """The abnormal prior, and the prototypes, do weigh by the share."""
    model, (query, support, masks) = make_model(), episode
    thinned = masks.clone()
    thinned[..., ::2] = 0
    features = model.backbone(query)
    shares = [model.encode_support(support, m).summary.shares.sum() for m in (masks, thinned)]
    full, thin = (priors(features, model.encode_support(support, m)) for m in (masks, thinned))
    assert shares[1] < 0.6 * shares[0]
    assert torch.equal(full[0], thin[0])
    assert (full[1] - thin[1]).abs().max() > 1e-3


def test_memory_keeps_the_marked_tokens_only(make_model, episode):
    model, (_, support, masks) = make_model(), episode
    memory = model.encode_support(support, masks)
    marked = int((masks.float().unfold(2, 14, 14).unfold(3, 14, 14).amax((-1, -2)) > 0).sum())
    assert int((memory.summary.shares > 0).sum()) == int((memory.known.share > 0).sum()) == marked
    assert memory.summary.tokens.shape[1] == marked + 1
    assert memory.known.keys[0].shape == (1, 4 * 16, 24), "every token once"


def test_bfloat16_moves_the_priors_by_no_more_than_its_rounding(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    support_features, query_features = model.backbone(support.flatten(0, 1)), model.backbone(query)
    exact_memory = model.remember(support_features, masks)
    exact = priors(query_features, exact_memory)
    with torch.autocast("cpu", torch.bfloat16):
        memory = model.remember(support_features, masks)
        ours = priors(query_features, memory)
        probability = model.segment(query, memory)
    for mine, reference in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (
            0 < (mine - reference).abs().max() <= 2**-7
        )  # factors and product each rounded by at most 2**-9
    assert probability.dtype == torch.float32
    assert (probability - model.segment(query, exact_memory)).abs().max() < 0.05


def test_abnormal_prior_can_be_kept_from_the_head(episode, make_model):
    """Then only half the prior channels are there, and the answer without marks is still the abnormal prior."""
    query, support, masks = episode
    model = make_model(abnormal_to_head=False)
    model.head.query_mix[0] = torch.nn.Conv2d(2 * 16 + 2, 16, 1, bias=False)
    memory = model.encode_support(support, masks)
    before = model.segment(query, memory)
    marked = memory.known.share.shape[1]
    keys = [torch.cat([k[:, :marked], k[:, marked:].roll(5, -1)], dim=1) for k in memory.known.keys]
    other_normality = dataclasses.replace(
        memory, known=dataclasses.replace(memory.known, keys=keys)
    )
    assert torch.equal(model.segment(query, other_normality), before)


def test_bilinear_mask_option_reaches_the_shares(make_model, episode):
    _, support, _ = episode
    masks = torch.zeros(1, 4, 56, 56, dtype=torch.uint8)
    masks[:, :, 20, 20] = 1
    assert (make_model().encode_support(support, masks).known.share > 0).all()
    assert not make_model(area_downsampling=False).encode_support(support, masks).known.share.any()


def test_gradient_reaches_the_head_and_never_the_backbone(make_model, episode):
    model, (query, support, masks) = make_model().train(), episode
    model.segment(query, model.encode_support(support, masks)).sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.head.parameters())
    assert any(p.grad.any() for p in model.head.support_reduce.parameters())


def test_training_mode_leaves_the_backbone_in_eval_mode(make_model):
    model = make_model().train()
    assert model.head.training
    assert not any(m.training for m in model.backbone.modules())


def test_weighted_mean():
    values = torch.tensor([[[1.0], [5.0], [9.0]], [[1.0], [5.0], [9.0]]])
    weight = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert weighted_mean(values, weight).tolist() == [[5.0], [0.0]]


def test_upsampling_keeps_constants_and_centres():
    assert_close(upsample(torch.full((2, 4, 4), 0.3), (56, 56)), torch.full((2, 56, 56), 0.3))
    maps = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert_close(upsample(maps, (9, 9))[:, 1::3, 1::3], maps)
