from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from models import relations
from models.comparison import Comparison
from models.encoder import SupportEncoder
from models.methods.relation import Relation
from models.relation_head import PIXEL_WIDTH, RelationHead
from models.relations import CONTRAST
from tests.models.tiny import answer, remember

CPU = torch.device("cpu")


@pytest.fixture
def relation(make_model):
    """On the tiny backbone of 4 x 4 tokens, with a random head."""
    backbone = make_model().backbone.requires_grad_(False)
    return Relation(backbone, RelationHead(relations.count(2))).eval()


def spotted(count, draw, side=7):
    """Noise (count, 3, 56, 56) with a bright spot at a random place, and its masks."""
    images = 0.5 * torch.randn(count, 3, 56, 56, generator=draw)
    masks = torch.zeros(count, 56, 56, dtype=torch.uint8)
    for image, mask in zip(images, masks, strict=True):
        top, left = torch.randint(0, 56 - side, (2,), generator=draw).tolist()
        image[:, top : top + side, left : left + side] += 3
        mask[top : top + side, left : left + side] = 1
    return images, masks


@torch.no_grad()
def test_pixel_sums_of_views_add_up_to_those_of_marked_and_other_pixels(relation):
    head, (images, masks) = relation.head, spotted(4, torch.Generator().manual_seed(0))
    masks[1], masks[2] = 0, 1
    sums = head.pixel_sums(images, masks)
    assert sums.shape == (4, 2, PIXEL_WIDTH + 1)
    pixels = head.coarse(head.fine(images))
    cells = masks.double().reshape(4, 14, 4, 14, 4).mean((2, 4))
    for view in range(4):
        expected = torch.zeros(2, PIXEL_WIDTH + 1, dtype=torch.float64)
        for row in range(14):
            for column in range(14):
                pixel, share = pixels[view, :, row, column].double(), cells[view, row, column]
                unit = torch.cat([pixel / pixel.norm(), torch.ones(1)])
                expected += torch.stack([share * unit, (1 - share) * unit])
        assert_close(sums[view].double(), expected, rtol=0, atol=1e-3)
    parts = [relation.encode([], share, None, images[part], masks[part])
             for part, share in ((slice(1), torch.zeros(1, 1, 4, 4)),
                                 (slice(1, 4), torch.zeros(1, 3, 4, 4)))]  # fmt: skip
    assert_close(relation.join(parts)["pixels"], sums[None], rtol=0, atol=1e-4)
    times = torch.tensor([[1.0, 3, 1, 2]])
    counted = relation.encode([], torch.zeros(1, 4, 4, 4), times, images, masks)["pixels"]
    again = head.pixel_sums(images[[0, 1, 1, 1, 2, 3, 3]], masks[[0, 1, 1, 1, 2, 3, 3]])
    assert_close(counted.sum(1)[0], again.sum(0), rtol=0, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("side", "grid", "half"), [(56, (4, 4), 28), (63, (4, 5), 32)])
def test_logits_have_half_the_side_of_the_window(relation, side, grid, half):
    """Rounded up; each window has its own sums, or all have the same."""
    maps, images = torch.randn(2, relations.count(2), *grid), torch.randn(2, 3, side, side)
    sums = torch.rand(2, 2, PIXEL_WIDTH + 1) + 1
    logits = relation.head(maps, images, sums)
    assert logits.shape == (2, half, half) and logits.isfinite().all()
    for i in range(2):
        part = slice(i, i + 1)
        alone = relation.head(maps[part], images[part], sums[part])
        assert_close(alone, logits[part], rtol=0, atol=1e-5)
        shared = relation.head(maps, images, sums[part])
        assert_close(shared[part], logits[part], rtol=0, atol=1e-5)
    unmarked = relation.head(maps, images, sums * torch.tensor([0.0, 1.0])[:, None])
    assert unmarked.isfinite().all() and not torch.equal(unmarked, logits)


