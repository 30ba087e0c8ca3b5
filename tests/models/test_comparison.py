from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from models.memory import background_only, join, label, with_foreground
from tests.models.tiny import GRID, features, shares


def near(ours, expected, tolerance=1e-5):
    assert_close(ours, expected, rtol=0, atol=tolerance)


def normal_image(maps):
    return background_only(label(maps, torch.zeros(1, len(maps[0]), *GRID)))


def remember(supports, share, further=()):
    normal = [normal_image(image).background for image in further]
    return replace(label(supports, share), normal=normal)


def priors(query, memory, weight=None):
    """Semantic, abnormal and joint prior in one tensor (B, 2 L + 1, h, w)."""
    compared = Comparison(query, memory)
    weight = torch.ones(memory.covered.shape) if weight is None else weight
    return torch.cat([*compared.priors(weight), compared.joint_prior.unsqueeze(1)], dim=1)


def vote(own, images):
    return max(own, (own + sum(images)) / (1 + len(images)))


def loops(query, supports, share, further, weight):
    """As `priors` for one query, token by token in float64; `further` are images without defect."""

    def unit(maps):
        flat = [np.float64(m).transpose(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps]
        return [layer / np.linalg.norm(layer, axis=1, keepdims=True) for layer in flat]

    asked, stored, others = unit(query), unit(supports), [unit(image) for image in further]
    views, marks = share[0].flatten(1).tolist(), share.flatten().tolist()
    centres = [layer.mean(0) for layer in stored]

    def joint(i, image, j):
        pairs = [(a[i] - c, b[j] - c) for a, b, c in zip(asked, image, centres, strict=True)]
        return np.mean([u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in pairs])

    typical = [v * 12 + j for v, view in enumerate(views) for j, s in enumerate(view)
               if s and s >= min(0.5, max(view))]  # fmt: skip
    semantic, abnormal = [], []
    for number, (a, b) in enumerate(zip(asked, stored, strict=True)):
        cosine = a @ b.T
        best = [[max(c * (s > 0) for c, s in zip(row[v * 12 :], view, strict=False))
                 for v, view in enumerate(views)] for row in cosine]  # fmt: skip
        semantic.append((best * weight[0].numpy()).sum(1) / weight.sum().item())
        images = [(a @ other[number].T).max(1) for other in others]
        own = (cosine * (1 - np.array(marks))).max(1)
        abnormal.append([1 - vote(own[i], [image[i] for image in images]) for i in range(12)])
    background = [j for j, s in enumerate(marks) if s == 0]
    gap = [
        max(joint(i, stored, j) for j in typical)
        - vote(max(joint(i, stored, j) for j in background),
               [max(joint(i, image, j) for j in range(len(image[0]))) for image in others])
        for i in range(12)
    ]  # fmt: skip
    return torch.tensor(np.array([*semantic, *abnormal, gap])).float().unflatten(-1, GRID)


@pytest.mark.parametrize(
    ("marked", "change", "weight", "images"),
    [(1, None, [1, 1, 1], []), (5, 0.0, [1, 0, 1], []), (5, 0.4, [3, 1, 1], [1]),
     (4, None, [1, 1, 1], [1, 3, 2])],
)  # fmt: skip
def test_priors_are_those_of_every_pair_of_tokens(marked, change, weight, images):
    """Also with a view without marks or without background, and with images of some views each."""
    supports, share, query = features(3, 1), shares(3, marked), features(2, 2)
    query = [torch.cat([layer[:1], -layer[1:]]) for layer in query]  # alike, and opposite
    if change is not None:
        share[0, 1] = change
    further, weight = [features(n, 10 + n) for n in images], torch.tensor([weight]).float()
    ours = priors(query, remember(supports, share, further), weight)
    assert ours.dtype == torch.float32
    for i in range(2):
        near(ours[i], loops([q[i : i + 1] for q in query], supports, share, further, weight))


def test_a_batch_of_sets_equals_each_alone():
    """Also where they differ in the number of marked tokens, and one has none."""
    supports, query = features(6, 1), features(3, 2)
    share = torch.cat([shares(2, 1), shares(2, 7, seed=3), torch.zeros(1, 2, *GRID)])
    together = priors(query, label(supports, share))
    for b in range(3):
        alone = label([s[2 * b : 2 * b + 2] for s in supports], share[b : b + 1])
        near(priors([q[b : b + 1] for q in query], alone)[0], together[b], 1e-6)
    assert (together[2, -1] <= 1e-6).all(), "nothing looks like what was never marked"


def test_a_query_equal_to_its_support_is_told_apart_token_by_token():
    supports = features(1, 1)
    share = (shares(1, 5) > 0).float()
    semantic, _, abnormal, _, gap = priors(supports, label(supports, share))[0]
    marked = share[0, 0] > 0
    assert torch.equal(gap > 0, marked) and gap.abs().amax() <= 2
    near(semantic[marked], torch.ones(5))
    near(abnormal[~marked], torch.zeros(7))
    assert (abnormal[marked] > 0.01).all()


def test_supports_without_background_give_finite_answers():
    supports, memory = features(1, 1), label(features(1, 1), torch.full((1, 1, *GRID), 0.9))
    assert priors(features(1, 2), memory).isfinite().all()
    near(priors(supports, memory)[:, -1], torch.ones(1, *GRID))


def test_normal_images_alone_score_by_the_nearest_of_all_their_tokens():
    """Without marks there is no vote; views without marks give the same, also of opposites."""
    images = [features(n, 10 + n, (64, 64)) for n in (1, 3, 2)]
    memory = with_foreground(join([normal_image(image) for image in images]))
    together = [torch.cat(layer) for layer in zip(*images, strict=True)]
    query = [torch.cat([m, -torch.ones_like(m)]) for m in features(1, 2, (64, 64))]
    cosines = []
    for pair in zip(query, together, strict=True):
        asked, stored = (torch.nn.functional.normalize(m, dim=1).flatten(2) for m in pair)
        cosines.append(torch.einsum("bcm,kcn->bmkn", asked, stored).flatten(2).amax(-1))
    expected = (1 - torch.stack(cosines)).amax(0).unflatten(1, GRID)
    anomaly = Comparison(query, memory).anomaly
    near(anomaly, expected)
    assert anomaly.max() > 1
    near(Comparison(query, label(together, torch.zeros(1, 6, *GRID))).anomaly, anomaly)
    near(Comparison(images[1], memory).anomaly, torch.zeros(3, *GRID))
