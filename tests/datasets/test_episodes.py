from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.episodes import (
    EpisodeList,
    EpisodeSampler,
    TrainingCrops,
    TrainingEpisodes,
    ViewSettings,
    derive_seed,
    read_sample,
)
from datasets.views import prepare_mask
from tests.helpers import read_index, write_product
from utils.errors import DataError

SETTINGS = ViewSettings(image_size=64, crop_size=48, resize_ratio=0.01, views=2)


@pytest.fixture(scope="module")
def index(surfaces):
    return read_index(surfaces, "Plate", "Disk")


def training(
    index, settings=SETTINGS, shot=1, alpha=0.3, seed=54, ratio=(0.7, 1.2), degrees=(-10, 10)
):
    crops = TrainingCrops(settings, crop_ratio=ratio, normal_probability=alpha, degrees=degrees)
    return TrainingEpisodes(EpisodeList(index, shot, seed), crops)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert (
            value == second[key]
            if isinstance(value, list | str)
            else torch.equal(value, second[key])
        ), key


def test_tensors_of_an_episode(index):
    item = training(index, shot=2)[3]
    shapes = {key: (tuple(v.shape), v.dtype) for key, v in item.items() if key != "class"}
    assert shapes == {
        "query": ((3, 64, 64), torch.float32),
        "query_mask": ((64, 64), torch.uint8),
        "supports": ((4, 3, 64, 64), torch.float32),
        "support_masks": ((4, 64, 64), torch.uint8),
    }
    assert item["class"] == index.samples[3].class_name
    assert item["support_masks"].flatten(1).any(1).all(), "a support crop always holds its defect"


def test_any_number_of_workers_sees_the_same_episodes(index):
    def run(workers):
        data = training(index)
        sampler = EpisodeSampler(len(data), seed=7)
        sampler.epoch = 2
        return list(DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers))

    alone = run(0)
    assert len(alone) == 4
    for workers in (2, 4):
        for first, second in zip(alone, run(workers), strict=True):
            assert_same(first, second)


def test_an_episode_depends_on_seed_epoch_and_index_alone(index):
    data, again = training(index), training(index)
    for number in (5, 0, 21, 5):
        assert_same(data[number], again[number])
    later, other_seed = data[len(data) + 5], training(index, seed=55)[5]
    for other in (later, other_seed):
        assert other["class"] == data[5]["class"]
        assert not torch.equal(other["query"], data[5]["query"])
        assert not torch.equal(other["supports"], data[5]["supports"])


def test_global_generators_are_left_alone(index):
    data = training(index)
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    data[0], data[9]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]


@pytest.mark.parametrize("length", [17, 18, 2])
def test_ranks_share_the_episodes_of_one(length):
    def dealt(rank, world, epoch=3):
        sampler = EpisodeSampler(length, seed=11, rank=rank, world=world)
        sampler.epoch = epoch
        numbers = list(sampler)
        assert len(numbers) == len(sampler)
        return numbers

    alone, ranks = dealt(0, 1), [dealt(r, 3) for r in range(3)]
    assert sorted(alone) == list(range(3 * length, 4 * length))
    assert len({len(r) for r in ranks}) == 1
    together = [number for step in zip(*ranks, strict=True) for number in step]
    assert together[:length] == alone
    assert set(together[length:]) <= set(alone) and len(together) - length < 3
    assert [n % length for n in dealt(0, 1, epoch=4)] != [n % length for n in alone] or length == 2


def test_supports_are_others_of_the_same_class(index):
    episodes = EpisodeList(index, shot=3, seed=1)
    drawn = [episodes.episode(i, epoch) for i in range(len(episodes)) for epoch in range(5)]
    for episode in drawn:
        images = [s.image for s in episode.candidates]
        assert episode.query.image not in images
        assert sorted(images) == sorted({s.image for s in index.samples if s.class_key == episode.query.class_key}
                                        - {episode.query.image})  # fmt: skip
        assert {s.class_key for s in episode.candidates} == {episode.query.class_key}
    first = Counter(e.candidates[0].image for e in drawn if e.query.image == drawn[0].query.image)
    assert len(first) > 1, "supports change from epoch to epoch"


