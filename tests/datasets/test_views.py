from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from torchvision.transforms import v2

from datasets.views import (
    LONGEST,
    TrainingCrops,
    ViewSettings,
    central_boxes,
    crop_around,
    cut,
    defect_length,
    denormalise,
    normal_views,
    prepare_image,
    prepare_mask,
    random_pixel,
    support_boxes,
    support_set,
    window_side,
    window_sides,
)
from datasets.windows import tile

NATIVE = ViewSettings(image_size=32, crop_size=40, resize_ratio=0.1, views=3)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def marked(shape, rows, columns):
    mask = np.zeros(shape, np.uint8)
    mask[rows, columns] = 1
    return mask


def crops(degrees=(-10, 10), normal_probability=0.3, ratio=(1, 1), **changes):
    settings = replace(NATIVE, **changes)
    options = {"crop_ratio": ratio, "normal_probability": normal_probability}
    return TrainingCrops(settings, degrees=degrees, **options)


@given(st.data())
def test_a_crop_lies_in_its_image_and_holds_its_pixel(data):
    shape = data.draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    pixel = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    side, seed = data.draw(st.integers(1, 60)), data.draw(st.integers())
    for may_miss in (False, True):
        box = crop_around(pixel, shape, side, random.Random(seed), may_miss)
        for low, high, length, position in zip(box[::2], box[1::2], shape, pixel, strict=True):
            assert 0 <= low < high <= length and high - low == min(side, length)
            assert may_miss or low <= position < high


def test_a_crop_puts_its_pixel_at_every_place():
    rng = random.Random(2)
    tops = {crop_around((100, 100), (300, 300), 10, rng)[0] for _ in range(500)}
    assert tops == set(range(91, 101))


def test_a_pixel_is_drawn_by_its_number_in_row_major_order():
    candidates = np.random.default_rng(5).random((9, 13)) < 0.2
    for seed in range(50):
        number = random.Random(seed).randint(0, int(candidates.sum()) - 1)
        expected = tuple(np.argwhere(candidates)[number])
        assert random_pixel(candidates, random.Random(seed)) == expected
    assert random_pixel(np.zeros((5, 5), bool), random.Random(0)) is None


@pytest.mark.parametrize(
    ("share", "ratio", "whole"),
    [(0.11, 0.1, True), (0.1, 0.1, False), (0, 0.1, True), (0.05, None, True)],
)
def test_support_views_are_the_whole_image_for_a_large_defect_or_none(share, ratio, whole):
    mask = marked((100, 200), slice(0, 100), slice(0, round(200 * share)))
    settings = replace(NATIVE, normal_views=1, resize_ratio=ratio)
    boxes = support_boxes(mask, settings, random.Random(0))
    assert (boxes == [(0, 100, 0, 200)] * 4) is whole
    if not whole:
        assert len(set(boxes)) == 4 and [cut(mask, box).shape for box in boxes] == [(40, 40)] * 4
        assert all(cut(mask, box).any() for box in boxes[:3])


def test_supports_are_prepared_crops_with_normal_views_after_each_image():
    mask = marked((90, 120), slice(30, 40), slice(50, 60))
    pairs = [(noise(90, 120, i), mask) for i in range(2)]
    supports = support_set(pairs, replace(NATIVE, normal_views=1), random.Random(0))
    assert supports.images.shape == (8, 3, 32, 32) and supports.images.dtype == torch.float32
    assert supports.masks.shape == (8, 32, 32) and supports.masks.dtype == torch.uint8
    assert supports.masks[[0, 1, 2, 4, 5, 6]].flatten(1).any(1).all()
    assert supports.window == 40 and supports.pairs == tuple(pairs)
    assert len({view.numpy().tobytes() for view in supports.images}) == 8, "crops differ"
    given = support_set(pairs, replace(NATIVE, normal_views=1), random.Random(0), sides=[0])
    assert given.window == 0 and torch.equal(given.images, supports.images)


