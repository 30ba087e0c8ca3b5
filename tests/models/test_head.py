from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from models.head import (
    MOST_CORRECTION,
    PRIOR_WEIGHT,
    TRUST,
    Head,
    SelfAttention,
    TransformerLayer,
    fuse,
)


def make_head(**options):
    torch.manual_seed(0)
    return Head(20, 4, reduce_dim=8, embed_dim=16, **options).eval()


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_self_attention_is_torchs_multi_head_attention():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, 4), nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    weights = [layer.weight for layer in (ours.query, ours.key, ours.value)]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat(weights))
        theirs.out_proj.weight.copy_(ours.out.weight)
    x = random(2, 9, 16)
    assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_transformer_layer_is_residual_and_its_feed_forward_reaches_the_neighbours():
    """3 x 3 depthwise: without attention a token changes its eight neighbours and no more."""
    torch.manual_seed(0)
    layer = TransformerLayer(16, 4).eval()
    layer.attention.out.weight.zero_()
    x = random(1, 16, 5, 5)
    changed = x.clone()
    changed[0, :, 2, 2] += random(16)
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal((layer(changed) - layer(x)).abs().amax(1)[0] > 1e-6, expected)
    layer.feed_forward[4].weight.zero_()
    layer.feed_forward[4].bias.zero_()
    assert_close(layer(100 * x), 100 * x)


def test_the_feed_forward_is_exact_gelu_with_dropout_of_a_tenth():
    layer = TransformerLayer(16, 4)
    assert [m.p for m in layer.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
    assert [m.approximate for m in layer.modules() if isinstance(m, nn.GELU)] == ["none"]
    assert layer.feed_forward[0].out_channels == 4 * 16


def test_fusion_is_the_written_formula_in_any_order_of_the_tokens():
    query, support, share = random(2, 8, 3, 3), random(2, 5, 8), torch.rand(2, 5)
    share[:, 3:] = 0
    fused = fuse(query, support, share, 0.1)
    tokens, order = query.flatten(2).transpose(1, 2), [3, 1, 4, 0, 2]
    for b in range(2):
        expected = tokens[b].clone()
        for n in range(3):
            cosine = F.cosine_similarity(tokens[b], support[b, n][None], dim=-1) * share[b, n]
            expected += (cosine / 0.1).softmax(0)[:, None] * (support[b, n] * share[b, n])
        assert_close(fused[b].flatten(1).T, expected, rtol=1e-4, atol=1e-5)
    assert_close(fuse(query, support[:, order], share[:, order], 0.1), fused)
    assert torch.equal(fuse(query, support, torch.zeros(2, 5), 0.1), query)


def test_logits_are_dot_products_with_the_prototype_or_the_classifiers_log_odds():
    query, support, share = random(2, 16, 3, 3), random(2, 5, 16), torch.rand(2, 5)
    prototype, fused = random(2, 16), fuse(query, support, share, 0.1)
    logits = make_head().logits(query, support, share, prototype)
    assert_close(logits, torch.einsum("bchw,bc->bhw", fused, prototype))
    head = make_head(meta_cls=False)
    assert head.support_prototype is None
    logits = head.logits(query, support, share, torch.zeros(2, 16))
    assert_close(logits.sigmoid(), head.classifier(fused).softmax(1)[:, 1])


def test_priors_are_weighted_before_the_mixing():
    head, seen = make_head(), []
    features, prototype, priors = random(2, 20, 3, 3), random(2, 8), torch.rand(2, 4, 3, 3)
    head.query_mix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head.embed_query(features, prototype, priors)
    reduced = prototype[..., None, None].expand(-1, -1, 3, 3)
    assert PRIOR_WEIGHT == 10
    assert_close(seen[0], torch.cat([head.query_reduce(features), reduced, 10 * priors], 1))


def test_every_support_is_mixed_with_its_prototype():
    head, features, prototype = make_head(), random(3, 20, 3, 3), random(3, 20)
    together = head.embed_support(features, prototype)
    for i in range(3):
        alone = head.embed_support(features[i : i + 1], prototype[i : i + 1])
        assert_close(tuple(part[i : i + 1] for part in together), alone)


def test_reductions_drop_whole_channels_in_training_only():
    head, features = make_head(), random(4, 20, 3, 3)
    assert torch.equal(head.query_reduce(features), head.query_reduce(features))
    dropped = head.train().support_reduce[2](torch.ones(8, 64, 3, 3)).flatten(2)
    assert ((dropped == 0).all(-1) | (dropped == 2).all(-1)).all()
    assert 0.4 < (dropped == 0).float().mean() < 0.6


@pytest.mark.parametrize("meta_cls", [True, False])
def test_every_parameter_is_trained(meta_cls):
    head = make_head(meta_cls=meta_cls)
    support, reduced = head.embed_support(random(2, 20, 3, 3), random(2, 20))
    query = head.embed_query(random(2, 20, 3, 3), reduced, torch.rand(2, 4, 3, 3))
    prototype = head.support_prototype(support).mean((2, 3)) if meta_cls else reduced
    logits = head.logits(query, support.flatten(2).transpose(1, 2), torch.rand(2, 9), prototype)
    (logits.sigmoid() ** 2).sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_correction_of_the_prior_is_bounded_and_damped_in_use():
    head = make_head(prior_residual=True).train()
    gap, logits = torch.linspace(-1, 1, 12).view(1, 3, 4), torch.full((1, 3, 4), 1e4)
    prior = head.residual_scale * gap
    assert_close(head.corrected(gap, logits) - prior, head.own_scale * logits)
    head.eval()
    for sign in (-1, 1):
        assert_close(head.corrected(gap, sign * logits), prior + sign * MOST_CORRECTION)
    damped = head.corrected(gap, 1e-4 * logits) - prior
    assert_close(damped, TRUST * head.own_scale.expand(1, 3, 4), rtol=1e-2, atol=0)