def test_seed_and_repeats_change_the_supports_not_the_queries(index):
    episodes = EpisodeList(index, shot=1, seed=1, multiple=3)
    assert len(episodes) == 3 * len(index)
    other = episodes.with_seed(2)
    pairs = [(episodes.episode(i), other.episode(i)) for i in range(len(episodes))]
    assert all(a.query == b.query for a, b in pairs)
    assert any(a.candidates != b.candidates for a, b in pairs)
    assert [a.query for a, _ in pairs[:4]] == [index.samples[0]] * 3 + [index.samples[1]]
    assert len({a.seed for a, _ in pairs}) == len(pairs)
    assert EpisodeList(index, 1, 2, 3).episode(4) == other.episode(4)


def test_a_category_with_one_image_is_left_out_with_one_warning(tmp_path, caplog):
    write_product(tmp_path, "Plate", {"spot": 3, "line": 1})
    episodes = EpisodeList(read_index(tmp_path, "Plate"), shot=1, seed=0)
    assert len(episodes) == 3
    assert {episodes.episode(i).query.category_name for i in range(3)} == {"spot"}
    assert (
        len(caplog.records) == 1 and "Plate/line" in caplog.text and "Plate/spot" not in caplog.text
    )


def test_as_many_images_as_shots_uses_all_the_others(tmp_path):
    write_product(tmp_path, "Plate", {"spot": 3})
    index = read_index(tmp_path, "Plate")
    episode = EpisodeList(index, shot=3, seed=0).episode(0)
    supports = episode.candidates[:3]
    assert len(supports) == 3 and {s.image for s in supports} == {
        s.image for s in index.samples
    } - {episode.query.image}
    assert training(index, shot=5)[0]["supports"].shape[0] == 10


def test_no_category_with_two_images(tmp_path):
    write_product(tmp_path, "Plate", {"spot": 1, "line": 1})
    with pytest.raises(DataError, match=rf"{tmp_path}.*two labelled images.*Plate"):
        EpisodeList(read_index(tmp_path, "Plate"), shot=1, seed=0)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.0, 1, 1), (0.5, 0.4, 0.75), (1.0, 0, 0.3)])
def test_query_crops_are_centred_on_defect_or_normal_pixels(index, alpha, low, high):
    small = ViewSettings(image_size=16, crop_size=16, resize_ratio=0.01, views=1)
    data = training(index, small, alpha=alpha, ratio=(1, 1), degrees=(0, 0))
    seen = [bool(data[number]["query_mask"].any()) for number in range(160)]
    assert low <= np.mean(seen) <= high


def test_a_large_defect_is_seen_in_the_whole_image(tmp_path):
    write_product(tmp_path, "Plate", {"stain": 3})
    index = read_index(tmp_path, "Plate")
    data = training(index, ViewSettings(64, 16, 0.01, 1), degrees=(0, 0))
    for number in range(6):
        mask = index.samples[number % 3].decode_mask()
        views = [prepare_mask(m, 64) for m in (mask, np.fliplr(mask).copy())]
        assert any(torch.equal(data[number]["query_mask"], view) for view in views)


def test_without_a_ratio_every_image_is_seen_whole(index):
    item = training(index, ViewSettings(64, 16, None, 1), degrees=(0, 0))[0]
    mask = index.samples[0].decode_mask()
    assert any(
        torch.equal(item["query_mask"], prepare_mask(m, 64)) for m in (mask, np.fliplr(mask).copy())
    )


def test_crop_ratio_scales_the_crop(index):
    """Twice the crop shows the defect at half its side."""
    areas = [
        np.mean(
            [
                float(training(index, alpha=0, ratio=(r, r), degrees=(0, 0))[n]["query_mask"].sum())
                for n in range(6)
            ]
        )
        for r in (0.5, 1.0)
    ]
    assert 2 < areas[0] / areas[1] < 6


def test_an_image_of_another_size_than_its_annotation(tmp_path):
    paths = write_product(tmp_path, "Plate", {"spot": 3})
    index = read_index(tmp_path, "Plate")
    Image.new("RGB", (128, 90)).save(paths[0])
    broken = next(s for s in index.samples if index.image_path(s) == paths[0])
    with pytest.raises(DataError, match=rf"{paths[0]} has 90 x 128 .*96 x 128"):
        read_sample(index, broken)
    with pytest.raises(DataError, match=str(paths[0])):
        training(index)[index.samples.index(broken)]


def test_derived_seeds_differ_in_every_part():
    seeds = {
        derive_seed(*parts)
        for parts in [(1, 2, 3), (1, 2, 4), (1, 3, 2), (2, 1, 3), (1, 2), (0, 1, 2)]
    }
    assert len(seeds) == 6 and all(0 <= s < 2**32 for s in seeds)
