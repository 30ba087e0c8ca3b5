from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from models.comparison import Comparison
from models.memory import Memory, background_only, coreset, join, label, thin
from models.priors import centred, unit_tokens
from tests.models.tiny import GRID, features, shares


def answers(memory, query):
    """All that a comparison gives, in one tensor."""
    compared = Comparison(query, memory)
    maps = [*compared.priors(torch.ones(memory.covered.shape)), compared.joint_prior.unsqueeze(1)]
    return torch.cat(maps, dim=1)


def positions(few, many):
    """Which of the tokens (M, C) each of (m, C) is, bool (m, M)."""
    return (few.unsqueeze(1) == many).all(-1)


@pytest.fixture
def whole():
    """Of five views with four of twelve tokens marked."""
    return label(features(5), shares(5))


def test_labels_sort_every_token_by_its_share():
    maps, share = features(3), shares(3)
    share[0, 1], share[0, 2] = 0, 0.5
    memory, tokens = label(maps, share), unit_tokens(features(3)[0]).flatten(0, 1)
    assert memory.sizes == [4, 1, 12] and memory.covered.tolist() == [[False, False, True]]
    for view, block in zip(share[0], memory.share[0].split(memory.sizes), strict=True):
        marked = view[view > 0].sort(descending=True).values
        assert_close(block, marked if len(marked) else torch.zeros(1))
    marked, normal = (share.flatten() > 0).nonzero()[:, 0], (share.flatten() == 0).nonzero()[:, 0]
    assert positions(memory.background[0][0], tokens[normal]).sum() == len(normal) == 8 + 12
    where = positions(memory.foreground[0][0][memory.share[0] > 0], tokens[marked])
    assert where.sum() == len(marked)
    assert torch.equal(
        share.flatten()[marked][where.int().argmax(1)], memory.share[memory.share > 0]
    )
    assert_close(memory.mean[0][0, 0], tokens.mean(0))
    assert memory.is_marked and not label(maps, torch.zeros_like(share)).is_marked


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4))
def test_views_in_parts_are_as_views_at_once(sizes):
    maps, share = features(sum(sizes)), shares(sum(sizes))
    share[0, -1] = 0
    parts = zip(*(m.split(sizes) for m in maps), share.split(sizes, dim=1), strict=True)
    joined, query = join([label(list(part), s) for *part, s in parts]), features(2, 1)
    assert joined.views.item() == sum(sizes)
    assert_close(answers(joined, query), answers(label(maps, share), query), rtol=0, atol=1e-5)


def test_thinning_keeps_the_foreground_the_mean_and_the_background_most_like_it(whole):
    assert thin(whole, 40) is whole, "there are 5 x (12 - 4) background tokens"
    few = thin(whole, 20)
    for name in ("foreground", "mean", "share"):
        assert_close(getattr(few, name), getattr(whole, name), rtol=0, atol=0)
    pairs = zip(few.background, whole.background, strict=True)
    same = [positions(kept[0], layer[0]) for kept, layer in pairs]
    assert same[0].sum() == 20 and (same[0].sum(0) <= 1).all(), "each is one of them, none twice"
    assert torch.equal(*same), "a token keeps all its layers"
    marked, normal = (centred(t, whole.mean)[0] for t in (whole.foreground, whole.background))
    near = (normal @ marked.T).amax(1).topk(15).indices
    assert same[0][:, near].any(0).all()
    unmarked = label(features(5), torch.zeros(1, 5, *GRID))
    assert thin(unmarked, 30).background[0].shape[1] == 30, "a coreset alone"


def test_a_coreset_covers_what_a_random_choice_misses():
    """Many tokens alike and a few apart: the few are in it, the same ones each time."""
    draw = torch.Generator().manual_seed(0)
    crowd = torch.randn(1, 16, generator=draw) + 0.01 * torch.randn(2000, 16, generator=draw)
    layer = torch.cat([crowd, 3 * torch.randn(10, 16, generator=draw)])
    chosen = coreset([layer], 64)
    assert len(chosen.unique()) == 64 and set(range(2000, 2010)) <= set(chosen.tolist())
    assert torch.equal(chosen, coreset([layer], 64))
    assert len(coreset([torch.ones(50, 4)], 20).unique()) == 20, "also of equal tokens"


@pytest.fixture
def stored(whole):
    """A memory with everything in it, and its tensors."""
    extras = {"SOFS": {"weight": torch.ones(1, 5)}, "other": {"a.b": torch.zeros(2)}}
    normal = [background_only(label(features(n, n), torch.zeros(1, n, *GRID))) for n in (1, 2)]
    memory = replace(whole, normal=[image.background for image in normal], extras=extras)
    return memory, memory.to_tensors()


def test_a_memory_comes_back_from_its_tensors(stored):
    memory, tensors = stored
    back = Memory.from_tensors(tensors, windowed=False, thresholds={"prior": 0.4})
    assert_close(back.to_tensors(), tensors, rtol=0, atol=0)
    assert back.sizes == memory.sizes and back.extras.keys() == memory.extras.keys()
    assert not back.windowed and back.thresholds == {"prior": 0.4}
    query = features(2, 9)
    assert torch.equal(answers(back, query), answers(memory, query))
    tensors["share"].zero_()
    assert memory.is_marked, "the tensors are copies"


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"foreground.0": None}, "foreground.0 is missing"), ({"odd": torch.ones(1)}, "odd does not"),
     ({"mean.1": torch.full((1, 1, 7), torch.nan)}, "mean.1 holds values that are not finite"),
     ({"sizes": torch.tensor([4] * 4)}, "do not fit"),
     ({"foreground.1": torch.ones(1, 3, 7)}, "do not fit")],
)  # fmt: skip
def test_tensors_that_are_no_memory_are_refused(stored, change, reason):
    tensors = {name: value for name, value in (stored[1] | change).items() if value is not None}
    with pytest.raises(ValueError, match=reason):
        Memory.from_tensors(tensors, windowed=True, thresholds={})
