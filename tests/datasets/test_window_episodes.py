from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from datasets.episodes import EpisodeList, WindowEpisodes, read_sample
from datasets.views import ViewSettings, cut, prepare_image, prepare_mask, support_set, window_sides
from datasets.windows import tile
from tests.helpers import read_index

SETTINGS = ViewSettings(64, 48, 0.01, views=1, normal_views=2, support_windows=True, grids=(1, 3))


@pytest.fixture(scope="module")
def index(surfaces):
    return read_index(surfaces, "Plate", "Disk")


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_all_windows_are_those_that_a_test_sees(index):
    """At the scales that the supports ask for; so features that are kept serve both."""
    data = WindowEpisodes(EpisodeList(index, 2, 5), SETTINGS, 0.3)
    scales, blank = set(), 0
    for number in range(3 * len(data)):
        item, episode = data[number], data.episodes.episode(number % len(data), number // len(data))
        pairs = [read_sample(index, support) for support in episode.candidates[:2]]
        image, mask = read_sample(index, episode.query)
        matching = []
        for side in window_sides([marks for _, marks in pairs], SETTINGS):
            boxes = [
                box
                for box in tile(*mask.shape, side)
                if torch.equal(prepare_image(cut(image, box), 64), item["query"])
                and torch.equal(prepare_mask(cut(mask, box), 64), item["query_mask"])
            ]
            seen = support_set(pairs, SETTINGS, random.Random(0), [side])
            views = list(zip(seen.images, seen.masks, strict=True))
            given = list(zip(item["supports"], item["support_masks"], strict=True))
            filled = [not view.any() and not marks.any() for view, marks in given]
            known = [any(same(view, other) for other in views) for view in given]
            if boxes and all(f or k for f, k in zip(filled, known, strict=True)):
                matching.append(side)
                blank += sum(filled)
                assert sum(marks.any().item() for _, marks in given) >= 2
        assert matching
        scales.update(matching)
    assert len(scales) > 1 and blank, "both scales come, and an image in one window leaves blanks"


def test_queries_show_a_defect_but_for_the_share_that_may_not(index):
    episodes = EpisodeList(index, 1, 5)
    settings = replace(SETTINGS, grids=(6, 7))
    counts = []
    for share in (0.0, 1.0):
        data = WindowEpisodes(episodes, settings, share)
        counts.append(sum(data[i]["query_mask"].any().item() for i in range(4 * len(data))))
    assert counts[0] == 4 * len(episodes) > 2 * counts[1]


def test_an_episode_depends_on_its_number_alone(index):
    data, again = (WindowEpisodes(EpisodeList(index, 1, 5), SETTINGS, 0.3) for _ in range(2))
    for number in (3, 0, len(data) + 3):
        one, other = data[number], again[number]
        assert one.pop("class") == other.pop("class") and same(one.values(), other.values())