@pytest.mark.parametrize(("window", "crop"), [(40, (14, 54, 34, 74)), (0, (0, 90, 0, 120))])
def test_with_support_windows_all_of_a_support_is_seen_as_its_queries_are(window, crop):
    """After a crop with its defect in the middle; no view comes twice, and none by chance."""
    mask, size = marked((90, 120), slice(30, 40), slice(50, 60)), NATIVE.image_size
    pairs = [(noise(90, 120), mask), (noise(30, 40, 1), marked((30, 40), 3, 3))]
    settings = replace(NATIVE, normal_views=2, support_windows=True)
    boxes = list(dict.fromkeys([crop, *tile(90, 120, window)]))
    assert len(boxes) == (10 if window else 1)
    for seed in range(2):
        seen = support_set(pairs, settings, random.Random(seed), [window])
        assert seen.window == window and seen.counts == (len(boxes), 1)
        for views, shown, part in ((seen.images, prepare_image, 0), (seen.masks, prepare_mask, 1)):
            first, second = (pair[part] for pair in pairs)
            expected = [shown(cut(first, box), size) for box in boxes] + [shown(second, size)]
            assert torch.equal(views, torch.stack(expected))


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5, unique=True), st.integers(0, 7),
    st.integers(0, 70), st.randoms(use_true_random=False),
)  # fmt: skip
def test_central_boxes_show_the_largest_defects_in_their_middle(sides, count, window, rng):
    """Squares, each in a strip of its own; at the border of the image there is no room."""
    mask, middles = np.zeros((50, 20 * len(sides)), np.uint8), {}
    for number, side in enumerate(sides):
        top, left = rng.randint(0, 38), 20 * number + rng.randint(0, 7)
        mask[top : top + side, left : left + side] = rng.randint(1, 255)
        middles[side] = top + side / 2, left + side / 2
    boxes = central_boxes(mask, count, window)
    assert len(boxes) == min(count, len(sides)) and boxes == central_boxes(mask, count, window)
    for side, box in zip(sorted(sides, reverse=True), boxes, strict=False):
        for low, high, length, middle in zip(
            box[::2], box[1::2], mask.shape, middles[side], strict=True
        ):
            assert 0 <= low < high <= length and high - low == min(window or length, length)
            off = (low + high) / 2 - middle
            assert abs(off) <= 1 or (low == 0 and off > 0) or (high == length and off < 0)


def test_without_a_mark_there_is_no_central_box():
    assert central_boxes(np.zeros((9, 9), np.uint8), 3, 4) == []


def test_views_of_a_normal_image_are_its_windows_or_the_whole():
    image = noise(90, 121)
    views = normal_views(image, 40)
    expected = [image[t : t + 40, le : le + 40] for t in (0, 40, 50) for le in (0, 40, 80, 81)]
    assert all(map(np.array_equal, views, expected)) and len(views) == 12
    (whole,) = normal_views(image, 0)
    assert np.array_equal(whole, image)


