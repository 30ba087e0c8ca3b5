from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.episodes import EpisodeList, ViewSettings
from datasets.images import read_image
from datasets.queries import EvaluationQueries, FailedQuery, Query, is_windowed
from tests.helpers import read_index, write_product

SETTINGS = ViewSettings(image_size=64, crop_size=48, resize_ratio=0.01, views=2)


@pytest.fixture
def product(tmp_path):
    """Paths of the images of one category, and its index."""
    paths = write_product(tmp_path, "Plate", {"spot": 4})
    return paths, read_index(tmp_path, "Plate")


def queries(index, shot=1, settings=SETTINGS, **options):
    return EvaluationQueries(EpisodeList(index, shot, seed=3), settings, **options)


def number_of(index, path):
    return next(i for i, s in enumerate(index.samples) if index.image_path(s) == path)


def test_a_query_is_the_image_as_it_is_with_prepared_supports(product):
    _, index = product
    query = queries(index, shot=2)[0]
    assert isinstance(query, Query) and query.faults == () and query.windowed
    assert np.array_equal(query.image, read_image(index.image_path(index.samples[0])))
    assert np.array_equal(query.target, index.samples[0].decode_mask()) and query.target.dtype == np.uint8
    assert query.supports.shape == (4, 3, 64, 64) and query.support_masks.shape == (4, 64, 64)
    assert query.support_masks.flatten(1).any(1).all()
    assert torch.equal(query.supports, queries(index, shot=2)[0].supports)


def test_another_image_stands_in_for_an_unreadable_support(product):
    _, index = product
    data = queries(index)
    whole = data[0]
    chosen, second = data.episodes.episode(0).candidates[:2]
    index.image_path(chosen).write_bytes(b"no image")
    query = data[0]
    assert isinstance(query, Query)
    assert len(query.faults) == 1 and str(index.image_path(chosen)) in query.faults[0]
    assert query.supports.shape == whole.supports.shape and not torch.equal(query.supports, whole.supports)
    index.image_path(second).unlink()
    assert len(data[0].faults) == 2


def test_an_unreadable_query_or_no_readable_support_fails(product):
    paths, index = product
    broken = number_of(index, paths[0])
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    failed = queries(index)[broken]
    assert isinstance(failed, FailedQuery) and failed.sample == index.samples[broken]
    assert len(failed.faults) == 1 and str(paths[0]) in failed.faults[0]
    for path in paths[1:-1]:
        path.unlink()
    last = queries(index)[number_of(index, paths[-1])]
    assert isinstance(last, FailedQuery)
    assert all(any(str(p) in fault for fault in last.faults) for p in paths[:-1])


@pytest.mark.parametrize(("scale_by", "expected"), [("support", True), ("query", False)])
def test_whose_defect_chooses_between_windows_and_the_whole(tmp_path, scale_by, expected):
    """One large defect among small ones of its category: a category's images differ in scale."""
    write_product(tmp_path, "Plate", {"spot": 3})
    write_product(tmp_path, "Disk", {"stain": 2})
    small, large = (read_index(tmp_path, name) for name in ("Plate", "Disk"))
    odd = large.samples[0]
    small.samples.append(type(odd)(odd.image, "Plate", 0, "spot", odd.mask))
    data = queries(small, scale_by=scale_by)
    assert data[3].sample.area_share > 0.01 and data[3].windowed is expected


def test_scale_of_several_supports_is_their_mean():
    masks = [np.zeros((10, 10), np.uint8) for _ in range(2)]
    masks[0][:2] = 1
    assert is_windowed(masks, 0.1) and not is_windowed(masks, 0.09)
    assert not is_windowed(masks, None)


def test_ranks_take_turns(product):
    _, index = product
    parts = [queries(index, rank=r, world=3) for r in range(3)]
    assert [list(p.numbers) for p in parts] == [[0, 3], [1], [2]] and [len(p) for p in parts] == [2, 1, 1]
    assert parts[0][1].sample == index.samples[3]
    assert torch.equal(parts[0][1].supports, queries(index)[3].supports)
