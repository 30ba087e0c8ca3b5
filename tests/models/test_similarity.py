from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from models import similarity
from models.similarity import Keys, mean_of

SIZES = {"batch": st.integers(1, 3), "queries": st.integers(1, 40), "keys": st.integers(2, 70)}


def tokens(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@settings(max_examples=50, deadline=None)
@given(**SIZES, sets=st.booleans(), piece=st.sampled_from([1, 200, 9**9]))
def test_products_in_pieces_are_those_of_all_pairs(batch, queries, keys, sets, piece):
    rows = 7 * tokens(batch, queries, 8)
    stored = tokens(batch if sets else 1, keys, 8, seed=1)
    dense = rows @ stored.transpose(1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "PRODUCTS", piece)
        patch.setattr(similarity, "ROWS", 4)
        every, best = Keys(stored).products(rows), Keys(stored).largest(rows, 1)
        three = Keys(stored).largest(rows, 3)
        few = Keys(stored, torch.arange(keys).expand(len(stored), -1) >= 2).largest(rows, 3)
    there = min(3, keys)
    assert_close(three[..., :there], dense.topk(there).values, rtol=0, atol=1e-5)
    assert three.shape[-1] == 3 and three[..., there:].eq(-torch.inf).all()
    assert_close(mean_of(three), dense.topk(there).values.mean(-1), rtol=0, atol=1e-5)
    assert_close(mean_of(few), dense[..., :2].mean(-1), rtol=0, atol=1e-5)
    assert_close(every, dense, rtol=0, atol=1e-5)
    assert_close(best, dense.amax(-1, keepdim=True), rtol=0, atol=1e-5)


def test_half_precision_loses_little_though_one_channel_holds_most_of_the_length():
    common = 200 * torch.eye(768)[3]
    rows, stored = (F.normalize(tokens(1, 300, 768, seed=n) + common, dim=-1) for n in (0, 1))
    exact = rows[0].double() @ stored[0].double().T
    products = Keys(stored.bfloat16()).products(rows.bfloat16())
    error = (products[0].double() - exact).abs()
    assert products.dtype == torch.float32 and error.mean() < 2e-3 and error.max() < 6e-3