@pytest.mark.parametrize(
    ("shares", "window"),
    [([0.1], 40), ([0.05, 0.15], 40), ([0.05, 0.16], 0), ([], 40), ([0.0], 40),
     ([0.15, 0.0, 0.0], 0)],
)  # fmt: skip
def test_scale_follows_the_mean_share_of_the_masks_that_mark_something(shares, window):
    masks = [np.zeros((10, 10), np.uint8) for _ in shares]
    for mask, share in zip(masks, shares, strict=True):
        mask.flat[: round(100 * share)] = 255
    assert window_side(masks, NATIVE) == window
    assert window_side(masks, replace(NATIVE, resize_ratio=None)) == 0


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_length_of_a_defect_is_that_of_the_component_of_the_middle_pixel(sides, rng):
    """By the list of all marked pixels, each with the area of its square."""
    mask = np.zeros((40, 20 * len(sides)), np.uint8)
    for number, side in enumerate(sides):
        top, left = rng.randint(0, 20), 20 * number + rng.randint(0, 7)
        mask[top : top + side, left : left + side] = 7
    pixels = sorted(side**2 for side in sides for _ in range(side**2))
    middle = pixels[(len(pixels) - 1) // 2]
    assert defect_length(mask) == pytest.approx(middle**0.5)
    assert defect_length(mask.T) == defect_length(mask)


def test_marks_that_touch_at_a_corner_are_one_defect_and_no_mark_has_no_length():
    assert defect_length(np.eye(9, dtype=np.uint8)) == 3 and defect_length(np.zeros((4, 4))) == 0


GRIDS = replace(NATIVE, image_size=240, grids=(1, 2, 4, 7))


@pytest.mark.parametrize(
    ("lengths", "sides"),
    [([250], (1000,)), ([249], (500, 1000)), ([63], (500, 1000)), ([62], (250, 500)),
     ([16], (250, 500)), ([15], (143, 250)), ([1], (143, 250)), ([0, 63], (500, 1000)),
     ([40, 250, 20], (250, 500))],
)  # fmt: skip
def test_two_window_sides_show_a_typical_defect_at_its_size_and_smaller(lengths, sides):
    """60 / n of 240 pixels in n windows of a shorter side of 1000; that of masks, by the middle
    one."""
    shapes = [(1000, 1400 + 300 * i) for i in range(3)]
    masks = [marked(s, slice(n), slice(n)) for s, n in zip(shapes, lengths, strict=False)]
    assert window_sides(masks, GRIDS) == sides
    assert window_sides([mask.T for mask in masks], GRIDS) == sides


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True), st.data())
def test_windows_shrink_with_the_defect_and_are_neighbours(grids, data):
    """Two numbers that part an image into windows of equal sides are one size."""
    shape = data.draw(st.tuples(st.integers(60, 300), st.integers(60, 300)))
    settings, before = replace(GRIDS, grids=tuple(sorted(grids))), None
    known = [-(-min(shape) // n) for n in settings.grids]
    neighbours = [sorted({*pair}) for pair in zip(known[1:], known[:-1], strict=True)]
    for length in (60, 40, 20, 10, 5, 2, 1):
        sides = window_sides([marked(shape, slice(length), slice(length))], settings)
        assert list(sides) in neighbours or list(sides) == known[:1]
        assert before is None or sides[0] <= before
        before = sides[0]


def test_without_grids_or_a_mark_there_is_one_side_as_by_the_share():
    mask = marked((100, 100), slice(5), slice(5))
    assert window_sides([mask], NATIVE) == (40,)
    assert window_sides([np.ones((100, 100))], NATIVE) == (0,)
    assert window_sides([], GRIDS) == window_sides([mask * 0], GRIDS) == (40,)


@pytest.mark.parametrize("cover", [False, True])
def test_coarse_supports_are_the_same_ones_in_larger_windows(cover):
    pairs = [(noise(90, 120, i), marked((90, 120), slice(30, 34), slice(50, 54))) for i in (0, 1)]
    settings = replace(GRIDS, grids=(1, 2, 3, 4), support_windows=cover, normal_views=1)
    fine = support_set(pairs, settings, random.Random(0))
    assert (fine.window, fine.coarse.window) == window_sides([pairs[0][1]], settings) == (30, 45)
    assert fine.coarse.coarse is None and fine.coarse.pairs == fine.pairs == tuple(pairs)
    rng = random.Random(0)
    for supports in (fine, fine.coarse):  # the coarse crops are drawn after the others
        alone = support_set(pairs, settings, rng, [supports.window])
        assert alone.coarse is None and alone.counts == supports.counts
        assert torch.equal(alone.images, supports.images)
        assert torch.equal(alone.masks, supports.masks)
    if cover:
        windows = [prepare_image(view, 240) for view in normal_views(pairs[1][0], 45)]
        assert torch.equal(fine.coarse.images[-len(windows) :], torch.stack(windows))
    whole = support_set(pairs, replace(settings, grids=(1,)), random.Random(0))
    assert whole.window == 90 and whole.coarse is None


@limits(max_examples=40, deadline=None)
@given(st.data(), st.booleans(), st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True))
def test_with_grids_no_view_of_a_support_is_padded(data, cover, grids):
    """White images, as no pixel of them is 0 as padding is."""
    shape, pairs = st.tuples(st.integers(20, 60), st.integers(20, 60)), []
    for height, width in data.draw(st.lists(shape, min_size=1, max_size=3)):
        row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        mask = marked((height, width), slice(row, row + 5), slice(column, column + 9))
        pairs.append((np.full((height, width, 3), 255, np.uint8), mask))
    settings = replace(GRIDS, image_size=32, grids=tuple(sorted(grids)), normal_views=1)
    settings = replace(settings, support_windows=cover)
    supports = support_set(pairs, settings, random.Random(0))
    for scale in (supports, supports.coarse or supports):
        assert 0 < scale.window <= min(min(mask.shape) for _, mask in pairs)
        assert (scale.images != 0).all()


def test_with_grids_all_crops_have_the_side_of_the_windows_of_queries():
    """Whatever the size of their own defect; pixels as bright as their row tell the side."""
    image = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None, None], (240, 200, 3))
    masks = [marked((240, 200), slice(99, 99 + length), slice(80, 90)) for length in (40, 9, 8)]
    settings = replace(GRIDS, views=4, image_size=160)
    supports = support_set([(image, mask) for mask in masks], settings, random.Random(0))
    assert (supports.window, supports.coarse.window) == (50, 100)
    for scale in (supports, supports.coarse):
        sides = [int(np.ptp(denormalise(view)[:, :, 0])) + 1 for view in scale.images]
        assert len(sides) == 12 and max(abs(side - scale.window) for side in sides) <= 1


