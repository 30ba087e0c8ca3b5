from __future__ import annotations

import os
import shutil
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from datasets.images import image_size, read_image
from datasets.readers.anomaly import AnomalyImage, AnomalyObject, draw_normal, read_target
from datasets.readers.mvtec import MVTEC_OBJECTS, read_object
from tests.anomaly_data import write_mvtec
from tests.helpers import SIZE
from utils.errors import DataError


@pytest.fixture
def bottle(tmp_path):
    write_mvtec(tmp_path, ["bottle", "cable"])
    return tmp_path / "bottle"


def test_the_names_of_all_objects():
    assert len(MVTEC_OBJECTS) == 15 and list(MVTEC_OBJECTS) == sorted(MVTEC_OBJECTS)


def test_files_are_found_and_matched(bottle):
    found = read_object(bottle.parent, "bottle")
    assert found.name == "bottle"
    assert found.normal == [bottle / "train" / "good" / f"{number:03}.png" for number in range(4)]
    test, truth = bottle / "test", bottle / "ground_truth"
    assert found.test == [
        AnomalyImage(test / "good" / "000.png", "good", None),
        AnomalyImage(test / "good" / "001.png", "good", None),
        AnomalyImage(test / "line" / "000.png", "line", truth / "line" / "000_mask.png"),
        AnomalyImage(test / "line" / "001.png", "line", truth / "line" / "001_mask.png"),
        AnomalyImage(test / "spot" / "000.png", "spot", truth / "spot" / "000_mask.png"),
        AnomalyImage(test / "spot" / "001.png", "spot", truth / "spot" / "001_mask.png"),
    ]
    assert [item.is_anomalous for item in found.test] == [False] * 2 + [True] * 4


def test_targets_mark_the_defect(bottle):
    for item in read_object(bottle.parent, "bottle").test:
        image = read_image(item.image)[:, :, 0]
        target = read_target(item, image_size(item.image))
        assert target.dtype == np.uint8 and target.shape == SIZE
        assert target.any() == item.is_anomalous
        if item.is_anomalous:
            assert (image[target == 1] == {"spot": 250, "line": 10}[item.defect]).all()


def test_masks_may_lack_the_suffix_and_hold_any_values(bottle):
    mask = bottle / "ground_truth" / "line" / "000_mask.png"
    before = read_target(read_object(bottle.parent, "bottle").test[2], SIZE)
    Image.fromarray(before * 3).save(mask.with_name("000.png"))
    os.remove(mask)
    item = read_object(bottle.parent, "bottle").test[2]
    assert item.mask == mask.with_name("000.png")
    np.testing.assert_array_equal(read_target(item, SIZE), before)


def test_stray_files_and_hidden_folders_are_left_out(bottle):
    before = read_object(bottle.parent, "bottle")
    for text in (
        "test/readme.txt",
        "test/good/list.txt",
        "train/good/notes.md",
        "train/license.txt",
    ):
        (bottle / text).write_text("words")
    shutil.copytree(bottle / "test" / "spot", bottle / "test" / ".cache")
    assert read_object(bottle.parent, "bottle") == before


def test_pixels_are_not_read(bottle):
    before = read_object(bottle.parent, "bottle")
    mask = before.test[-1].mask
    mask.write_bytes(mask.read_bytes()[:-30])
    after = read_object(bottle.parent, "bottle")
    assert after == before
    with pytest.raises(DataError, match=r"spot/001_mask\.png"):
        read_target(after.test[-1], SIZE)


def test_a_black_mask_of_an_abnormal_image_is_told(bottle, caplog):
    item = read_object(bottle.parent, "bottle").test[-1]
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(item.mask)
    assert not read_target(item, SIZE).any()
    assert f"{item.mask} marks nothing, but its image is one of spot" in caplog.text


