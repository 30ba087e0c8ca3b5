from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from models.comparison import Comparison
from tools.prediction.support_encoder import NORMAL_POOL, SupportEncoder

SIDE = 64
TOKENS = (SIDE // 8) ** 2


@pytest.fixture
def make(predictor):
    """An encoder for the head and the prior, two views per pass; options go to it."""
    return lambda **options: SupportEncoder(
        list(predictor.methods.values()), torch.device("cpu"), **({"batch": 2} | options)
    )


@pytest.fixture
def ask(predictor):
    """Scores of both methods on two random windows, by a memory."""
    windows = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))

    @torch.inference_mode()
    def answers(memory):
        compared = Comparison(predictor.backbone(windows), memory.known)
        return {
            n: m.answer(compared, memory.summary, (SIDE, SIDE))
            for n, m in predictor.methods.items()
        }

    return answers


def views(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for number, mask in enumerate(masks):
        mask[8 : 24 + 8 * (number % 3), 8:40] = 1
    return torch.randn(count, 3, SIDE, SIDE, generator=draw), masks


def pictures(count, seed=0, side=SIDE):
    return list(
        np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    )


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("sizes", [(1, 4), (2, 3), (1, 1, 1, 1, 1)])
def test_supports_encoded_in_parts_are_those_encoded_at_once(make, ask, sizes, mirrored):
    """Also where views are without marks, which weigh nothing in the head's means."""
    encoder, (images, masks) = make(mirrored=mirrored), views(5)
    masks[1] = 0
    whole = encoder.remember([encoder.encode(images, masks)])
    parts = [
        encoder.encode(i, m) for i, m in zip(images.split(sizes), masks.split(sizes), strict=True)
    ]
    joined = encoder.remember(parts)
    assert whole.summary.weight.tolist() == joined.summary.weight.tolist() == [[1, 0, 1, 1, 1]]
    assert_close(joined.summary.prototype, whole.summary.prototype, rtol=0, atol=1e-5)
    assert_close(
        joined.summary.support_prototype, whole.summary.support_prototype, rtol=0, atol=1e-5
    )
    assert_close(joined.known.mean, whole.known.mean, rtol=0, atol=1e-6)
    assert_close(ask(joined), ask(whole), rtol=0, atol=1e-5)


def test_views_per_pass_do_not_change_the_memory(make, ask):
    encoders = [make(batch=batch) for batch in (1, 3, 100)]
    answers = [
        ask(e.remember([e.encode(*views(5))], [e.encode_normal(pictures(3), SIDE)]))
        for e in encoders
    ]
    for other in answers[1:]:
        assert_close(other, answers[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 0, 2, 0, 1], [0, 0, 0]])
def test_equal_views_weigh_as_often_as_they_are_given(make, ask, predictor, order):
    """Encoded once where they come together, and the same as in parts, where they are encoded each time."""
    encoder, (images, masks) = make(batch=4), views(3)
    seen = []
    hook = predictor.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    together = encoder.encode(images[order], masks[order])
    hook.remove()
    assert sum(seen) == len(set(order))
    apart = [encoder.encode(images[[i]], masks[[i]]) for i in order]
    one, other = encoder.remember([together]), encoder.remember(apart)
    assert one.summary.weight.sum() == other.summary.weight.sum() == len(order)
    assert_close(one.summary.prototype, other.summary.prototype, rtol=0, atol=1e-5)
    assert_close(ask(one), ask(other), rtol=0, atol=1e-5)


def test_views_that_differ_in_the_mask_alone_are_both_kept(make):
    images, masks = views(2)
    images[1] = images[0]
    masks[1, 40:48, 40:48] = 1
    assert len(make().encode(images, masks).tokens.sizes) == 2


@pytest.mark.parametrize(
    ("budget", "count", "kept"), [(40, 1, 40), (40, 2, 20), (40, 3, 13), (4, 6, 1), (0, 2, TOKENS)]
)
def test_normal_images_share_the_budget_of_tokens(make, ask, budget, count, kept):
    """Beside as many tokens of the defects' surroundings; 0 keeps all, and each image keeps some."""
    encoder = make(memory_tokens=budget)
    normal = [encoder.encode_normal([picture], SIDE) for picture in pictures(count)]
    memory = encoder.remember([encoder.encode(*views(2))], normal)
    assert [[layer.shape[1] for layer in image] for image in memory.known.normal] == [
        [kept] * 3
    ] * count
    own = memory.known.keys[0].shape[1] - memory.known.share.shape[1]
    assert own == (budget or own)
    assert all(answer.isfinite().all() for answer in ask(memory).values())


