"""What further images without defect change: against loops over every pair of tokens, and by what must hold."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models import products
from models.backbone import Backbone
from models.comparison import Comparison
from models.prior_method import PriorMethod
from models.priors import normal_vote
from models.sofs import SupportMemory
from models.support_tokens import background_of, join, label, ready

GRID = (3, 4)


def features(count, seed, channels=(5, 7)):
    """Per layer (count, C_l, 3, 4), with something in common."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(count, c, *GRID, generator=rng) + 1 for c in channels]


def shares(views, seed=0):
    """(1, views, 3, 4): in each view four random tokens are marked in part."""
    rng, share = torch.Generator().manual_seed(seed), torch.zeros(1, views, 12)
    for view in share[0]:
        view[torch.randperm(12, generator=rng)[:4]] = torch.tensor([0.2, 0.55, 0.9, 0.4])
    return share.unflatten(-1, GRID)


def normal_image(seed, views=1, channels=(5, 7)):
    return background_of(label(features(views, seed, channels), torch.zeros(1, views, *GRID)))


def own_images(seed, count=3, size=(4, 6)):
    rng = torch.Generator().manual_seed(seed)
    own, *images = (2 * torch.rand(count + 1, *size, generator=rng) - 1).unbind()
    return own, images


@pytest.mark.parametrize("seed", range(5))
def test_the_vote_lies_between_what_surrounds_the_defects_and_all_images(seed):
    own, images = own_images(seed)
    vote = normal_vote(own, images)
    assert (vote >= own).all()
    assert (vote <= torch.maximum(own, torch.stack(images).amax(0))).all()
    assert (vote <= torch.maximum(own, torch.stack(images).mean(0)) + 1e-6).all(), (
        "however many there are"
    )
    assert (vote > own).any() and (vote == own).any()


def test_the_vote_does_not_depend_on_the_order_of_the_images():
    own, images = own_images(0)
    assert_close(normal_vote(own, [images[2], images[0], images[1]]), normal_vote(own, images))


def test_images_that_look_no_more_alike_than_the_surroundings_change_nothing():
    own, images = own_images(0)
    assert torch.equal(normal_vote(own, []), own)
    assert_close(normal_vote(own, [own]), own)
    assert_close(normal_vote(own, [torch.minimum(own, image) for image in images]), own)


def test_many_images_move_the_vote_no_further_than_to_their_mean():
    """Where a maximum over all tokens would grow with every image, a single look-alike among many says little."""
    own, alike, other = torch.tensor([0.4]), torch.tensor([1.0]), torch.tensor([0.1])
    votes = [normal_vote(own, [alike] * n).item() for n in (1, 2, 10, 1000)]
    assert votes[0] == pytest.approx(0.7) and votes == sorted(votes) and votes[-1] <= 1
    assert normal_vote(own, [alike, *[other] * 20]).item() == pytest.approx(0.4)


