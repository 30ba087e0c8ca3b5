from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

from datasets.views import (
    LONGEST,
    TrainingCrops,
    ViewSettings,
    crop_around,
    cut,
    is_windowed,
    normal_views,
    prepare_image,
    prepare_mask,
    random_pixel,
    support_boxes,
    support_set,
)
from datasets.windows import fitted_shape

MEAN, STD = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
NATIVE = ViewSettings(image_size=32, crop_size=40, resize_ratio=0.1, views=3)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def marked(shape, rows, columns):
    mask = np.zeros(shape, np.uint8)
    mask[rows, columns] = 1
    return mask


def small_pair(seed=0):
    return noise(90, 120, seed), marked((90, 120), slice(30, 40), slice(50, 60))


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


@pytest.mark.parametrize(("may_miss", "low"), [(False, 1), (True, 0)])
def test_a_crop_puts_its_pixel_at_every_place_and_as_published_just_outside(may_miss, low):
    rng = random.Random(2)
    tops = {crop_around((100, 100), (300, 300), 10, rng, may_miss)[0] for _ in range(500)}
    assert tops == {90 + offset for offset in range(low, 11)}


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
def test_a_pixel_is_drawn_by_its_number_in_row_major_order(share):
    candidates = np.random.default_rng(5).random((9, 13)) < share
    for seed in range(50):
        number = random.Random(seed).randint(0, int(candidates.sum()) - 1)
        expected = tuple(np.argwhere(candidates)[number])
        assert random_pixel(candidates, random.Random(seed)) == expected
    assert random_pixel(np.zeros((5, 5), bool), random.Random(0)) is None


def test_support_crops_of_a_small_defect_show_it_and_follow_the_seed():
    settings = replace(NATIVE, views=4, crop_size=64)
    for seed in range(10):
        rng = random.Random(seed)
        mask = marked((400, 600), rng.choices(range(400), k=3), rng.choices(range(600), k=3))
        boxes, again, other = (
            support_boxes(mask, settings, random.Random(s)) for s in (seed, seed, seed + 1)
        )
        assert len(set(boxes)) > 1 and [cut(mask, box).shape for box in boxes] == [(64, 64)] * 4
        assert all(cut(mask, box).any() for box in boxes) and boxes == again != other


@pytest.mark.parametrize(
    ("share", "ratio", "whole"),
    [(0.11, 0.1, True), (0.1, 0.1, False), (0, 0.1, True), (0.05, None, True)],
)
def test_support_views_are_the_whole_image_for_a_large_defect_or_none(share, ratio, whole):
    mask = marked((100, 200), slice(0, 100), slice(0, round(200 * share)))
    settings = replace(NATIVE, normal_views=1, resize_ratio=ratio)
    boxes = support_boxes(mask, settings, random.Random(0))
    assert (boxes == [(0, 100, 0, 200)] * 4) is whole


def test_supports_are_prepared_crops_with_normal_views_after_each_image():
    pairs = [small_pair(i) for i in range(2)]
    supports = support_set(pairs, replace(NATIVE, normal_views=1), random.Random(0))
    assert supports.images.shape == (8, 3, 32, 32) and supports.images.dtype == torch.float32
    assert supports.masks.shape == (8, 32, 32) and supports.masks.dtype == torch.uint8
    assert supports.masks[[0, 1, 2, 4, 5, 6]].flatten(1).any(1).all()
    assert supports.windowed and supports.pairs == tuple(pairs)
    assert len({view.numpy().tobytes() for view in supports.images}) == 8, "crops differ"
    given = support_set(pairs, replace(NATIVE, normal_views=1), random.Random(0), windowed=False)
    assert not given.windowed and torch.equal(given.images, supports.images)


def test_views_of_a_normal_image_are_its_windows_or_the_whole():
    image = noise(90, 121)
    views = normal_views(image, NATIVE, windowed=True)
    expected = [image[t : t + 40, le : le + 40] for t in (0, 40, 50) for le in (0, 40, 80, 81)]
    assert all(map(np.array_equal, views, expected)) and len(views) == 12
    (whole,) = normal_views(image, NATIVE, windowed=False)
    assert np.array_equal(whole, image)


