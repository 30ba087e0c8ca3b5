from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from models.attention import XformersAttention, use_xformers
from utils.errors import ConfigError


def operator(q, k, v):
    """What xformers computes, in its (B, N, heads, K) layout."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.skipif(importlib.util.find_spec("xformers") is not None, reason="xformers is installed")
def test_missing_xformers_names_the_key_and_the_remedy(make_vit):
    with pytest.raises(ConfigError, match=r"TRAIN\.attention.*pip install xformers.*sdpa"):
        use_xformers(make_vit())


def test_attention_is_timms(make_vit):
    attention = make_vit().blocks[0].attn.eval()
    x = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(0))
    ours = XformersAttention(attention, operator)
    assert_close(ours(x), attention(x))
    assert ours.state_dict().keys() == attention.state_dict().keys()


def test_a_vit_with_every_attention_replaced_answers_the_same(make_vit):
    vit = make_vit().eval()
    image = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    before = vit.forward_features(image)
    for block in vit.blocks:
        block.attn = XformersAttention(block.attn, operator)
    assert_close(vit.forward_features(image), before, rtol=1e-4, atol=1e-5)
