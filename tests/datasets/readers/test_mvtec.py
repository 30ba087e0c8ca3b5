from __future__ import annotations

import os
import shutil
from itertools import pairwise

import numpy as np
import pytest

from datasets.images import image_size, read_image
from datasets.readers.anomaly import AnomalyImage, draw_normal, read_target
from datasets.readers.mvtec import MVTEC_OBJECTS, read_object
from tests.anomaly_data import write_mvtec
from tests.datasets.bad_files import saved, with_orientation
from tests.helpers import SIZE
from utils.errors import DataError


@pytest.fixture
def bottle(tmp_path):
    write_mvtec(tmp_path, ["bottle", "cable"])
    return tmp_path / "bottle"


def test_files_are_found_and_matched(bottle):
    item, test, truth = (
        read_object(bottle.parent, "bottle"),
        bottle / "test",
        bottle / "ground_truth",
    )
    assert item.name == "bottle" and len(MVTEC_OBJECTS) == 15
    assert item.normal == [bottle / "train" / "good" / f"{number:03}.png" for number in range(4)]
    names = [(kind, f"00{n}") for kind in ("good", "line", "spot") for n in (0, 1)]
    masks = {kind: truth / kind for kind in ("line", "spot")}
    assert item.test == [
        AnomalyImage(test / k / f"{n}.png", k, masks[k] / f"{n}_mask.png" if k in masks else None)
        for k, n in names
    ]


def test_targets_mark_the_defect_whatever_the_name_and_values_of_the_mask(bottle):
    for item in read_object(bottle.parent, "bottle").test:
        image = read_image(item.image)[:, :, 0]
        target = read_target(item, image_size(item.image))
        assert target.dtype == np.uint8 and target.shape == SIZE
        assert target.any() == item.is_anomalous
        assert (image[target == 1] == {"spot": 250, "line": 10}.get(item.defect)).all()
    other = saved(item.mask.with_name(item.image.name), target * 3)
    os.remove(item.mask)
    after = read_object(bottle.parent, "bottle").test[-1]
    assert after.mask == other
    np.testing.assert_array_equal(read_target(after, SIZE), target)


def test_pixels_are_read_later_and_a_black_mask_is_named(bottle, caplog):
    *_, black, broken = read_object(bottle.parent, "bottle").test
    broken.mask.write_bytes(broken.mask.read_bytes()[:-30])
    saved(black.mask, np.zeros(SIZE, np.uint8))
    assert read_object(bottle.parent, "bottle").test[-2:] == [black, broken]
    assert not read_target(black, SIZE).any()
    assert f"{black.mask} marks nothing, but its image is one of spot" in caplog.text


def test_a_mask_of_another_size_names_both_and_one_of_the_turned_image_is_turned(bottle):
    item = read_object(bottle.parent, "bottle").test[2]
    target = read_target(item, SIZE)
    saved(item.mask, np.rot90(target, -1).copy())
    with pytest.raises(DataError, match=r"000_mask\.png is 128 x 96 .*line/000\.png is 96 x 128"):
        read_object(bottle.parent, "bottle")
    with_orientation(item.image, read_image(item.image), 6)
    assert read_object(bottle.parent, "bottle").test[2] == item
    np.testing.assert_array_equal(read_target(item, SIZE), target)


def test_what_is_missing_is_named(bottle):
    with pytest.raises(DataError, match=r"botle.*TEST\.dataset_path.*holds: bottle, cable"):
        read_object(bottle.parent, "botle", "TEST.dataset_path")
    shutil.rmtree(bottle / "ground_truth" / "spot")
    with pytest.raises(DataError, match=r"000\.png has no mask.*ground_truth/spot/000_mask"):
        read_object(bottle.parent, "bottle")
    shutil.rmtree(bottle / "test")
    with pytest.raises(DataError, match=r"bottle/test: no images.*test/good"):
        read_object(bottle.parent, "bottle")


def test_draws_are_distinct_nested_and_depend_on_seed_and_name_alone(tmp_path):
    images = [tmp_path / f"{number:03}.png" for number in range(12)]
    draws = [draw_normal(images, "bottle", shot, 54) for shot in range(1, 13)]
    assert all(larger[:-1] == smaller for smaller, larger in pairwise(draws))
    assert sorted(draws[-1]) == images
    draw = draw_normal(images, "bottle", 4, 54)
    assert draw_normal(images[::-1], "bottle", 4, 54) == draw
    assert draw_normal(images, "bottle", 4, 55) != draw != draw_normal(images, "cable", 4, 54)
    with pytest.raises(DataError, match=r"bottle has 12 .*DATASET\.shot is 13"):
        draw_normal(images, "bottle", 13, 54)
