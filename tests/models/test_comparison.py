from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from models.memory import join, label, with_foreground
from tests.models.tiny import GRID, features, normal_image, priors, shares


def near(ours, expected, tolerance=1e-5):
    assert_close(ours, expected, rtol=0, atol=tolerance)


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
    normal = [normal_image(image).background for image in further]
    ours = priors(query, replace(label(supports, share), normal=normal), weight)
    assert ours.dtype == torch.float32
    for i in range(2):
        near(ours[i], loops([q[i : i + 1] for q in query], supports, share, further, weight))


def test_a_batch_of_sets_equals_each_alone():
    """Also where they differ in the number of marked tokens, and one has none, or nothing else."""
    supports, query = features(8, 1), features(4, 2)
    full = torch.full((1, 2, *GRID), 0.9)
    share = torch.cat([shares(2, 1), shares(2, 7, seed=3), torch.zeros(1, 2, *GRID), full])
    together = priors(query, label(supports, share))
    for b in range(4):
        alone = label([s[2 * b : 2 * b + 2] for s in supports], share[b : b + 1])
        near(priors([q[b : b + 1] for q in query], alone)[0], together[b], 1e-6)
    assert together.isfinite().all()
    assert (together[2, -1] <= 1e-6).all(), "nothing looks like what was never marked"


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
    anomaly = Comparison(query, memory).anomaly
    near(anomaly, (1 - torch.stack(cosines)).amax(0).unflatten(1, GRID))
    assert anomaly.max() > 1
    near(Comparison(query, label(together, torch.zeros(1, 6, *GRID))).anomaly, anomaly)