def loops(query, tokens, share, further):
    """Abnormal prior per layer (L, 12) and gap (12,) of one query, token by token in float64; support views are given
    as features, further images as a list of such."""

    def unit(maps):
        flat = [
            np.asarray(m, np.float64).transpose(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps
        ]
        return [layer / np.linalg.norm(layer, axis=1, keepdims=True) for layer in flat]

    asked, known, others = unit(query), unit(tokens), [unit(image) for image in further]
    centres, marks = [layer.mean(0) for layer in known], share.flatten().numpy()
    views = share[0].flatten(1).numpy()
    typical = [
        v * 12 + j
        for v, view in enumerate(views)
        for j, s in enumerate(view)
        if s and s >= min(0.5, view.max())
    ]

    def vote(own, images):
        votes = [own, *images]
        return max(own, sum(votes) / len(votes)) if images else own

    def joint(i, other, j):
        parts = [(a[i] - c, b[j] - c) for a, b, c in zip(asked, other, centres, strict=True)]
        return sum(u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in parts) / len(parts)

    abnormal = [
        [
            1 - vote(max((1 - s) * (a[i] @ k) for k, s in zip(b, marks, strict=True)),
                     [max(a[i] @ k for k in other[number]) for other in others])
            for i in range(12)
        ]
        for number, (a, b) in enumerate(zip(asked, known, strict=True))
    ]  # fmt: skip
    gap = [
        max(joint(i, known, j) for j in typical)
        - vote(max(joint(i, known, j) for j in np.flatnonzero(marks == 0)),
               [max(joint(i, other, j) for j in range(len(other[0]))) for other in others])
        for i in range(12)
    ]  # fmt: skip
    return torch.tensor(abnormal, dtype=torch.float32), torch.tensor(gap, dtype=torch.float32)


def compared_with(query, tokens, share, further, channels=(5, 7)):
    """As `loops`, by a comparison."""
    normal = [
        background_of(label(image, torch.zeros(1, len(image[0]), *GRID))) for image in further
    ]
    compared = Comparison(query, ready(label(tokens, share), normal, joint=True))
    abnormal = compared.priors(torch.ones(1, share.shape[1]))[1]
    return abnormal[0].flatten(1), compared.gap[0].flatten()


@pytest.mark.parametrize("chunk", [1, 10**6])
@pytest.mark.parametrize("images", [[], [1], [1, 3, 2]])
def test_priors_with_normal_images_are_those_of_every_pair_of_tokens(monkeypatch, images, chunk):
    """Of images of as many views as the list says."""
    monkeypatch.setattr(products, "CHUNK", chunk)
    query, tokens, share = features(1, 0), features(2, 1), shares(2)
    further = [features(views, 10 + i) for i, views in enumerate(images)]
    for mine, expected in zip(compared_with(query, tokens, share, further), loops(query, tokens, share, further),
                              strict=True):  # fmt: skip
        assert_close(mine, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not products.has_int8(), reason="a CPU without VNNI")
def test_normal_images_in_eight_bits_stay_near():
    channels = (256, 300)
    query, tokens, share = features(1, 0, channels), features(2, 1, channels), shares(2)
    further = [features(views, 10 + views, channels) for views in (1, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        abnormal, gap = compared_with(query, tokens, share, further)
        normal = ready(label(tokens, share), [normal_image(11, 1, channels)], joint=True)
    assert all(
        isinstance(image, products.Int8Keys) for layer in normal.ready_normal for image in layer
    )
    assert all(isinstance(image, products.Int8Keys) for image in normal.joint.normal)
    expected = loops(query, tokens, share, further)
    assert_close(abnormal, expected[0], rtol=0, atol=8e-3)
    assert_close(gap, expected[1], rtol=0, atol=8e-3)
    without = loops(query, tokens, share, [])
    assert (gap - without[1]).abs().max() > 0.05, "the images are heard"


def test_normal_images_alone_give_the_abnormal_prior_over_all_their_tokens():
    """One minus the largest cosine to any token of any image: nobody votes where nothing is marked."""
    query, images = features(2, 0), [features(views, 10 + views) for views in (1, 3, 2)]
    first = [background_of(label(image, torch.zeros(1, len(image[0]), *GRID))) for image in images]
    compared = Comparison(query, ready(join(first), joint=True))
    assert not compared.known.is_marked and not compared.known.normal
    cosines = []
    for number in range(2):
        asked, *known = (
            torch.nn.functional.normalize(m[number], dim=1).flatten(2) for m in (query, *images)
        )
        cosines.append(
            torch.cat(
                [torch.einsum("bcm,kcn->bmkn", asked, k).flatten(2) for k in known], dim=2
            ).amax(2)
        )
    expected = (1 - torch.stack(cosines).clamp(min=0)).amax(0).unflatten(1, GRID)
    assert_close(compared.anomaly, expected, rtol=0, atol=1e-6)
    of_themselves = Comparison(images[1], compared.known).anomaly
    assert_close(of_themselves, torch.zeros(3, *GRID), rtol=0, atol=1e-5)


def test_marks_are_those_of_the_supports():
    tokens, share = features(2, 1), shares(2)
    assert ready(label(tokens, share), [normal_image(3)], joint=False).is_marked
    share[0, 0] = 0
    assert ready(label(tokens, share), joint=False).is_marked, "one view is enough"
    for nothing in (label(tokens, torch.zeros_like(share)), normal_image(3, 2)):
        assert not ready(nothing, joint=False).is_marked


@pytest.mark.parametrize("count", [1, 2, 5])
@torch.no_grad()
def test_normal_images_never_raise_the_score_of_the_prior(make_vit, episode, count):
    query, support, masks = episode
    method = PriorMethod(Backbone(make_vit(), [1, 2], 14))
    tokens = label(method.backbone(support[0]), method.shares(masks))
    rng = torch.Generator().manual_seed(count)
    pictures = [
        torch.cat([query[:1], torch.randn(1, 3, 56, 56, generator=rng)]) for _ in range(count)
    ]
    normal = [background_of(label(method.backbone(p), torch.zeros(1, 2, 4, 4))) for p in pictures]
    compared = method.backbone(query)
    before, after = (
        method.answer(Comparison(compared, ready(tokens, images, joint=True)), None, (56, 56))
        for images in ([], normal)
    )
    assert (after <= before + 1e-6).all()
    assert (after[0] < before[0]).all(), "the first query is itself among the normal images"


@torch.no_grad()
def test_the_head_hears_of_normal_images_through_the_abnormal_prior_alone(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    plain = model.encode_support(support, masks)
    normal = [background_of(label(model.backbone(query[:1]), torch.zeros(1, 1, 4, 4)))]
    tokens = label(model.backbone(support[0]), model.shares(masks))
    memory = SupportMemory(ready(tokens, normal, joint=False), plain.summary)
    weight = plain.summary.weight
    (semantic, abnormal), (same, less) = (
        Comparison(model.backbone(query), m.known).priors(weight) for m in (plain, memory)
    )
    assert_close(same, semantic)
    assert (less <= abnormal + 1e-6).all() and (less[0] < abnormal[0] - 1e-3).any()
    assert not torch.allclose(model.segment(query, memory), model.segment(query, plain), atol=1e-4)


@torch.no_grad()
def test_normal_images_leave_the_foreground_the_mean_and_the_shares(make_model, episode):
    model, (query, support, masks) = make_model(), episode
    tokens = label(model.backbone(support[0]), model.shares(masks))
    normal = [background_of(label(model.backbone(query[:1]), torch.zeros(1, 1, 4, 4)))]
    with_images, without = (ready(tokens, images, joint=True) for images in (normal, []))
    for name in ("keys", "share", "sizes", "covered", "mean"):
        assert_close(getattr(with_images, name), getattr(without, name), rtol=0, atol=0)
    assert len(with_images.normal) == 1 and with_images.normal[0][0].shape == (1, 16, 24)
    assert not dataclasses.replace(with_images, normal=[]).ready_normal[0]
