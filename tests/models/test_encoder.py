from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from models.encoder import NORMAL_POOL, SupportEncoder
from tests.models.tiny import SIDE, answer

TOKENS = 16


@pytest.fixture
def make(methods):
    """An encoder for the head and the prior, two views per pass; options go to it."""
    return lambda **options: SupportEncoder(methods, torch.device("cpu"), **{"batch": 2} | options)


@pytest.fixture
def scores(methods):
    """Scores of both methods on two random windows, by a memory."""
    windows = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))

    @torch.inference_mode()
    def of(memory):
        return {method.name: answer(method, windows, memory) for method in methods}

    return of


def views(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
    for number, mask in enumerate(masks):
        mask[8 : 24 + 8 * (number % 3), 8:40] = 1
    return torch.randn(count, 3, SIDE, SIDE, generator=draw), masks


def pictures(count, seed=5):
    """Normal images of one view each."""
    return views(count, seed)[0].split(1)


@pytest.mark.parametrize(("batch", "sizes"), [(1, (1, 4)), (100, (1, 1, 1, 1, 1))])
def test_supports_encoded_in_parts_are_those_encoded_at_once(make, scores, sizes, batch):
    """Whatever the views per pass; those without marks weigh nothing in the head's means."""
    encoder, (images, masks) = make(), views(5)
    masks[1] = 0
    normal = [encoder.encode_normal(pictures(3))]
    whole = encoder.remember([encoder.encode(images, masks)], normal, window=0)
    encoder, pairs = make(batch=batch), zip(images.split(sizes), masks.split(sizes), strict=True)
    normal = [encoder.encode_normal([torch.cat(pictures(3))])]
    joined = encoder.remember([encoder.encode(*pair) for pair in pairs], normal, window=0)
    weights = [memory.extras["SOFS"]["weight"].tolist() for memory in (whole, joined)]
    assert weights == [[[1, 0, 1, 1, 1]]] * 2
    assert_close(scores(joined), scores(whole), rtol=0, atol=1e-5)


def test_equal_views_weigh_as_often_as_they_are_given(make, scores):
    """Encoded once where they come together, and the same as in parts; another mask counts."""
    encoder, (images, masks), order = make(batch=4), views(3), [0, 1, 0, 2, 0, 1]
    images[2] = images[1]
    together = encoder.encode(images[order], masks[order])
    assert len(together.sizes) == 3
    apart = [encoder.encode(images[[i]], masks[[i]]) for i in order]
    one, other = (encoder.remember(parts, window=0) for parts in ([together], apart))
    assert one.extras["SOFS"]["weight"].sum() == other.extras["SOFS"]["weight"].sum() == 6
    assert_close(scores(one), scores(other), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("budget", "count", "kept"), [(12, 3, 4), (4, 6, 1), (0, 2, TOKENS)])
def test_normal_images_share_the_budget_of_tokens(make, scores, caplog, budget, count, kept):
    """Beside as many tokens of the defects' surroundings; 0 keeps all, and each image some."""
    caplog.set_level("INFO")
    encoder = make(memory_tokens=budget)
    part = encoder.encode(*views(4))
    normal = [encoder.encode_normal([p]) for p in pictures(count)]
    memory = encoder.remember([part], normal, window=0)
    assert [[m.shape[1] for m in image] for image in memory.normal] == [[kept] * 2] * count
    assert memory.background[0].shape[1] == (budget or part.background[0].shape[1])
    assert all(values.isfinite().all() for values in scores(memory).values())
    assert caplog.text.count("TEST.memory_tokens") == (budget > 0), "thinning is logged once"


@pytest.mark.parametrize(("shots", "kept"), [(1, 5), (3, 15), (9, 20)])
def test_each_support_brings_its_share_of_tokens(make, shots, kept):
    """Up to the bound of all together; fewer supports do not fill the place of more."""
    images, masks = views(4)
    assert make().encode(images, masks).background[0].shape[1] > 20
    encoder = make(memory_tokens=20, support_tokens=5)
    parts = [encoder.encode(images.roll(shot), masks.roll(shot)) for shot in range(shots)]
    memory = encoder.remember(parts, window=0)
    assert memory.background[0].shape[1] == kept
    assert make(support_tokens=5).remember(parts, window=0).background[0].shape[1] == 5 * shots


def test_a_normal_image_of_very_many_views_is_held_in_bounded_memory(make):
    """What is kept of views from a generator stays near the pool that is chosen from later."""
    images = pictures(30)
    memory = make(memory_tokens=10).encode_normal(image for image in images)
    count = memory.background[0].shape[1]
    assert NORMAL_POOL * 10 <= count <= 2 * NORMAL_POOL * 10 < 30 * TOKENS
    assert_close(memory.mean, make().encode_normal(images).mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("budget", [0, 20])
def test_normal_images_alone_are_the_whole_memory(make, scores, budget):
    encoder = make(memory_tokens=budget)
    memory = encoder.remember([], [encoder.encode_normal([p]) for p in pictures(3)], window=9)
    assert memory.background[0].shape[1] == (budget or 3 * TOKENS)
    assert not (memory.is_marked or memory.normal or memory.extras) and memory.window == 9
    answers = scores(memory)
    assert torch.equal(answers["SOFS"], answers["prior"]) and (answers["prior"] > 0).all()
