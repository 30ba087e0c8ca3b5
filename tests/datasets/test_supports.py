from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from datasets.views import (
    ViewSettings,
    is_windowed,
    normal_views,
    prepare_image,
    prepare_mask,
    support_set,
)

NATIVE = ViewSettings(image_size=32, crop_size=40, resize_ratio=0.1, views=3)
RESIZED = ViewSettings(image_size=32, crop_size=40, resize_ratio=None, views=3)


def numbered(height, width):
    """An image in which every pixel has a colour of its own."""
    number = np.arange(height * width).reshape(height, width)
    return np.stack([number % 256, number // 256 % 256, number // 65536], axis=2).astype(np.uint8)


def numbers(view):
    """Pixels of a view as their numbers."""
    return (view.astype(np.int64) * [1, 256, 65536]).sum(2)


def marked(height, width, rows, columns):
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = 1
    return mask


def small_pair(seed=0):
    image = np.random.default_rng(seed).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    return image, marked(90, 120, slice(30, 40), slice(50, 60))


@pytest.mark.parametrize("size", [(90, 120), (40, 40), (41, 40), (7, 130), (1, 1), (119, 81)])
def test_windows_over_a_normal_image_cover_it_exactly(size):
    image = numbered(*size)
    views = normal_views(image, NATIVE, windowed=True)
    assert {view.shape[:2] for view in views} == {(min(40, size[0]), min(40, size[1]))}
    seen = np.concatenate([numbers(view).ravel() for view in views])
    assert set(seen) == set(range(size[0] * size[1])), "every pixel, and no other"
    for view in views:
        first = int(numbers(view)[0, 0])
        top, left = divmod(first, size[1])
        assert np.array_equal(view, image[top : top + 40, left : left + 40])


@pytest.mark.parametrize("settings", [NATIVE, RESIZED])
def test_a_normal_image_of_a_large_defect_is_seen_whole(settings):
    image = numbered(90, 120)
    (view,) = normal_views(image, settings, windowed=False)
    assert np.array_equal(view, image)


@pytest.mark.parametrize(
    ("shares", "windowed"),
    [
        ([0.1], True),
        ([0.11], False),
        ([0.05, 0.15], True),
        ([0.05, 0.16], False),
        ([], True),
        ([0.0], True),
        ([0.15, 0.0], False),
        ([0.15, 0.0, 0.0, 0.0, 0.0], False),
    ],
)
def test_scale_follows_the_mean_share_of_the_masks_that_mark_something(shares, windowed):
    masks = []
    for share in shares:
        mask = np.zeros((10, 10), np.uint8)
        mask.flat[: round(100 * share)] = 255
        masks.append(mask)
    assert is_windowed(masks, 0.1) is windowed
    assert is_windowed(masks, None) is False, "no ratio: every image is resized"


def test_views_of_small_defects_are_crops_that_show_them():
    pairs = [small_pair(i) for i in range(2)]
    supports = support_set(pairs, NATIVE, random.Random(0))
    assert supports.images.shape == (6, 3, 32, 32) and supports.images.dtype == torch.float32
    assert supports.masks.shape == (6, 32, 32) and supports.masks.dtype == torch.uint8
    assert supports.windowed and (supports.masks.flatten(1).any(1)).all()
    assert supports.masks.unique().tolist() == [0, 1]
    shares = supports.masks.float().mean((1, 2))
    assert ((shares > 0.02) & (shares < 0.1)).all(), (
        "in the whole image the defect covers one percent"
    )
    assert len({view.numpy().tobytes() for view in supports.images}) == 6, "crops differ"


def test_views_of_large_defects_are_the_image():
    image, mask = small_pair()[0], marked(90, 120, slice(0, 45), slice(0, 60))
    supports = support_set([(image, mask)], NATIVE, random.Random(0))
    assert not supports.windowed and supports.images.shape[0] == 3
    for view, marks in zip(supports.images, supports.masks, strict=True):
        assert torch.equal(view, prepare_image(image, 32)) and torch.equal(
            marks, prepare_mask(mask, 32)
        )


def test_pairs_are_kept_as_they_are():
    pairs = [small_pair(0), small_pair(1)]
    supports = support_set(pairs, NATIVE, random.Random(0))
    for kept, given in zip(supports.pairs, pairs, strict=True):
        assert kept[0] is given[0] and kept[1] is given[1]


@pytest.mark.parametrize("windowed", [True, False])
def test_the_scale_of_the_queries_can_be_given(windowed):
    supports = support_set([small_pair()], NATIVE, random.Random(0), windowed)
    assert supports.windowed is windowed
    assert torch.equal(
        supports.images, support_set([small_pair()], NATIVE, random.Random(0)).images
    )


def test_normal_views_are_added_to_each_image():
    settings = ViewSettings(image_size=32, crop_size=16, resize_ratio=0.1, views=2, normal_views=1)
    supports = support_set([small_pair(0), small_pair(1)], settings, random.Random(0))
    assert supports.images.shape[0] == 6
    assert supports.masks[[0, 1, 3, 4]].flatten(1).any(1).all()


def test_the_same_source_gives_the_same_views():
    first, second, third = (
        support_set([small_pair()], NATIVE, random.Random(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.images, second.images) and not torch.equal(first.images, third.images)
