from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from models.support_tokens import label, ready

GRID = (3, 4)


def remember(support, share):
    return ready(label(support, share), joint=True)


def difference(query, known):
    return Comparison(query, known).gap


def features(count, seed, channels=(5, 7)):
    """Per layer (count, C_l, 3, 4), with something in common and of very different lengths."""
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(count, c, *GRID, generator=rng) + 1) * 10**i for i, c in enumerate(channels)
    ]


def shares(batch, views, marked, seed=0):
    """(batch, views, 3, 4): in each view `marked` random tokens of shares about one half."""
    rng = torch.Generator().manual_seed(seed)
    share = torch.zeros(batch, views, 12)
    for view in share.view(-1, 12):
        view[torch.randperm(12, generator=rng)[:marked]] = torch.tensor(
            [0.2, 0.55, 0.45, 0.9, 0.1, 0.3, 0.7]
        )[:marked]
    return share.unflatten(-1, GRID)


def brute_force(query, support, share):
    """One query (h, w) against K supports, token by token in float64."""

    def tokens(maps):
        parts = [
            np.asarray(m, np.float64)
            .reshape(*m.shape[:2], -1)
            .transpose(0, 2, 1)
            .reshape(-1, m.shape[1])
            for m in maps
        ]
        return [p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts]

    known, asked = tokens(support), tokens(query)
    centres = [layer.mean(0) for layer in known]

    def cosine(i, j):
        total = 0.0
        for a, b, c in zip(asked, known, centres, strict=True):
            u, v = a[i] - c, b[j] - c
            total += u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        return total / len(asked)

    flat = share.flatten(1).numpy()
    foreground = [
        k * 12 + j
        for k, view in enumerate(flat)
        for j, s in enumerate(view)
        if s > 0 and s >= min(0.5, view.max())
    ]
    background = np.flatnonzero(flat.ravel() == 0)
    gaps = [
        max(cosine(i, j) for j in foreground) - max(cosine(i, j) for j in background)
        for i in range(12)
    ]
    return torch.tensor(gaps, dtype=torch.float32).view(GRID)


@pytest.mark.parametrize("marked", [1, 5])
def test_agrees_with_every_pair_of_tokens(marked):
    support, share, query = features(3, 1), shares(1, 3, marked), features(2, 2)
    gap = difference(query, remember(support, share))
    assert gap.shape == (2, *GRID) and gap.dtype == torch.float32
    for i in range(2):
        assert_close(
            gap[i], brute_force([q[i : i + 1] for q in query], support, share[0]), rtol=0, atol=1e-5
        )


def test_a_view_without_marks_adds_background_only():
    support, share, query = features(3, 1), shares(1, 3, 3), features(1, 2)
    share[0, 1] = 0
    gap = difference(query, remember(support, share))
    assert_close(gap[0], brute_force(query, support, share[0]), rtol=0, atol=1e-5)


def test_order_of_the_supports_does_not_matter():
    support, share, query = features(4, 1), shares(1, 4, 3), features(2, 2)
    order = [2, 0, 3, 1]
    shuffled = remember([s[order] for s in support], share[:, order])
    assert_close(
        difference(query, shuffled), difference(query, remember(support, share)), rtol=0, atol=1e-6
    )


def test_a_batch_of_episodes_equals_each_alone():
    """Also where they differ in the number of marked tokens, and one has none."""
    support, query = features(6, 1), features(3, 2)
    share = torch.cat([shares(1, 2, 1), shares(1, 2, 7, seed=3), torch.zeros(1, 2, *GRID)])
    together = difference(query, remember(support, share))
    for b in range(3):
        memory = remember([s[2 * b : 2 * b + 2] for s in support], share[b : b + 1])
        assert_close(
            difference([q[b : b + 1] for q in query], memory),
            together[b : b + 1],
            rtol=0,
            atol=1e-6,
        )
    assert (together[2] <= 1e-6).all(), "nothing looks like what was never marked"


def test_a_query_equal_to_its_support_is_told_apart_token_by_token():
    support = features(1, 1)
    share = (shares(1, 1, 5) > 0).float()
    gap = difference(support, remember(support, share))
    assert torch.equal(gap[0] > 0, share[0, 0] > 0)
    assert gap.abs().amax() <= 2


def test_layers_have_the_same_say_whatever_their_scale():
    support, share, query = features(2, 1), shares(1, 2, 3), features(1, 2)
    scaled = [[m * s for m, s in zip(maps, (1e-2, 30.0), strict=True)] for maps in (support, query)]
    assert_close(
        difference(scaled[1], remember(scaled[0], share)),
        difference(query, remember(support, share)),
        rtol=0,
        atol=1e-5,
    )


def test_every_token_marked_still_gives_finite_answers():
    support, query = features(1, 1), features(1, 2)
    known = remember(support, torch.full((1, 1, *GRID), 0.9))
    assert difference(query, known).isfinite().all()
    assert_close(
        difference(support, known), torch.ones(1, *GRID), msg="there is no background to be like"
    )
