from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models import memory
from models.comparison import Comparison
from models.memory import join, label
from models.methods.contrast import Contrast
from tests.models.tiny import answer, features, remember, shares

GRID, TOKENS = (6, 8), 48


def maps_of(views, seed):
    """Per layer (views, C_l, 6, 8), with something in common and of very different lengths."""
    draw = torch.Generator().manual_seed(seed)
    return [
        10**i * (torch.randn(views, c, *GRID, generator=draw) + 1) for i, c in enumerate((5, 7))
    ]


def vote(own, images):
    return max(own, (own + sum(images)) / (1 + len(images)))


def nearest(values):
    return np.mean(sorted(values)[-3:])


def by_hand(query, supports, share, further):
    """The score (h, w) of one window, token by token in float64."""

    def unit(vector):
        return vector / np.linalg.norm(vector)

    def tokens(maps):  # of each layer a list
        flat = [layer.double().movedim(1, -1).flatten(0, 2).numpy() for layer in maps]
        return [[unit(token) for token in layer] for layer in flat]

    centres = [np.mean(layer, axis=0) for layer in tokens(supports)]

    def joined(maps):  # of each token a list of layers
        parts = [
            [unit(t - c) for t in layer] for layer, c in zip(tokens(maps), centres, strict=True)
        ]
        return list(zip(*parts, strict=True))

    def cosines(a, b):
        return [u @ v for u, v in zip(a, b, strict=True)]

    asked, stored, others = joined(query), joined(supports), [joined(image) for image in further]
    views = share[0].flatten(1).tolist()
    foreground = [stored[TOKENS * v + j] for v, view in enumerate(views)
                  for j, s in enumerate(view) if s and s >= min(0.5, max(view))]  # fmt: skip
    background = [t for t, s in zip(stored, share.flatten().tolist(), strict=True) if not s]

    def similar(token, several, reduce):
        return reduce([np.mean(cosines(token, other)) for other in several])

    def surroundings(token, reduce):
        images = [similar(token, image, reduce) for image in others]
        return vote(similar(token, background, reduce), images)

    contrast = [similar(t, foreground, max) - surroundings(t, nearest) for t in asked]
    flat = [np.concatenate(token) / 2**0.5 for token in asked]
    sets = [
        [np.concatenate(t) / 2**0.5 for t in s]
        for s in (foreground, background, [*background, *(t for image in others for t in image)])
    ]
    wide = sets.pop()
    discriminant = probe_by_hand(np.array(sets[0]), np.array(wide))
    means = [np.mean(s, axis=0) for s in sets]
    defect, normal = map(unit, means)
    middle = np.mean([mean @ (defect - normal) for mean in means])
    sure = [t for t, c in zip(flat, contrast, strict=True) if c > max(max(contrast) / 2, 0.05)]
    half = [t for t, c in zip(flat, contrast, strict=True)
            if c <= sorted(contrast)[(TOKENS - 1) // 2]]  # fmt: skip
    own = unit((np.mean(sure, axis=0) if sure else 0) + defect) - unit(np.mean(half, axis=0))
    values = [c + 0.3 * ((t @ own if sure else 0) - middle) + 0.4 * discriminant(t)
              for t, c in zip(flat, contrast, strict=True)]  # fmt: skip
    return torch.tensor(np.array(values)).float().unflatten(0, GRID)


def probe_by_hand(foreground, background):
    """The discriminant, in the axes of the background: 0.5 at the mean foreground, -0.5 at that of
    the background."""
    variances, axes = np.linalg.eigh(np.cov(background.T, ddof=0))
    variances = variances + 0.3 * variances.mean() + 1e-6
    ends = [group.mean(axis=0) @ axes for group in (foreground, background)]
    direction = (ends[0] - ends[1]) / variances
    start, end = (place @ direction for place in ends[::-1])
    return lambda token: (token @ axes @ direction - start) / (end - start) - 0.5


def marks(*views):
    """Shares (1, K, 6, 8) by places of tokens."""
    share = torch.zeros(1, len(views), TOKENS)
    for view, values in zip(share[0], views, strict=True):
        for place, value in values.items():
            view[place] = value
    return share.unflatten(2, GRID)


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize(
    "share",
    [marks({3: 0.9, 4: 0.55, 11: 0.3, 12: 0.2}, {7: 0.3, 8: 0.2, 20: 0.3}), marks({5: 1.0}, {}),
     marks(dict.fromkeys(range(TOKENS), 0.7), {1: 0.4})],
)  # fmt: skip
def test_scores_are_those_of_every_pair_of_tokens(share, images):
    """Also where few tokens are marked, all of a view or none, and with images without defect."""
    supports, query, further = (
        maps_of(2, 1),
        maps_of(3, 2),
        [maps_of(2, 9 + i) for i in range(images)],
    )
    query = [torch.cat([layer[:2], -layer[2:]]) for layer in query]  # and opposite
    normal = [label(image, torch.zeros(1, 2, *GRID)).background for image in further]
    ours = Comparison(query, replace(label(supports, share), normal=normal)).score
    assert ours.dtype == torch.float32 and ours.shape == (3, *GRID)
    for i in range(3):
        expected = by_hand([layer[i : i + 1] for layer in query], supports, share, further)
        assert_close(ours[i], expected, rtol=0, atol=1e-5)


def test_the_probe_of_many_background_tokens_takes_every_so_many_of_them(monkeypatch):
    """Each token twice in a row, of which every second one counts: the same probe."""
    once = label(maps_of(2, 1), marks({3: 0.9, 4: 0.55}, {7: 0.6}))
    twice = replace(once, background=[t.repeat_interleave(2, dim=1) for t in once.background])
    monkeypatch.setattr(memory, "SCATTERED", once.background[0].shape[1])
    for ours, expected in zip(twice.probe, once.probe, strict=True):
        assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(memory, "SCATTERED", 4)
    assert not torch.allclose(replace(twice).probe[0], once.probe[0], rtol=1e-2)


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_a_batch_of_sets_are_those_of_each_alone(sign):
    """However many tokens are marked, also none or all, and though nothing looks like a memory."""
    supports, query = features(8, 1), [sign * layer for layer in features(4, 2)]
    full = torch.full((1, 2, 3, 4), 0.9)
    share = torch.cat([shares(2, 1), shares(2, 7, seed=3), torch.zeros(1, 2, 3, 4), full])
    together = Comparison(query, label(supports, share))
    assert together.score.isfinite().all()
    for b in range(4):
        memory = label([layer[2 * b : 2 * b + 2] for layer in supports], share[b : b + 1])
        alone = Comparison([layer[b : b + 1] for layer in query], memory)
        assert_close(together.score[b], alone.score[0], rtol=0, atol=1e-5)
        assert_close(together.joint_prior[b], alone.joint_prior[0], rtol=0, atol=1e-5)


def test_scores_by_supports_that_join_are_those_by_all_at_once():
    supports, share, query = maps_of(3, 1), marks({3: 0.9, 4: 0.3}, {}, {9: 0.2}), maps_of(2, 2)
    parts = [label([s[k : k + 1] for s in supports], share[:, k : k + 1]) for k in range(3)]
    expected = Comparison(query, label(supports, share)).score
    assert_close(Comparison(query, join(parts)).score, expected, rtol=0, atol=1e-5)


def defective(places, seed):
    """Grey noise (K, 3, 56, 56) with a bright square of two by two tokens each, and its masks."""
    draw = torch.Generator().manual_seed(seed)
    images = 0.3 * torch.randn(len(places), 3, 56, 56, generator=draw)
    masks = torch.zeros(len(places), 56, 56, dtype=torch.uint8)
    for image, mask, (top, left) in zip(images, masks, places, strict=True):
        image[:, top : top + 28, left : left + 28] += 3
        mask[top : top + 28, left : left + 28] = 1
    return images, masks


@torch.no_grad()
def test_contrast_finds_a_defect_that_looks_like_that_of_the_supports(make_model):
    contrast = Contrast(make_model().backbone)
    supports, masks = defective([(0, 14), (28, 28)], 0)
    memory = remember([contrast], supports[None], masks[None])
    images, expected = defective([(14, 0), (28, 14), (0, 28)], 1)
    scores = answer(contrast, images, memory)
    assert scores.shape == (3, 56, 56) and scores.min() >= 0 and scores.max() <= 1
    for found, mask in zip(scores > 0.5, expected > 0, strict=True):
        assert (found & mask).sum() > 0.7 * (found | mask).sum()
    unmarked = remember([contrast], supports[None], masks[None] * 0)
    abnormal = Comparison(contrast.backbone(images), unmarked).anomaly
    shown = answer(contrast, images, unmarked)
    assert shown.shape == (3, 56, 56) and shown.min() >= 0 and shown.max() <= abnormal.max() <= 2