@pytest.mark.parametrize(
    ("shares", "windowed"),
    [([0.1], True), ([0.11], False), ([0.05, 0.15], True), ([0.05, 0.16], False), ([], True),
     ([0.0], True), ([0.15, 0.0, 0.0], False)],
)  # fmt: skip
def test_scale_follows_the_mean_share_of_the_masks_that_mark_something(shares, windowed):
    masks = [np.zeros((10, 10), np.uint8) for _ in shares]
    for mask, share in zip(masks, shares, strict=True):
        mask.flat[: round(100 * share)] = 255
    assert is_windowed(masks, 0.1) is windowed and is_windowed(masks, None) is False


@pytest.mark.parametrize("shape", [(37, 60), (140, 91), (1, 70), (400, 3)])
def test_padding_right_and_below_is_zero(shape):
    image, mask = prepare_image(noise(*shape), 70), prepare_mask(np.ones(shape, np.uint8), 70)
    rows, columns = fitted_shape(*shape, 70)
    assert image.shape == (3, 70, 70) and mask.shape == (70, 70) and mask.dtype == torch.uint8
    assert image[:, :rows, :columns].abs().min() > 0 and mask[:rows, :columns].all()
    for padded in (image, mask[None]):
        assert not padded[:, rows:].any() and not padded[:, :, columns:].any()


@pytest.mark.parametrize(("side", "tolerance"), [(70, 1e-3), (700, 0.6)])
def test_an_image_is_normalised_and_its_mean_survives_shrinking(side, tolerance):
    image = noise(side, side)
    image.flags.writeable = False
    pixels = 255 * (prepare_image(image, 70) * STD + MEAN).numpy()
    np.testing.assert_allclose(pixels.mean((1, 2)), image.mean((0, 1)), atol=tolerance)
    if side == 70:
        np.testing.assert_allclose(pixels.transpose(1, 2, 0), image, atol=tolerance)
    else:
        assert pixels.std() < 25, "noise must be averaged away, not sampled"


@pytest.mark.parametrize("pixel", [(0, 0), (3999, 2999), (1234, 567)])
def test_a_mask_of_one_pixel_survives_a_4000_px_image(pixel):
    places = prepare_mask(marked((4000, 3000), *pixel), 518).nonzero().numpy()
    assert 1 <= len(places) <= 9
    assert np.abs(places - [int(p * 518 / 4000) for p in pixel]).max() <= 1


def test_a_mask_is_binary_whatever_its_values():
    mask = (np.random.default_rng(0).random((90, 120)) > 0.9).astype(np.uint8)
    ours = prepare_mask(mask, 70)
    assert ours.unique().tolist() == [0, 1] and torch.equal(ours, prepare_mask(mask * 7, 70))
    np.testing.assert_array_equal(prepare_mask(mask[:70, :50], 70)[:, :50], mask[:70, :50])


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


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_crop_ratio_scales_the_crop(ratio):
    draw = crops(ratio=(ratio, ratio))
    image, mask = draw.query(*small_pair(), random.Random(0))
    assert image.shape[:2] == mask.shape == (40 * ratio, 40 * ratio)


def test_the_augmentation_moves_image_and_mask_alike():
    """A picture that shows its mask, a lopsided white shape, compared in a disk that no rotation
    leaves."""
    y, x = np.mgrid[:96, :96]
    shape = ((y - 48) ** 2 + (x - 48) ** 2 < 34**2) & (x > 40) & (y > 55 - x // 4)
    image, mask, disk = shape[..., None] * np.full(3, 255, np.uint8), shape.astype(np.uint8), None
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
    image, mask = np.full((60, 20_000, 3), 99, np.uint8), np.zeros((60, 20_000), np.uint8)
    image[20:40, 5000:6000], mask[20:40, 5000:6000] = 255, 1
    mask[59, 19_999] = 1
    torch.manual_seed(0)
    pixels, marks = crops((0, 0)).augment(image, mask)
    assert pixels.shape == (*marks.shape, 3) and max(marks.shape) == LONGEST == 8192
    assert set(np.unique(marks)) == {0, 1} and marks[-1, [0, -1]].any()
