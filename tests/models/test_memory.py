from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from models.memory import Memory, coreset, join, label, thin
from models.priors import centred
from tests.models.tiny import features, normal_image, priors, shares


@pytest.fixture
def whole():
    """Of five views with four of twelve tokens marked."""
    return label(features(5), shares(5))


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_views_in_parts_are_as_views_at_once(sizes):
    maps, share = features(sum(sizes)), shares(sum(sizes))
    share[0, -1] = 0
    parts = zip(*(m.split(sizes) for m in maps), share.split(sizes, dim=1), strict=True)
    joined, query = join([label(list(part), s) for *part, s in parts]), features(2, 1)
    assert joined.views.item() == sum(sizes)
    assert_close(priors(query, joined), priors(query, label(maps, share)), rtol=0, atol=1e-5)


def test_thinning_keeps_the_foreground_the_mean_and_the_background_most_like_it(whole):
    assert thin(whole, 40) is whole, "there are 5 x (12 - 4) background tokens"
    few = thin(whole, 20)
    for name in ("foreground", "mean", "share"):
        assert_close(getattr(few, name), getattr(whole, name), rtol=0, atol=0)
    pairs = zip(few.background, whole.background, strict=True)
    same = [(kept[0].unsqueeze(1) == layer[0]).all(-1) for kept, layer in pairs]
    assert same[0].sum() == 20 and (same[0].sum(0) <= 1).all(), "each is one of them, none twice"
    assert torch.equal(*same), "a token keeps all its layers"
    marked, normal = (centred(t, whole.mean)[0] for t in (whole.foreground, whole.background))
    near = (normal @ marked.T).amax(1).topk(15).indices
    assert same[0][:, near].any(0).all()


def test_a_coreset_covers_what_a_random_choice_misses():
    """Many tokens alike and a few apart: the few are in it, the same ones each time."""
    draw = torch.Generator().manual_seed(0)
    crowd = torch.randn(1, 16, generator=draw) + 0.01 * torch.randn(2000, 16, generator=draw)
    layer = torch.cat([crowd, 3 * torch.randn(10, 16, generator=draw)])
    chosen = coreset([layer], 64)
    assert len(chosen.unique()) == 64 and set(range(2000, 2010)) <= set(chosen.tolist())
    assert torch.equal(chosen, coreset([layer], 64))
    assert len(coreset([torch.ones(50, 4)], 20).unique()) == 20, "also of equal tokens"


def test_a_memory_comes_back_from_its_tensors(whole):
    extras = {"SOFS": {"weight": torch.ones(1, 5)}, "other": {"a.b": torch.zeros(2)}}
    normal = [normal_image(features(n, n)).background for n in (1, 2)]
    memory = replace(whole, normal=normal, extras=extras)
    tensors = memory.to_tensors()
    back = Memory.from_tensors(
        tensors, windows=[70], thresholds={"prior": 0.4}, gates={}, border_offset=0.3
    )
    assert_close(back.to_tensors(), tensors, rtol=0, atol=0)
    assert back.extras.keys() == memory.extras.keys()
    assert back.window == 70 and back.thresholds == {"prior": 0.4}
    assert back.border_offset == 0.3
    assert torch.equal(priors(features(2, 9), back), priors(features(2, 9), memory))
