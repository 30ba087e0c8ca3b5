from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.episodes import EpisodeList
from datasets.images import read_image
from datasets.queries import EvaluationQueries
from datasets.views import ViewSettings
from tests.helpers import read_index, write_product

SETTINGS = ViewSettings(image_size=64, crop_size=48, resize_ratio=0.01, views=2)


@pytest.fixture
def index(tmp_path):
    write_product(tmp_path, "Plate", {"spot": 4})
    return read_index(tmp_path, "Plate")


def queries(index, shot=1, seed=3, **options):
    return EvaluationQueries(EpisodeList(index, shot, seed), SETTINGS, **options)


def test_a_query_is_the_image_as_it_is_with_prepared_supports(index):
    data = queries(index, shot=2, keep_pairs=True)
    query, supports, plain = data[0], data[0].supports[0], queries(index, shot=2)[0].supports[0]
    assert query.faults == () and supports.window == 48 and plain.pairs == ()
    assert np.array_equal(query.image, read_image(index.image_path(index.samples[0])))
    assert np.array_equal(query.target, index.samples[0].decode_mask())
    assert query.target.dtype == np.uint8 and supports.images.shape == (4, 3, 64, 64)
    assert supports.masks.shape == (4, 64, 64) and supports.masks.flatten(1).any(1).all()
    assert torch.equal(supports.images, plain.images)
    samples = data.episodes[0].episode(0).candidates[:2]
    for (image, mask), sample in zip(supports.pairs, samples, strict=True):
        assert np.array_equal(image, read_image(index.image_path(sample)))
        assert np.array_equal(mask, sample.decode_mask())


def test_another_image_replaces_an_unreadable_support(index):
    data = queries(index)
    before = data[0].supports[0].images
    *paths, last = (index.image_path(s) for s in data.episodes[0].episode(0).candidates)
    paths[0].write_bytes(b"no image")
    query = data[0]
    assert len(query.faults) == 1 and str(paths[0]) in query.faults[0]
    images = query.supports[0].images
    assert images.shape == before.shape and not torch.equal(images, before)
    paths[1].unlink(), last.unlink()
    query = data[0]
    assert len(query.faults) == 3 and query.image is not None and query.supports == {}
    path = index.image_path(query.sample)
    path.write_bytes(path.read_bytes()[:200])
    broken = data[0]
    assert broken.image is None and broken.supports == {} and broken.sample == query.sample
    assert len(broken.faults) == 1 and str(path) in broken.faults[0]


@pytest.mark.parametrize("by_query", [False, True])
def test_the_defect_of_the_supports_or_of_the_query_decides_the_scale(tmp_path, index, by_query):
    """One large defect among small ones of its category."""
    write_product(tmp_path, "Disk", {"stain": 2})
    odd = read_index(tmp_path, "Disk").samples[0]
    index.samples.append(replace(odd, object="Plate", category=0, category_name="spot"))
    query = queries(index, scale_by_query=by_query)[4]
    assert query.sample.area_share > 0.01 and query.supports[0].window == (0 if by_query else 48)


def test_repeats_draw_other_supports_and_a_share_of_the_queries_is_as_among_all(index):
    part = queries(index, repeats=(0, 2), numbers=[1, 3])
    assert [part[i].number for i in range(len(part))] == [1, 3]
    together = part[0]
    assert part[1].sample == index.samples[3] and list(together.supports) == [0, 2]
    for repeat, supports in together.supports.items():
        alone = queries(index, seed=3 + repeat)[1].supports[0]
        assert torch.equal(supports.images, alone.images)
        assert torch.equal(supports.masks, alone.masks)
    assert not torch.equal(together.supports[0].images, together.supports[2].images)
