from __future__ import annotations

import random

import numpy as np
import pytest

from datasets.views import (
    crop_around,
    cut,
    needs_crops,
    random_pixel,
    support_boxes,
    training_query_box,
    whole,
)

SHAPES = [(60, 200), (200, 60), (50, 50), (30, 500), (20, 20)]


def spots(shape, pixels):
    mask = np.zeros(shape, np.uint8)
    for row, column in pixels:
        mask[row, column] = 255
    return mask


def inside(box, shape):
    return 0 <= box[0] < box[1] <= shape[0] and 0 <= box[2] < box[3] <= shape[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("may_miss", [True, False])
def test_crop_stays_inside_and_has_the_side_unless_the_image_is_smaller(shape, may_miss):
    rng = random.Random(0)
    for _ in range(300):
        pixel = rng.randrange(shape[0]), rng.randrange(shape[1])
        box = crop_around(pixel, shape, 50, rng, may_miss=may_miss)
        assert inside(box, shape)
        assert (box[1] - box[0], box[3] - box[2]) == (min(50, shape[0]), min(50, shape[1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_crop_contains_its_pixel(shape):
    rng = random.Random(1)
    for _ in range(500):
        row, column = rng.randrange(shape[0]), rng.randrange(shape[1])
        top, bottom, left, right = crop_around((row, column), shape, 50, rng)
        assert top <= row < bottom
        assert left <= column < right


def test_crop_puts_its_pixel_at_every_place():
    rng = random.Random(2)
    offsets = {100 - crop_around((100, 100), (300, 300), 10, rng)[0] for _ in range(500)}
    assert offsets == set(range(10))


def test_published_crop_can_miss_its_pixel_by_one():
    rng = random.Random(3)
    tops = {crop_around((100, 100), (300, 300), 10, rng, may_miss=True)[0] for _ in range(500)}
    assert tops == {100 - 10 + offset for offset in range(11)}


def test_every_marked_pixel_is_drawn_and_no_other():
    mask = spots((20, 30), [(0, 0), (7, 29), (19, 4)])
    rng = random.Random(4)
    drawn = {random_pixel(mask > 0, rng) for _ in range(200)}
    assert drawn == {(0, 0), (7, 29), (19, 4)}
    assert random_pixel(np.zeros((5, 5), bool), rng) is None


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_a_pixel_is_drawn_by_its_number_in_row_major_order(share):
    candidates = np.random.default_rng(5).random((9, 13)) < share
    for seed in range(100):
        number = random.Random(seed).randint(0, int(candidates.sum()) - 1)
        assert random_pixel(candidates, random.Random(seed)) == tuple(
            np.argwhere(candidates)[number]
        )


@pytest.mark.parametrize("seed", range(20))
def test_support_crops_of_a_small_defect_always_show_it(seed):
    rng = random.Random(seed)
    mask = spots((400, 600), [(rng.randrange(400), rng.randrange(600)) for _ in range(3)])
    boxes = support_boxes(mask, views=4, side=64, resize_ratio=0.01, rng=rng)
    assert len(boxes) == 4
    assert len(set(boxes)) > 1
    for box in boxes:
        assert inside(box, mask.shape)
        assert cut(mask, box).any()
        assert cut(mask, box).shape == (64, 64)


def test_large_defect_is_seen_in_the_whole_image():
    mask = np.zeros((100, 200), np.uint8)
    mask[:20, :100] = 1
    for ratio in (0.05, None):
        boxes = support_boxes(mask, views=3, side=50, resize_ratio=ratio, rng=random.Random(0))
        assert boxes == [(0, 100, 0, 200)] * 3
    assert (
        support_boxes(mask, views=3, side=50, resize_ratio=0.2, rng=random.Random(0))
        != [whole(mask)] * 3
    )


def test_share_at_the_ratio_itself_still_counts_as_small():
    mask = np.zeros((10, 10), np.uint8)
    mask[0, :5] = 255
    assert needs_crops(mask, 0.05)
    assert not needs_crops(mask, 0.049)
    assert not needs_crops(mask, None)
    assert not needs_crops(np.zeros((10, 10), np.uint8), 0.05)


def test_support_without_defect_is_seen_whole():
    mask = np.zeros((100, 200), np.uint8)
    assert (
        support_boxes(mask, views=2, side=50, resize_ratio=0.5, rng=random.Random(0))
        == [whole(mask)] * 2
    )


def test_boxes_follow_from_the_seed():
    mask = spots((400, 600), [(17, 20), (300, 500)])
    draws = [
        support_boxes(mask, views=4, side=64, resize_ratio=1.0, rng=random.Random(s))
        for s in (5, 5, 6)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_training_query_is_normal_as_often_as_asked():
    """A lone defect pixel in a corner: a crop around a normal pixel rarely shows it."""
    mask, rng = spots((1000, 1000), [(0, 0)]), random.Random(0)
    options = {"side": 20, "resize_ratio": 0.01, "rng": rng}
    boxes = [training_query_box(mask, normal_probability=0.3, **options) for _ in range(1000)]
    normal = sum(not cut(mask, box).any() for box in boxes)
    assert 240 < normal < 360
    assert all(
        cut(mask, training_query_box(mask, normal_probability=0, **options)).any()
        for _ in range(100)
    )


def test_training_query_of_a_large_defect_is_whole():
    mask = np.ones((40, 60), np.uint8)
    box = training_query_box(
        mask, side=20, resize_ratio=0.5, normal_probability=1.0, rng=random.Random(0)
    )
    assert box == (0, 40, 0, 60)


def test_training_query_without_a_normal_pixel_is_whole():
    mask = np.ones((40, 60), np.uint8)
    box = training_query_box(
        mask, side=20, resize_ratio=1.0, normal_probability=1.0, rng=random.Random(0)
    )
    assert box == whole(mask)


def test_cut_takes_images_and_masks_alike():
    image = np.arange(4 * 5 * 3).reshape(4, 5, 3)
    np.testing.assert_array_equal(cut(image, (1, 3, 2, 5)), image[1:3, 2:5])
    np.testing.assert_array_equal(cut(image[..., 0], (1, 3, 2, 5)), image[1:3, 2:5, 0])
