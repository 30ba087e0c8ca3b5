from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from tools.checkpoint import head_state, our_name
from models.head import PRIOR_WEIGHT, Head, SelfAttention, TransformerLayer, fuse


@pytest.fixture
def head():
    torch.manual_seed(0)
    return Head(20, 4, reduce_dim=8, embed_dim=16).eval()


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_self_attention_is_torchs_multi_head_attention():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(16, 4), nn.MultiheadAttention(16, 4, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(
            torch.cat([layer.weight for layer in (ours.query, ours.key, ours.value)])
        )
        theirs.out_proj.weight.copy_(ours.out.weight)
    x = random(2, 9, 16)
    assert_close(ours(x), theirs(x, x, x, need_weights=False)[0], rtol=1e-4, atol=1e-6)


def test_transformer_layer_is_residual_and_pre_norm():
    """With both last projections at zero nothing is added, however large the input."""
    layer = TransformerLayer(16, 4).eval()
    with torch.no_grad():
        layer.attention.out.weight.zero_()
        layer.feed_forward[4].weight.zero_()
        layer.feed_forward[4].bias.zero_()
    x = 100 * random(2, 16, 3, 4)
    assert_close(layer(x), x)


def test_feed_forward_sees_only_neighbours():
    """3 x 3 depthwise: without attention a token reaches its eight neighbours and no further."""
    torch.manual_seed(0)
    layer = TransformerLayer(16, 4).eval()
    with torch.no_grad():
        layer.attention.out.weight.zero_()
        x = random(1, 16, 5, 5)
        changed = x.clone()
        changed[0, :, 2, 2] += random(16)
        moved = (layer(changed) - layer(x)).abs().amax(1)[0] > 1e-6
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[1:4, 1:4] = True
    assert torch.equal(moved, expected)


def test_feed_forward_is_exact_gelu_with_dropout_of_a_tenth():
    layer = TransformerLayer(16, 4)
    assert [m.p for m in layer.modules() if isinstance(m, nn.Dropout)] == [0.1, 0.1]
    assert [m.approximate for m in layer.modules() if isinstance(m, nn.GELU)] == ["none"]
    assert layer.feed_forward[0].out_channels == 4 * 16


def test_fusion_is_the_written_formula():
    query, support, share = random(2, 8, 3, 3), random(2, 5, 8), torch.rand(2, 5)
    fused = fuse(query, support, share, 0.1).flatten(2).transpose(1, 2)
    tokens = query.flatten(2).transpose(1, 2)
    for b in range(2):
        expected = tokens[b].clone()
        for n in range(5):
            cosine = F.cosine_similarity(tokens[b], support[b, n][None], dim=-1) * share[b, n]
            expected += (cosine / 0.1).softmax(0)[:, None] * (support[b, n] * share[b, n])
        assert_close(fused[b], expected, rtol=1e-4, atol=1e-5)


def test_fusion_ignores_tokens_without_share():
    query, support, share = (
        random(2, 8, 3, 3),
        random(2, 5, 8),
        torch.tensor([[0.9, 0.2, 0.1, 0.0, 0.0]] * 2),
    )
    assert_close(fuse(query, support, share, 0.1), fuse(query, support[:, :3], share[:, :3], 0.1))
    assert torch.equal(fuse(query, support, torch.zeros(2, 5), 0.1), query)


def test_fusion_does_not_depend_on_the_order_of_support_tokens():
    query, support, share = random(2, 8, 3, 3), random(2, 5, 8), torch.rand(2, 5)
    order = torch.tensor([3, 1, 4, 0, 2])
    assert_close(
        fuse(query, support[:, order], share[:, order], 0.1), fuse(query, support, share, 0.1)
    )


def test_one_support_set_serves_many_queries(head):
    query, support, share, prototype = (
        random(3, 16, 3, 3),
        random(1, 5, 16),
        torch.rand(1, 5),
        random(1, 16),
    )
    together = head.logits(query, support, share, prototype)
    alone = torch.cat([head.logits(query[i : i + 1], support, share, prototype) for i in range(3)])
    assert_close(together, alone)


def test_logits_are_dot_products_with_the_prototype(head):
    query, prototype = random(2, 16, 3, 3), random(2, 16)
    logits = head.logits(query, random(2, 5, 16), torch.zeros(2, 5), prototype)
    assert_close(logits, torch.einsum("bchw,bc->bhw", query, prototype))


def test_classifier_of_two_channels_gives_their_log_odds():
    torch.manual_seed(0)
    head = Head(20, 4, reduce_dim=8, embed_dim=16, meta_cls=False).eval()
    query, support, share = random(2, 16, 3, 3), random(2, 5, 16), torch.rand(2, 5)
    scores = head.classifier(fuse(query, support, share, head.temperature))
    logits = head.logits(query, support, share, torch.zeros(2, 16))
    assert_close(logits.sigmoid(), scores.softmax(1)[:, 1])
    assert head.support_prototype is None


def test_priors_are_weighted_before_the_mixing(head):
    features, prototype, priors = random(2, 20, 3, 3), random(2, 8), torch.rand(2, 4, 3, 3)
    seen = []
    head.query_mix.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head.embed_query(features, prototype, priors)
    reduced = prototype[..., None, None].expand(-1, -1, 3, 3)
    assert PRIOR_WEIGHT == 10
    assert_close(seen[0], torch.cat([head.query_reduce(features), reduced, 10 * priors], 1))


def test_every_support_is_mixed_with_its_own_prototype(head):
    features, prototype = random(3, 20, 3, 3), random(3, 20)
    together, reduced = head.embed_support(features, prototype)
    for i in range(3):
        alone, own = head.embed_support(features[i : i + 1], prototype[i : i + 1])
        assert_close(together[i : i + 1], alone)
        assert_close(reduced[i : i + 1], own)


def test_reductions_drop_whole_channels_in_training_only(head):
    features = random(4, 20, 3, 3)
    assert torch.equal(head.query_reduce(features), head.query_reduce(features))
    head.train()
    kept = head.support_reduce[2](torch.ones(8, 64, 3, 3)).flatten(2)
    assert ((kept == 0).all(-1) | (kept == 2).all(-1)).all()
    assert 0.4 < (kept == 0).float().mean() < 0.6


@pytest.mark.parametrize("meta_cls", [True, False])
def test_every_parameter_is_trained(meta_cls):
    torch.manual_seed(0)
    head = Head(20, 4, reduce_dim=8, embed_dim=16, meta_cls=meta_cls).eval()
    support, reduced = head.embed_support(random(2, 20, 3, 3), random(2, 20))
    query = head.embed_query(random(2, 20, 3, 3), reduced, torch.rand(2, 4, 3, 3))
    prototype = head.support_prototype(support).mean((2, 3)) if meta_cls else reduced
    logits = head.logits(query, support.flatten(2).transpose(1, 2), torch.rand(2, 9), prototype)
    (logits.sigmoid() ** 2).sum().backward()
    idle = [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_names_of_ours_stay_and_strange_ones_are_left_out(head):
    state = {f"head.{k}": v for k, v in head.state_dict().items()}
    assert head_state(state).keys() == head.state_dict().keys()
    assert all(our_name(name) == name for name in state)
    assert head_state({"backbone.cls_token": torch.zeros(1), "optimizer": torch.zeros(1)}) == {}
