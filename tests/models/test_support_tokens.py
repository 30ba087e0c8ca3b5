from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from models.coreset import coreset
from models.joint_prior import centred
from models.support_tokens import background_of, join, label, ready, thin

GRID = (4, 5)
CHANNELS = (6, 9)


def views(count, seed=0, marked=3):
    """Features per layer (count, C_l, 4, 5) and shares (1, count, 4, 5) with `marked` tokens per view."""
    draw = torch.Generator().manual_seed(seed)
    features = [torch.randn(count, c, *GRID, generator=draw) + 1 for c in CHANNELS]
    share = torch.zeros(1, count, 20)
    for view in share[0]:
        view[torch.randperm(20, generator=draw)[:marked]] = (
            torch.rand(marked, generator=draw) * 0.9 + 0.05
        )
    return features, share.unflatten(-1, GRID)


def answers(tokens, query):
    """All that a comparison says, in one tensor."""
    compared = Comparison(query, ready(tokens, joint=True))
    return torch.cat(
        [*compared.priors(torch.ones(1, len(tokens.sizes))), compared.gap.unsqueeze(1)], dim=1
    )


@pytest.mark.parametrize("sizes", [(1, 3), (2, 2), (1, 1, 1, 1)])
def test_views_in_parts_are_as_views_at_once(sizes):
    (features, share), (query, _) = views(4), views(2, seed=1)
    share[0, 1] = 0
    parts = zip(*(f.split(sizes) for f in features), strict=True)
    joined = join(
        [label(list(f), s) for f, s in zip(parts, share.split(sizes, dim=1), strict=True)]
    )
    assert_close(answers(joined, query), answers(label(features, share), query), rtol=0, atol=1e-5)


def test_counts_stand_for_repeated_views():
    (features, share), (query, _) = views(2), views(2, seed=1)
    order = [0, 0, 0, 1]
    repeated = label([f[order] for f in features], share[:, order])
    counted = label(features, share, torch.tensor([[3.0, 1.0]]))
    assert_close(counted.mean, repeated.mean)
    gaps = [Comparison(query, ready(tokens, joint=True)).gap for tokens in (repeated, counted)]
    assert_close(gaps[0], gaps[1], rtol=0, atol=1e-6)


def test_normal_views_alone_say_what_views_without_marks_say():
    """Also of what is the opposite of all of them."""
    features, share = views(2, marked=0)
    tokens, query = label(features, share), [-layer for layer in features]
    known = [
        Comparison(query, ready(t, joint=False)).anomaly for t in (tokens, background_of(tokens))
    ]
    assert_close(known[1], known[0])
    assert known[0].max() > 1


def test_thinning_keeps_the_foreground_the_mean_and_a_part_of_the_background():
    features, share = views(5)
    whole = label(features, share)
    assert thin(whole, 85) is whole, "there are 5 x (20 - 3) background tokens"
    few = thin(whole, 30)
    assert_close(few.foreground, whole.foreground)
    assert_close(few.mean, whole.mean)
    for kept, known in zip(few.background, whole.background, strict=True):
        assert kept.shape == (1, 30, known.shape[2])
        same = (kept[0].unsqueeze(1) == known[0]).all(-1)
        assert (same.sum(0) <= 1).all() and (same.sum(1) == 1).all(), (
            "each is one of them, none twice"
        )
    pairs = zip(few.background, whole.background, strict=True)
    positions = [
        (kept[0].unsqueeze(1) == known[0]).all(-1).int().argmax(1) for kept, known in pairs
    ]
    assert torch.equal(*positions), "a token keeps all its layers"


def test_thinning_keeps_what_looks_most_like_the_marked_tokens():
    whole = label(*views(5))
    kept = thin(whole, 40).background
    marked, normal = (centred(t, whole.mean)[0] for t in (whole.foreground, whole.background))
    near = (normal @ marked[whole.share[0] > 0].T).amax(1).topk(30).indices
    for few, all_of_them in zip(kept, whole.background, strict=True):
        assert (few[0].unsqueeze(1) == all_of_them[0, near]).all(-1).any(0).all()


def test_thinning_views_without_marks_keeps_a_coreset():
    features, _ = views(5)
    few = thin(label(features, torch.zeros(1, 5, *GRID)), 30)
    assert few.background[0].shape[1] == 30


def test_a_coreset_covers_what_a_random_choice_misses():
    """Many tokens alike and a few apart: the few are in it."""
    draw = torch.Generator().manual_seed(0)
    crowd = torch.randn(1, 16, generator=draw) + 0.01 * torch.randn(2000, 16, generator=draw)
    apart = 3 * torch.randn(10, 16, generator=draw)
    chosen = coreset([torch.cat([crowd, apart])], 64)
    assert len(chosen.unique()) == 64
    assert set(range(2000, 2010)) <= set(chosen.tolist())
    assert torch.equal(chosen, coreset([torch.cat([crowd, apart])], 64)), "the same each time"


def test_a_coreset_of_equal_tokens_is_still_of_its_size():
    assert len(coreset([torch.ones(50, 4)], 20).unique()) == 20
