from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from datasets.views import LONGEST, TrainTransform, prepare_image, prepare_mask
from datasets.windows import fitted_shape

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", [(37, 60), (60, 37), (140, 91), (1, 70), (400, 3)])
def test_padding_right_and_below_is_zero(shape):
    image, mask = prepare_image(noise(*shape), 70), prepare_mask(np.ones(shape, np.uint8), 70)
    rows, columns = fitted_shape(*shape, 70)
    assert image.shape == (3, 70, 70) and image.dtype == torch.float32
    assert mask.shape == (70, 70) and mask.dtype == torch.uint8
    assert image[:, :rows, :columns].abs().min() > 0
    assert mask[:rows, :columns].all()
    for padded in (image, mask[None]):
        assert not padded[:, rows:].any()
        assert not padded[:, :, columns:].any()


def test_image_of_the_right_size_is_only_normalised():
    image = noise(70, 70)
    back = prepare_image(image, 70) * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    np.testing.assert_allclose(back.permute(1, 2, 0).numpy() * 255, image, atol=1e-3)


def test_mean_of_an_image_survives_shrinking():
    """Antialiased: every pixel has its say, as its mean over the whole."""
    image = noise(700, 700)
    shrunk = prepare_image(image, 70) * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)
    np.testing.assert_allclose(shrunk.mean((1, 2)) * 255, image.mean((0, 1)), atol=0.6)
    assert shrunk.std() < 0.1, "noise must be averaged away, not sampled"


@pytest.mark.parametrize("pixel", [(0, 0), (2000, 1503), (3999, 2999), (1234, 567)])
def test_mask_of_one_pixel_survives_a_4000_px_image(pixel):
    mask = np.zeros((4000, 3000), np.uint8)
    mask[pixel] = 1
    row, column = (int(p * 518 / 4000) for p in pixel)
    small = prepare_mask(mask, 518)
    marked = small.nonzero().numpy()
    assert 1 <= len(marked) <= 9
    assert np.abs(marked - (row, column)).max() <= 1


def test_mask_is_binary_and_does_not_depend_on_its_values():
    mask = (np.random.default_rng(0).random((90, 120)) > 0.9).astype(np.uint8)
    ours = prepare_mask(mask, 70)
    assert set(ours.unique().tolist()) <= {0, 1}
    assert torch.equal(ours, prepare_mask(mask * 255, 70))
    assert torch.equal(ours, prepare_mask(mask * 7, 70))
    assert not prepare_mask(mask * 0, 70).any()


def test_mask_of_the_right_size_is_kept():
    mask = (np.random.default_rng(0).random((70, 50)) > 0.5).astype(np.uint8)
    np.testing.assert_array_equal(prepare_mask(mask, 70)[:, :50].numpy(), mask)


def test_preparing_does_not_write_to_its_input():
    image, mask = noise(70, 70), np.ones((70, 70), np.uint8)
    image.flags.writeable = mask.flags.writeable = False
    prepare_image(image, 70).zero_()
    prepare_mask(mask, 70).zero_()
    assert mask.all() and image.any()


