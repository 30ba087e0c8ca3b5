from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from tests.models.tiny import answer, remember


@pytest.fixture(autouse=True)
def _no_graph(request):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def near(ours, expected, tolerance=1e-5):
    assert_close(ours, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("meta_cls", [True, False])
def test_a_batch_of_queries_is_that_of_each(make_model, episode, meta_cls):
    """With one set of supports for all, or with a set each, of different numbers of marks."""
    model, (query, support, masks) = make_model(meta_cls), episode
    fewer = masks.clone()
    fewer[0, :, 25:] = 0
    sets = [(support, masks), (support.flip(1) * 0.5, fewer), (support, masks)]
    of_each = [remember([model], *pair) for pair in sets]
    alone = [answer(model, query[i : i + 1], memory) for i, memory in enumerate(of_each)]
    together = remember([model], *(torch.cat(part) for part in zip(*sets, strict=True)))
    near(answer(model, query, together), torch.cat(alone))


def test_options_reach_the_shares_and_the_priors_of_the_head(make_model, episode):
    """Without the abnormal prior half the prior channels are left, and background is unseen."""
    query, support, masks = episode
    spot = torch.zeros_like(masks)
    spot[..., 20, 20] = 1
    largest = [make_model(area_downsampling=a).shares(spot).max().item() for a in (True, False)]
    assert largest == [pytest.approx(1 / 14**2), 0], "one pixel leaves its share"
    model = make_model(abnormal_to_head=False)
    model.head.query_mix[0] = torch.nn.Conv2d(2 * 16 + 2, 16, 1, bias=False)
    memory = remember([model], support, masks)
    other = replace(memory, background=[layer.roll(5, -1) for layer in memory.background])
    assert torch.equal(answer(model, query, other), answer(model, query, memory))


def test_half_precision_moves_the_probability_little(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    exact = answer(model, query, remember([model], support, masks))
    with torch.autocast("cpu", torch.bfloat16):
        scores = answer(model, query, remember([model], support, masks))
    assert scores.dtype == torch.float32 and 0 < (scores - exact).abs().max() < 0.05


@pytest.mark.parametrize("residual", [True, False])
def test_gradients_reach_the_head_and_never_the_backbone(make_model, episode, residual):
    model, (query, support, masks) = make_model(prior_residual=residual).train(), episode
    supports = model.backbone(support.flatten(0, 1).repeat(3, 1, 1, 1))
    logits = model.episode_logits(model.backbone(query), supports, masks.repeat(3, 1, 1, 1))
    assert logits.shape == (3, 4, 4)
    logits.sigmoid().sum().backward()
    assert not any(p.requires_grad or p.grad is not None for p in model.backbone.parameters())
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.head.parameters())


def test_with_prior_residual_the_head_corrects_the_score(make_model, episode):
    """With its scale at zero the logits are the score, scaled."""
    model, (query, support, masks) = make_model(prior_residual=True), episode
    memory = remember([model], support, masks)
    compared = Comparison(model.backbone(query), memory)
    mixed = model.token_logits(compared, memory.extras["SOFS"])
    model.head.own_scale.zero_()
    logits = model.token_logits(compared, memory.extras["SOFS"])
    near(logits, model.head.residual_scale * compared.score, 1e-6)
    assert (mixed - logits).abs().max() > 1e-3
