from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.picture_lists import read_supports
from tests.datasets.bad_files import saved, with_orientation
from tests.helpers import picture
from utils.errors import DataError

ONE = picture(64, 64)


@pytest.mark.parametrize("single", ["a.png", Path("a.png"), Image.new("L", (64, 64)), ONE, None])
def test_one_picture_in_place_of_a_list_is_refused(single):
    with pytest.raises(DataError, match=r"images is .*; expected a list of paths, PIL images"):
        read_supports(single, [None])
    with pytest.raises(DataError, match=r"masks is .*; expected a list"):
        read_supports([ONE], single)


@pytest.mark.parametrize("container", [np.stack, iter])
def test_pictures_may_come_in_any_container(container):
    pairs = read_supports(container([ONE] * 2), (mask for mask in (None, np.eye(64, dtype=bool))))
    assert pairs[0][1] is None and np.array_equal(pairs[1][1], np.eye(64))
    assert not np.shares_memory(pairs[0][0], ONE) and np.array_equal(pairs[0][0], ONE)


REFUSED = {
    r"support image 1, an array of uint8, shape \(3, 64, 64\): expected \(h, w\)":
        ([ONE, ONE.transpose(2, 0, 1)], [None, None]),
    r"mask 1, an array of float64, .*whole num": ([ONE, ONE], [None, np.full((64, 64), 0.5)]),
    r"mask 1, .*\(64, 65\) has 64 x 65 pixels .*, its image 64 x 64":
        ([ONE, ONE], [None, np.ones((64, 65))]),
    "2 support images and 1 masks: give one mask per image, None for": ([ONE, ONE], [None]),
    "no support image is given; give at least one": ([], []),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_a_picture_that_cannot_be_a_support_is_refused_by_its_number(message):
    with pytest.raises(DataError, match=message):
        read_supports(*REFUSED[message])


def test_supports_are_the_same_as_files_as_pil_images_and_as_arrays(tmp_path):
    image, mask = picture(96, 128)[:, :, 0].astype(np.uint16) * 257, np.zeros((96, 128), np.uint8)
    mask[20:40, 30:70] = 255
    files = saved(tmp_path / "image.png", image), saved(tmp_path / "mask.png", mask)
    ways = [(image, mask), files, [Image.open(file) for file in files]]
    read = [read_supports([one], [other])[0] for one, other in ways]
    for pixels, support_mask in read:
        assert np.array_equal(pixels, read[0][0]) and pixels.shape == (96, 128, 3)
        assert np.array_equal(support_mask, mask > 0)
    turned = with_orientation(tmp_path / "turned.png", np.rot90(mask, 2), 3)
    assert np.array_equal(read_supports([files[0]], [turned])[0][1], mask > 0)
