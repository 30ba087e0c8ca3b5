from __future__ import annotations

import importlib.util

import pytest
import torch
from timm.layers.attention import Attention
from torch.nn import functional as F
from torch.testing import assert_close

from models.attention import (
    ViTAttention,
    attend,
    attend_by_head,
    by_token,
    use_kernel,
    use_xformers,
)
from tests.models.tiny import tiny_vit
from utils.errors import ConfigError

NORMED = {"qk_norm": True, "scale_norm": True, "norm_layer": torch.nn.LayerNorm}


def operator(q, k, v):
    """What xformers computes, in its (B, N, heads, D) layout."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is there")
def test_missing_xformers_names_the_key_and_the_remedy():
    with pytest.raises(ConfigError, match=r"TRAIN\.attention.*pip install xformers.*sdpa"):
        use_xformers(tiny_vit())


@pytest.mark.parametrize("kernel", [by_token(operator), attend_by_head])
@pytest.mark.parametrize("settings", [{}, NORMED])
def test_attention_is_timms(kernel, settings):
    torch.manual_seed(0)
    attention = Attention(24, num_heads=3, qkv_bias=True, **settings).eval()
    x, ours = torch.randn(2, 17, 24), ViTAttention(attention, kernel)
    assert_close(ours(x), attention(x))
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in attention.named_parameters()}


def test_every_plain_attention_of_a_vit_is_replaced_and_no_other():
    torch.manual_seed(0)
    vit, image = tiny_vit().eval(), torch.randn(1, 3, 56, 56)
    gated, before = Attention(24, num_heads=3, gated=True), vit.forward_features(image)
    assert use_kernel(vit, by_token(operator)) == len(vit.blocks)
    assert_close(vit.forward_features(image), before, rtol=1e-4, atol=1e-5)
    vit.blocks[0].attn = gated
    assert use_kernel(vit, attend) == 0 and vit.blocks[0].attn is gated


def test_half_precision_loses_little_and_has_gradients():
    """Keys with much in common make large scores, which half precision would round away."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 50, 16).bfloat16() for _ in range(3))
    half = (q, k + 20, v)
    exact = F.scaled_dot_product_attention(*(t.float() for t in half))
    error = attend_by_head(*half).float() - exact
    assert (error.square().mean() / exact.square().mean()).sqrt() < 2**-7
    attend(*(t.requires_grad_() for t in (q, k, v))).float().square().sum().backward()
    assert all(t.grad.any() for t in (q, k, v))