def test_thinned_normal_images_keep_what_looks_most_like_the_defect(make):
    """An image that shows what the support's mask marks keeps these tokens."""
    encoder, picture = make(memory_tokens=32), pictures(1)[0]
    (image,) = [encoder.encode_normal([picture], SIDE)]
    whole = make().encode_normal([picture], SIDE)
    images, masks = views(1)
    part = encoder.encode(images, masks)
    memory = encoder.remember([part], [image])
    kept, every = memory.known.normal[0][0][0], whole.background[0][0]
    places = (kept.unsqueeze(1) == every).all(-1)
    assert (places.sum(1) == 1).all(), "each is one of the image's own"
    centre = part.tokens.mean
    unit = [
        torch.nn.functional.normalize(b - c, dim=-1)
        for b, c in zip(whole.background, centre, strict=True)
    ]
    marks = [
        torch.nn.functional.normalize(f - c, dim=-1)
        for f, c in zip(part.tokens.foreground, centre, strict=True)
    ]
    alike = sum((u @ m.transpose(1, 2))[0] for u, m in zip(unit, marks, strict=True)).amax(1)
    assert set(alike.topk(24).indices.tolist()) <= set(places.nonzero()[:, 1].tolist())


def test_a_normal_image_of_very_many_views_is_held_in_bounded_memory(make):
    """Views may come from a generator; what is kept of them stays near the pool that later choices are made from."""
    encoder = make(memory_tokens=20)
    held = []

    def come(image):
        held.append(image)
        return image

    tokens = encoder.encode_normal((come(picture) for picture in pictures(30)), SIDE)
    assert len(held) == 30 and tokens.views.item() > 0
    count = tokens.background[0].shape[1]
    assert NORMAL_POOL * 20 <= count <= 2 * NORMAL_POOL * 20 < 30 * TOKENS
    assert_close(tokens.mean, make().encode_normal(pictures(30), SIDE).mean, rtol=0, atol=1e-5)


def test_a_normal_image_has_neither_foreground_nor_summary(make):
    tokens = make().encode_normal(pictures(2), SIDE)
    assert tokens.sizes == [] and tokens.share.shape == (1, 0) and tokens.views.item() == 2
    assert [layer.shape[:2] for layer in tokens.background] == [(1, 2 * TOKENS)] * 3
    memory = make().remember([], [tokens])
    assert memory.summary is None and not memory.known.is_marked and not memory.known.normal


@pytest.mark.parametrize("budget", [0, 50])
def test_normal_images_alone_are_all_that_is_known(make, ask, budget):
    encoder = make(memory_tokens=budget)
    memory = encoder.remember([], [encoder.encode_normal([p], SIDE) for p in pictures(3)])
    assert memory.known.keys[0].shape[1] == 1 + (budget or 3 * TOKENS)
    answers = ask(memory)
    assert torch.equal(answers["SOFS"], answers["prior"]) and (answers["prior"] > 0).all()


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)])
def test_mirrored_normal_images_are_known_in_the_mirror(make, predictor, axes):
    picture = pictures(1)[0]
    window = np.flip(picture, axes).copy()
    scores = []
    for mirrored in (False, True):
        encoder = make(mirrored=mirrored)
        memory = encoder.remember([], [encoder.encode_normal([picture], SIDE)])
        scores.append(next(predictor.segment([window], memory)).answers["prior"].score)
    assert scores[1].max() < 1e-4 < 1e-2 < scores[0].max()


def test_adding_normal_images_leaves_the_summary_and_the_supports(make):
    encoder = make()
    part, normal = encoder.encode(*views(3)), encoder.encode_normal(pictures(2), SIDE)
    plain, more = encoder.remember([part]), encoder.remember([part], [normal])
    assert_close(more.summary, plain.summary, rtol=0, atol=0)
    for name in ("keys", "share", "covered", "mean"):
        assert_close(getattr(more.known, name), getattr(plain.known, name), rtol=0, atol=0)
