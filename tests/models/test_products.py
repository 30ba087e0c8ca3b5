from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from models import products
from models.backbone import build_backbone
from models.products import Int8Keys, PlainKeys, as_keys, best_similarity, has_int8

KINDS = [
    PlainKeys,
    pytest.param(Int8Keys, marks=pytest.mark.skipif(not has_int8(), reason="a CPU without VNNI")),
]


def tokens(*shape, seed=0, outlier=0.0):
    """Unit tokens, of which one channel may hold most of the length, as some of a transformer's do."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    values[..., 3] += outlier
    return F.normalize(values, dim=-1)


def products_of(keys, queries, count):
    """All products (B, M, count) but the last, which must be the largest of one."""
    own, last = keys.compare(queries, count - 1)
    return torch.cat([own, last.unsqueeze(-1)], dim=-1)


@pytest.mark.parametrize("chunk", [1, 700, 10**7])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_of_all_queries_with_all_keys(monkeypatch, kind, chunk):
    monkeypatch.setattr(products, "CHUNK", chunk)
    queries, known = 7 * tokens(2, 21, 64), tokens(1, 33, 64, seed=1)
    expected = queries @ known[0].T
    exact = kind is PlainKeys
    assert_close(
        products_of(kind(known), queries, 33), expected, rtol=0, atol=1e-5 if exact else 7 * 8e-3
    )


@pytest.mark.parametrize(("outlier", "most"), [(0, 5e-4), (20, 3.3e-3), (200, 3.3e-3)])
@pytest.mark.skipif(not has_int8(), reason="a CPU without VNNI")
def test_eight_bits_lose_little_whatever_the_channels_hold(outlier, most):
    queries, known = (
        tokens(1, 500, 768, outlier=outlier),
        tokens(1, 400, 768, seed=1, outlier=outlier),
    )
    exact = (queries[0].double() @ known[0].double().T)[None]
    assert (
        products_of(Int8Keys(known), queries, 400).double() - exact
    ).square().mean().sqrt() < most


@pytest.mark.skipif(not has_int8(), reason="a CPU without VNNI")
def test_empty_tokens_have_no_similarity():
    known, queries = tokens(1, 5, 32), torch.zeros(1, 3, 32)
    assert products_of(Int8Keys(known), queries, 5).count_nonzero() == 0
    assert products_of(Int8Keys(torch.zeros(1, 5, 32)), known, 5).count_nonzero() == 0


FAMILIES = {
    "dinov2_vits14": ([5, 11], 14), "dinov2_vits14_reg": ([5, 11], 14), "resnet50": ([1, 2, 3], 8),
    "wideresnet50": ([2, 3], 8), "efficientnet_lite0": ([1, 4], 8), "timm:vit_tiny_patch16_224": ([11], 16),
    "timm:convnext_femto": ([1, 2, 3], 8),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def features(request):
    """Features of three images in bf16 by backbone, (3, N, C) tokens of each layer."""
    layers, stride = FAMILIES[request.param]
    torch.manual_seed(0)
    own = request.param == "efficientnet_lite0"
    backbone = build_backbone(
        request.param, layers=layers, image_size=224, stride=stride, pretrained=own
    )
    images = torch.rand(3, 3, 28, 28)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = backbone(F.interpolate(images, (224, 224), mode="bicubic"))
    return [layer.flatten(2).transpose(1, 2) for layer in maps]


@pytest.mark.parametrize("kind", KINDS)
def test_similarities_of_every_family_in_bf16_are_those_of_float64(features, kind):
    """From tokens as the backbone gives them: of any length, some of one sign, and as they lie in memory."""
    for layer in features:
        known = F.normalize(layer[:1].float(), dim=-1).bfloat16()
        exact = F.normalize(layer[1:].double(), dim=-1) @ known[0].double().T
        own, best = kind(known).compare(layer[1:], 5)
        length = torch.linalg.vector_norm(
            layer[1:], dim=-1, keepdim=True, dtype=torch.float32
        ).clamp(min=1e-12)
        for found, expected in (
            (own / length, exact[..., :5]),
            (best / length[..., 0], exact[..., 5:].amax(-1)),
        ):
            error = (found.double() - expected).abs()
            assert error.mean() < 0.002 and error.max() < 0.006
        assert (1 - exact).std() > 0.001, "there is something to tell apart"


def test_sets_of_keys_serve_a_query_each():
    queries, known = tokens(2, 6, 16), tokens(2, 9, 16, seed=1)
    assert_close(
        products_of(PlainKeys(known), queries, 9),
        queries @ known.transpose(1, 2),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("sets", "channels", "eight"), [(1, 256, True), (2, 256, False), (1, 255, False)]
)
def test_eight_bits_are_for_half_precision_one_set_and_many_channels(sets, channels, eight):
    known = tokens(sets, 9, channels)
    assert isinstance(as_keys(known), PlainKeys)
    assert isinstance(as_keys(known.bfloat16()), Int8Keys if eight and has_int8() else PlainKeys)


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
@pytest.mark.parametrize("first", [0, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_the_best_is_the_largest_of_all_others(monkeypatch, chunk, first, shared):
    monkeypatch.setattr(products, "CHUNK", chunk)
    queries, known = tokens(2, 9, 8), tokens(1 if shared else 2, 27, 8, seed=1)
    dense = queries @ known.transpose(1, 2)
    own, best = as_keys(known).compare(queries, first)
    assert_close(own, dense[..., :first], rtol=0, atol=1e-6)
    assert_close(best, dense[..., first:].amax(-1), rtol=0, atol=1e-6)
    assert_close(best_similarity(queries, as_keys(known)), dense.amax(-1), rtol=0, atol=1e-6)
