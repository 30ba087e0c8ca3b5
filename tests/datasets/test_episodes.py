from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.episodes import EpisodeBatches, EpisodeList, TrainingEpisodes
from datasets.views import TrainingCrops, ViewSettings, prepare_mask
from tests.helpers import read_index, write_product
from utils.errors import DataError

SETTINGS = ViewSettings(image_size=64, crop_size=48, resize_ratio=0.01, views=2)


@pytest.fixture(scope="module")
def index(surfaces):
    return read_index(surfaces, "Plate", "Disk")


def training(index, settings=SETTINGS, shot=1, seed=54, degrees=10):
    options = {"crop_ratio": (0.7, 1.2), "normal_probability": 0.3, "degrees": (-degrees, degrees)}
    return TrainingEpisodes(EpisodeList(index, shot, seed), TrainingCrops(settings, **options))


def test_tensors_of_an_episode(index):
    item = training(index, shot=2)[3]
    assert item.pop("class") == index.samples[3].class_name
    assert {key: (tuple(v.shape), v.dtype) for key, v in item.items()} == {
        "query": ((3, 64, 64), torch.float32),
        "query_mask": ((64, 64), torch.uint8),
        "supports": ((4, 3, 64, 64), torch.float32),
        "support_masks": ((4, 64, 64), torch.uint8),
    }
    assert item["support_masks"].flatten(1).any(1).all(), "a support crop always holds its defect"


def test_an_episode_depends_on_seed_epoch_and_index_alone(index):
    data, again = training(index), training(index)
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    for number in (5, 0, 21, 5):
        one, other = data[number], again[number]
        assert one.pop("class") == other.pop("class")
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())
    for other in (data[len(data) + 5], training(index, seed=55)[5]):
        assert other["class"] == data[5]["class"]
        assert not torch.equal(other["query"], data[5]["query"])
        assert not torch.equal(other["supports"], data[5]["supports"])
    assert torch.equal(torch.get_rng_state(), states[0]), "global generators are left alone"
    assert (random.getstate(), repr(np.random.get_state())) == states[1:]


def test_balanced_episodes_come_evenly_from_objects_then_from_their_classes(surfaces):
    """However many samples each has; the supports are others of the class, as ever."""
    index = read_index(surfaces, "Plate", "Disk")
    kept = [s for s in index.samples if s.object == "Plate"]
    few = [s for s in index.samples if s.object == "Disk" and s.category == 1][:3]
    episodes = EpisodeList(replace(index, samples=kept + few), 1, 54, balanced=True)
    drawn = [episodes.episode(n, epoch) for epoch in range(60) for n in range(len(episodes))]
    counts = Counter(episode.query.object for episode in drawn)
    assert len(kept) > 2 * len(few) and abs(counts["Disk"] / len(drawn) - 0.5) < 0.05
    classes = Counter(e.query.class_key for e in drawn if e.query.object == "Plate")
    assert max(classes.values()) < 1.2 * min(classes.values())
    queries = {(e.query.image, e.query.category) for e in drawn}
    assert len(queries) == len(kept + few), "each sample has its turn"
    for episode in drawn[:50]:
        assert episode.candidates[0].class_key == episode.query.class_key
        assert episode.candidates[0] != episode.query
    assert drawn[0] == episodes.episode(0, 0)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 9))
def test_processes_share_the_episodes_of_one(length, world, epoch):
    alone, *ranks = (
        EpisodeBatches(length, 4, 11, range(1), *place).numbers(epoch)
        for place in [(0, 1), *((rank, world) for rank in range(world))]
    )
    assert sorted(alone) == list(range(epoch * length, (epoch + 1) * length))
    together = [number for step in zip(*ranks, strict=True) for number in step]
    assert together[:length] == alone, "every process gets equally many"
    assert set(together[length:]) <= set(alone) and len(together) - length < world