@pytest.fixture
def blob():
    """A picture that shows its mask: a lopsided white shape, the mask of it, and a disk that no rotation leaves."""
    y, x = np.mgrid[:96, :96]
    shape = ((y - 48) ** 2 + (x - 48) ** 2 < 34**2) & (x > 40) & (y > 55 - x // 4)
    return (
        np.repeat(shape[..., None] * np.uint8(255), 3, 2),
        shape.astype(np.uint8),
        np.hypot(y - 47.5, x - 47.5) < 46,
    )


def agreement(image, mask, disk):
    """Share of the disk's pixels where brightness and mask say the same."""
    grey = image.mean(-1)[disk]
    return ((grey > (grey.min() + grey.max()) / 2) == mask[disk].astype(bool)).mean()


def test_image_and_mask_move_alike(blob):
    image, mask, disk = blob
    augment = TrainTransform((-30, 30))
    assert agreement(image, np.fliplr(mask), disk) < 0.9
    kept = turned = mirrored = 0
    for seed in range(60):
        torch.manual_seed(seed)
        moved_image, moved_mask = augment(image, mask)
        assert moved_image.dtype == moved_mask.dtype == np.uint8
        assert moved_image.shape == image.shape
        assert set(np.unique(moved_mask)) == {0, 1}
        assert agreement(moved_image, moved_mask, disk) > 0.97
        same, flipped = (
            np.array_equal(moved_mask, mask),
            np.array_equal(moved_mask, np.fliplr(mask)),
        )
        kept, mirrored, turned = (
            kept + same,
            mirrored + flipped,
            turned + (not same and not flipped),
        )
    assert min(kept, mirrored) >= 6 and turned >= 18


def test_rotation_fills_with_the_mean_colour_and_no_defect():
    image, mask = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), np.uint8)
    augment = TrainTransform((45, 45))
    augment.pipeline.transforms = [
        t for t in augment.pipeline.transforms if holds(t, v2.RandomRotation)
    ]
    augment.pipeline.transforms[0].p = 1.0
    moved_image, moved_mask = augment(image, mask)
    assert moved_image[0, 0].tolist() == [124, 116, 104]
    assert moved_mask[0, 0] == 0
    assert moved_mask[32, 32] == 1 and not moved_image[32, 32].any()


def holds(transform, kind):
    return any(isinstance(t, kind) for t in getattr(transform, "transforms", [transform]))


def test_probabilities_are_the_published_ones():
    """Counted over draws: colours or sharpness change in 51 % (0.3 and 0.3), geometry in 75 % (0.5 and 0.5)."""
    image, mask = noise(16, 16), np.zeros((16, 16), np.uint8)
    mask[4, 2] = mask[9, 5] = mask[12, 13] = 1
    augment, moved, recoloured = TrainTransform((20, 40)), 0, 0
    torch.manual_seed(0)
    for _ in range(400):
        new_image, new_mask = augment(image, mask)
        still = [np.array_equal(new_mask, m) for m in (mask, np.fliplr(mask))]
        moved += not still[0]
        if any(still):
            recoloured += not np.array_equal(new_image, image if still[0] else np.fliplr(image))
    assert 0.68 < moved / 400 < 0.82
    assert 0.41 < recoloured / 200 < 0.61


def test_augmentation_follows_from_torchs_seed_and_leaves_its_input():
    image, mask = noise(40, 40), (noise(40, 40)[..., 0] > 200).astype(np.uint8)
    before, augment, draws = (image.copy(), mask.copy()), TrainTransform((-90, 90)), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append([augment(image, mask) for _ in range(5)])
    equal = [all(np.array_equal(a, b) for p, q in zip(draws[0], d, strict=True) for a, b in zip(p, q, strict=True))
             for d in draws[1:]]  # fmt: skip
    assert equal == [True, False]
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_a_side_over_the_longest_is_shrunk_to_it_before_the_augmentation():
    image, mask = np.full((60, 20_000, 3), 99, np.uint8), np.zeros((60, 20_000), np.uint8)
    image[20:40, 5000:6000], mask[20:40, 5000:6000] = 255, 1
    mask[59, 19_999] = 1
    torch.manual_seed(0)
    found, marks = TrainTransform((0, 0))(image, mask)
    assert found.shape == (*marks.shape, 3) and max(marks.shape) == LONGEST == 8192
    assert set(np.unique(marks)) == {0, 1} and marks[-1, [0, -1]].any()
    grey = found.mean(-1)
    bright = grey > (grey.min() + grey.max()) / 2
    assert (bright == marks).mean() > 0.99
    assert TrainTransform((0, 0))(image[:, :5000], mask[:, :5000])[1].shape == (60, 5000)