def test_a_missing_object_lists_those_that_are_there(bottle):
    with pytest.raises(DataError, match=r"botle.*TEST\.dataset_path.*holds: bottle, cable"):
        read_object(bottle.parent, "botle", "TEST.dataset_path")
    with pytest.raises(DataError, match=r"gone: no such folder.*dataset_path"):
        read_object(bottle.parent / "gone", "bottle")


@pytest.mark.parametrize("folder", ["train/good", "train"])
def test_no_training_image(bottle, folder):
    shutil.rmtree(bottle / folder)
    with pytest.raises(DataError, match=r"bottle/train/good: no images"):
        read_object(bottle.parent, "bottle")
    (bottle / "train" / "good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"bottle/train/good: no images"):
        read_object(bottle.parent, "bottle")


def test_no_test_image(bottle):
    shutil.rmtree(bottle / "test")
    with pytest.raises(DataError, match=r"bottle/test: no images.*test/good"):
        read_object(bottle.parent, "bottle")
    (bottle / "test" / "good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"bottle/test: no images"):
        read_object(bottle.parent, "bottle")


@pytest.mark.parametrize(
    "remove", ["ground_truth/spot/001_mask.png", "ground_truth/spot", "ground_truth"]
)
def test_an_abnormal_image_without_a_mask_names_both(bottle, remove):
    path = bottle / remove
    shutil.rmtree(path) if path.is_dir() else os.remove(path)
    with pytest.raises(
        DataError, match=r"test/\w+/00\d\.png has no mask.*ground_truth/\w+/00\d_mask\.png"
    ):
        read_object(bottle.parent, "bottle")


def test_a_mask_of_another_size_names_both(bottle):
    found = read_object(bottle.parent, "bottle")
    with pytest.raises(
        DataError, match=r"line/000_mask\.png is 96 x 128 .*test/line/000\.png is 128 x 96"
    ):
        read_target(found.test[2], SIZE[::-1])
    Image.new("L", SIZE).save(found.test[2].mask)
    with pytest.raises(
        DataError, match=r"line/000_mask\.png is 128 x 96 .*test/line/000\.png is 96 x 128"
    ):
        read_object(bottle.parent, "bottle")


@pytest.fixture
def many(tmp_path):
    """An object of twelve training images; files are not read."""
    return AnomalyObject("bottle", [tmp_path / f"{number:03}.png" for number in range(12)], [])


def test_draws_are_distinct_and_nested(many):
    for seed in range(20):
        draws = [draw_normal(many.normal, many.name, shot, seed) for shot in range(1, 13)]
        assert all(larger[:-1] == smaller for smaller, larger in pairwise(draws))
        assert sorted(draws[-1]) == many.normal


def test_draws_depend_on_seed_and_name_alone(many, tmp_path):
    draw = draw_normal(many.normal, many.name, 4, 54)
    backwards = AnomalyObject(
        "bottle", many.normal[::-1], [AnomalyImage(tmp_path / "q.png", "good", None)]
    )
    elsewhere = AnomalyObject("bottle", [tmp_path / "else" / path.name for path in many.normal], [])
    assert (
        draw_normal(many.normal, many.name, 4, 54)
        == draw
        == draw_normal(backwards.normal, backwards.name, 4, 54)
    )
    assert [path.name for path in draw_normal(elsewhere.normal, elsewhere.name, 4, 54)] == [
        path.name for path in draw
    ]
    assert draw_normal(many.normal, many.name, 4, 55) != draw
    assert draw_normal(many.normal, "cable", 4, 54) != draw


def test_every_image_is_drawn_about_equally_often(many):
    first = [draw_normal(many.normal, many.name, 1, seed)[0] for seed in range(1200)]
    assert {first.count(path) for path in many.normal} <= set(
        range(65, 140)
    )  # 100 expected, deviation 9.6


def test_fewer_images_than_shots(many):
    with pytest.raises(DataError, match=r"bottle has 12 .*DATASET\.shot is 13"):
        draw_normal(many.normal, many.name, 13, 54)