@pytest.mark.parametrize("pixel", [(0, 0), (3999, 2999)])
def test_a_mask_of_one_pixel_survives_a_4000_px_image(pixel):
    places = prepare_mask(marked((4000, 3000), *pixel) * 7, 518).nonzero().numpy()
    assert 1 <= len(places) <= 9
    assert np.abs(places - [int(p * 518 / 4000) for p in pixel]).max() <= 1


def test_training_queries_are_normal_as_often_as_asked_and_whole_for_a_large_defect():
    """A lone defect pixel in a corner: a crop around a normal pixel rarely shows it."""
    mask, rng = marked((400, 400), 0, 0), random.Random(0)

    def normal(probability, count):
        draw = crops(normal_probability=probability, crop_size=8)
        return sum(not draw.query(mask, mask, rng)[1].any() for _ in range(count))

    assert 240 < normal(0.3, 1000) < 360 and normal(0, 100) == 0
    for ratio in (0.5, 1.0):  # a large defect, and one without a normal pixel
        draw = crops(normal_probability=1.0, crop_size=20, resize_ratio=ratio)
        image, _ = draw.query(noise(40, 60), np.ones((40, 60), np.uint8), rng)
        assert np.array_equal(image, noise(40, 60))
    assert crops(ratio=(0.5, 0.5)).query(mask, mask, rng)[0].shape == (20, 20)


def test_the_augmentation_moves_image_and_mask_alike():
    """A picture that shows its mask, a lopsided white shape, compared in a disk that no rotation
    leaves."""
    y, x = np.mgrid[:96, :96]
    shape = ((y - 48) ** 2 + (x - 48) ** 2 < 34**2) & (x > 40) & (y > 55 - x // 4)
    image, mask = shape[..., None] * np.full(3, 255, np.uint8), shape.astype(np.uint8)
    disk = np.hypot(y - 47.5, x - 47.5) < 46
    kept = mirrored = 0
    for seed in range(40):
        torch.manual_seed(seed)
        moved, marks = crops((-30, 30)).augment(image, mask)
        grey = moved.mean(-1)[disk]
        bright = grey > (grey.min() + grey.max()) / 2
        assert (bright == marks[disk].astype(bool)).mean() > 0.97
        assert set(np.unique(marks)) == {0, 1}
        kept += np.array_equal(marks, mask)
        mirrored += np.array_equal(marks, np.fliplr(mask))
    assert min(kept, mirrored) >= 4 and 40 - kept - mirrored >= 12


def test_rotation_fills_with_the_mean_colour_and_no_defect():
    augment = crops((45, 45))
    _, rotate, *_ = augment.pipeline.transforms
    assert isinstance(rotate.transforms[0], v2.RandomRotation)
    augment.pipeline, rotate.p = rotate, 1.0
    image, mask = augment.augment(np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), np.uint8))
    assert image[0, 0].tolist() == [124, 116, 104] and mask[0, 0] == 0
    assert mask[32, 32] == 1 and not image[32, 32].any()


def test_probabilities_are_the_published_ones():
    """Colours or sharpness change in 51 % (0.3 and 0.3), geometry in 75 % (0.5 and 0.5)."""
    image, mask = noise(16, 16), marked((16, 16), [4, 9, 12], [2, 5, 13])
    augment, moved, recoloured = crops((20, 40)), 0, 0
    torch.manual_seed(0)
    for _ in range(400):
        new_image, new_mask = augment.augment(image, mask)
        still = [np.array_equal(new_mask, m) for m in (mask, np.fliplr(mask))]
        moved += not still[0]
        if any(still):
            recoloured += not np.array_equal(new_image, image if still[0] else np.fliplr(image))
    assert 0.68 < moved / 400 < 0.82 and 0.41 < recoloured / 200 < 0.61


def test_a_side_over_the_longest_is_shrunk_to_it_before_the_augmentation():
    image, mask = np.full((60, 20_000, 3), 99, np.uint8), marked((60, 20_000), 59, 19_999)
    image[20:40, 5000:6000], mask[20:40, 5000:6000] = 255, 1
    torch.manual_seed(0)
    pixels, marks = crops((0, 0)).augment(image, mask)
    assert pixels.shape == (*marks.shape, 3) and max(marks.shape) == LONGEST == 8192
    assert set(np.unique(marks)) == {0, 1} and marks[-1, [0, -1]].any()