def test_batches_of_epochs_in_a_row_and_of_one_that_was_cut_off():
    whole, rest = (EpisodeBatches(7, 2, 3, range(2, 4), skip=skip) for skip in (0, 3))
    assert list(rest) == list(whole)[3:] and whole.per_epoch == rest.per_epoch == 4
    assert [len(batch) for batch in whole] == [2, 2, 2, 1] * 2
    assert [n for batch in list(whole)[4:] for n in batch] == whole.numbers(3)
    assert [n % 7 for n in whole.numbers(3)] != [n % 7 for n in whole.numbers(2)]


def test_supports_are_all_others_of_the_same_class_and_change_with_epoch_and_seed(index):
    episodes = EpisodeList(index, shot=3, seed=1, multiple=3)
    assert len(episodes) == 3 * len(index)
    drawn = [episodes.episode(i, epoch) for i in range(len(episodes)) for epoch in range(2)]
    for episode in drawn:
        others = [s for s in index.samples if s.class_key == episode.query.class_key]
        others.remove(episode.query)
        assert {s.image for s in episode.candidates} == {s.image for s in others}
        assert len(episode.candidates) == len(others)
    first = Counter(e.candidates[0].image for e in drawn if e.query.image == drawn[0].query.image)
    assert len(first) > 1 and len({e.seed for e in drawn}) == len(drawn)
    assert [e.query for e in drawn[::2][:4]] == [index.samples[0]] * 3 + [index.samples[1]]
    other = episodes.with_seed(2)
    pairs = [(episodes.episode(i), other.episode(i)) for i in range(len(episodes))]
    assert all(a.query == b.query for a, b in pairs)
    assert any(a.candidates != b.candidates for a, b in pairs)


def test_held_out_images_are_queries_alone(index):
    images = {sample.image for sample in index.samples[:2]}
    episodes = EpisodeList(index, shot=2, seed=1, query_images=images)
    drawn = [episodes.episode(i) for i in range(len(episodes))]
    assert {e.query.image for e in drawn} == images
    assert not images & {s.image for e in drawn for s in e.candidates}


def test_few_images_are_used_again_and_a_category_of_one_is_left_out(tmp_path, caplog):
    write_product(tmp_path, "Plate", {"spot": 3, "line": 1})
    index = read_index(tmp_path, "Plate")
    episodes = EpisodeList(index, shot=3, seed=0)
    (record,) = caplog.records
    assert "Plate/line" in record.getMessage() and "Plate/spot" not in record.getMessage()
    drawn = [episodes.episode(number) for number in range(len(episodes))]
    spots = {s.image for s in index.samples if s.category_name == "spot"}
    assert {e.query.image for e in drawn} == spots and len(drawn) == 3
    assert {s.image for s in drawn[0].candidates[:3]} == spots - {drawn[0].query.image}
    assert training(index, shot=5)[0]["supports"].shape[0] == 10
    write_product(tmp_path, "Disk", {"spot": 1, "line": 1})
    with pytest.raises(DataError, match=rf"{tmp_path}.*two labelled images.*Disk"):
        EpisodeList(read_index(tmp_path, "Disk"), shot=1, seed=0)


def test_a_large_defect_and_all_without_a_ratio_is_seen_in_the_whole_image(tmp_path):
    paths = write_product(tmp_path, "Plate", {"stain": 3})
    index = read_index(tmp_path, "Plate")
    for ratio in (0.01, None):
        data = training(index, ViewSettings(64, 16, ratio, 1), degrees=0)
        for number, sample in enumerate(index.samples):
            masks = sample.decode_mask(), np.fliplr(sample.decode_mask()).copy()
            views = [prepare_mask(mask, 64) for mask in masks]
            assert any(torch.equal(data[number]["query_mask"], view) for view in views)
    Image.new("RGB", (128, 90)).save(paths[0])
    with pytest.raises(DataError, match=rf"{paths[0]} has 90 x 128 .*96 x 128"):
        [data[number] for number in range(3)]