@torch.no_grad()
def test_an_answer_depends_neither_on_the_order_of_views_nor_on_how_often_all_are_given(relation):
    (images, masks), query = spotted(3, torch.Generator().manual_seed(0)), torch.randn(2, 3, 56, 56)
    encoder = SupportEncoder([relation], CPU, batch=2)

    def scores(order):
        memory = encoder.remember([encoder.encode(images[order], masks[order])], window=56)
        return answer(relation, query, memory)

    expected = scores([0, 1, 2])
    assert expected.shape == (2, 56, 56) and expected.min() >= 0 and expected.max() <= 1
    for order in ([2, 0, 1], [0, 1, 2, 0, 1, 2], [1, 1, 0, 2, 0, 2]):
        assert_close(scores(order), expected, rtol=0, atol=1e-5)
    assert (scores([0, 0, 0, 1, 2]) - expected).abs().max() > 1e-5, "one counts more"


@torch.no_grad()
def test_in_training_the_answers_are_those_of_use_but_for_a_flip(relation):
    """Each query has its own supports; windows come back from the flip."""
    (query, _), (supports, masks) = (spotted(n, torch.Generator().manual_seed(n)) for n in (2, 4))
    masks = masks.unflatten(0, (2, 2))
    encoded = relation.backbone(query), relation.backbone(supports)
    found = []
    for seed in range(12):
        torch.manual_seed(seed)
        logits = relation.episode_logits(*encoded, masks, images=(query, supports))
        found.append(logits)
    straight = []
    for i in range(2):
        memory = remember([relation], supports.unflatten(0, (2, 2))[i : i + 1], masks[i : i + 1])
        compared = Comparison([m[i : i + 1] for m in encoded[0]], memory)
        sums = memory.extras["relation"]["pixels"].sum(1)
        straight.append(relation.head(compared.relations, query[i : i + 1], sums))
    differences = [(logits - torch.cat(straight)).abs().max() for logits in found]
    assert min(differences) < 1e-4 < max(differences), "as in use, and flipped"


def overlap(mask, expected):
    return float((mask & expected).sum() / (mask | expected).sum())


def test_a_short_training_outlines_a_spot_that_tokens_cannot(relation):
    """Spots of half a token's side, on images not seen in training."""
    draw = torch.Generator().manual_seed(0)
    optimizer, losses = torch.optim.AdamW(relation.head.parameters(), 5e-3), []
    torch.manual_seed(0)
    relation.train()
    for _ in range(60):
        (query, target), (supports, masks) = spotted(8, draw), spotted(8, draw)
        with torch.no_grad():
            encoded = relation.backbone(query), relation.backbone(supports)
        logits = relation.episode_logits(*encoded, masks.unsqueeze(1), images=(query, supports))
        share = F.adaptive_avg_pool2d(target.float(), logits.shape[-2:])
        loss = F.binary_cross_entropy_with_logits(logits, share, pos_weight=torch.tensor(5.0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and p.grad.any() for p in relation.head.parameters())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    relation.eval()
    with torch.no_grad():
        (query, target), (support, mask) = spotted(8, draw), spotted(1, draw)
        memory, expected = remember([relation], support[None], mask[None]), target > 0
        ours = overlap(answer(relation, query, memory) > 0.5, expected)
        contrast = Comparison(relation.backbone(query), memory).relations[:, CONTRAST]
        contrast = F.interpolate(contrast[:, None], (56, 56), mode="bilinear")[:, 0]
        best = max(overlap(contrast > at, expected) for at in contrast.unique()[::50])
    assert ours > 0.6 > 0.4 > best


def test_blank_views_that_fill_a_batch_change_nothing(relation):
    draw = torch.Generator().manual_seed(3)
    (query, _), (views, masks) = spotted(2, draw), spotted(4, draw)
    blank = torch.zeros_like(views[:1])
    logits = []
    for images, marks, count in (
        (views, masks, 2),
        (torch.cat([views[:2], blank, views[2:], blank]),
         torch.cat([masks[:2], masks[:1] * 0, masks[2:], masks[:1] * 0]), 3),
    ):  # fmt: skip
        torch.manual_seed(0)  # of the flips
        features = relation.backbone(query), relation.backbone(images)
        options = {"images": (query, images)}
        shape = marks.unflatten(0, (2, count))
        with torch.no_grad():
            logits.append(relation.episode_logits(*features, shape, **options))
    assert logits[0].shape == (2, 28, 28)
    assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
