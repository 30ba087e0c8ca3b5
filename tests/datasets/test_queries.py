from __future__ import annotations

import numpy as np
import pytest
import torch

from datasets.episodes import EpisodeList
from datasets.images import read_image
from datasets.queries import EvaluationQueries, FailedQuery, Query
from datasets.views import ViewSettings
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
    assert isinstance(query, Query) and query.faults == () and query.supports[0].windowed
    assert np.array_equal(query.image, read_image(index.image_path(index.samples[0])))
    assert (
        np.array_equal(query.target, index.samples[0].decode_mask())
        and query.target.dtype == np.uint8
    )
    assert query.supports[0].images.shape == (4, 3, 64, 64) and query.supports[0].masks.shape == (
        4,
        64,
        64,
    )
    assert query.supports[0].masks.flatten(1).any(1).all()
    assert torch.equal(query.supports[0].images, queries(index, shot=2)[0].supports[0].images)


def test_another_image_stands_in_for_an_unreadable_support(product):
    _, index = product
    data = queries(index)
    whole = data[0]
    chosen, second = data.episodes[0].episode(0).candidates[:2]
    index.image_path(chosen).write_bytes(b"no image")
    query = data[0]
    assert isinstance(query, Query)
    assert len(query.faults) == 1 and str(index.image_path(chosen)) in query.faults[0]
    ours, before = query.supports[0].images, whole.supports[0].images
    assert ours.shape == before.shape and not torch.equal(ours, before)
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
    assert isinstance(last, Query) and last.supports == {}
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
    assert data[3].sample.area_share > 0.01 and data[3].supports[0].windowed is expected


def test_a_query_comes_once_with_the_supports_of_several_repeats(product):
    _, index = product
    together = queries(index, repeats=(0, 2))[1]
    assert together.number == 1 and list(together.supports) == [0, 2]
    for repeat, supports in together.supports.items():
        alone = EvaluationQueries(EpisodeList(index, 1, seed=3 + repeat), SETTINGS)[1].supports[0]
        assert torch.equal(supports.images, alone.images) and torch.equal(
            supports.masks, alone.masks
        )
    assert not torch.equal(together.supports[0].images, together.supports[2].images)


def test_pairs_come_where_they_are_asked_for(product):
    _, index = product
    query = queries(index, shot=2, keep_pairs=True)[0]
    samples = queries(index, shot=2).episodes[0].episode(0).candidates[:2]
    for (image, mask), sample in zip(query.supports[0].pairs, samples, strict=True):
        assert np.array_equal(image, read_image(index.image_path(sample)))
        assert np.array_equal(mask, sample.decode_mask())
    assert queries(index, shot=2)[0].supports[0].pairs == ()


def test_some_of_the_queries(product):
    _, index = product
    part = queries(index, numbers=[1, 3])
    assert [part[i].number for i in range(len(part))] == [1, 3]
    assert part[1].sample == index.samples[3]
    assert torch.equal(part[1].supports[0].images, queries(index)[3].supports[0].images)
