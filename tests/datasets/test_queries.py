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
def product(tmp_path):
    """Paths of the images of one category, and its index."""
    paths = write_product(tmp_path, "Plate", {"spot": 4})
    return paths, read_index(tmp_path, "Plate")


def queries(index, shot=1, **options):
    return EvaluationQueries(EpisodeList(index, shot, seed=3), SETTINGS, **options)


def test_a_query_is_the_image_as_it_is_with_prepared_supports(product):
    _, index = product
    data = queries(index, shot=2, keep_pairs=True)
    query, supports, plain = data[0], data[0].supports[0], queries(index, shot=2)[0].supports[0]
    assert query.faults == () and supports.windowed and plain.pairs == ()
    assert np.array_equal(query.image, read_image(index.image_path(index.samples[0])))
    assert np.array_equal(query.target, index.samples[0].decode_mask())
    assert query.target.dtype == np.uint8 and supports.images.shape == (4, 3, 64, 64)
    assert supports.masks.shape == (4, 64, 64) and supports.masks.flatten(1).any(1).all()
    assert torch.equal(supports.images, plain.images)
    samples = data.episodes[0].episode(0).candidates[:2]
    for (image, mask), sample in zip(supports.pairs, samples, strict=True):
        assert np.array_equal(image, read_image(index.image_path(sample)))
        assert np.array_equal(mask, sample.decode_mask())


def test_another_image_replaces_an_unreadable_support(product):
    _, index = product
    data = queries(index)
    before = data[0].supports[0].images
    chosen, second = data.episodes[0].episode(0).candidates[:2]
    index.image_path(chosen).write_bytes(b"no image")
    query = data[0]
    assert len(query.faults) == 1 and str(index.image_path(chosen)) in query.faults[0]
    images = query.supports[0].images
    assert images.shape == before.shape and not torch.equal(images, before)
    index.image_path(second).unlink()
    assert len(data[0].faults) == 2


def test_without_a_readable_image_or_support_a_query_has_no_supports(product):
    paths, index = product
    numbers = {index.image_path(sample): i for i, sample in enumerate(index.samples)}
    paths[0].write_bytes(paths[0].read_bytes()[:200])
    broken = queries(index)[numbers[paths[0]]]
    assert broken.image is None and broken.supports == {}
    assert broken.sample == index.samples[numbers[paths[0]]]
    assert len(broken.faults) == 1 and str(paths[0]) in broken.faults[0]
    for path in paths[1:-1]:
        path.unlink()
    last = queries(index)[numbers[paths[-1]]]
    assert last.image is not None and last.supports == {}
    assert all(any(str(path) in fault for fault in last.faults) for path in paths[:-1])


@pytest.mark.parametrize("by_query", [False, True])
def test_the_defect_of_the_supports_or_of_the_query_decides_the_scale(tmp_path, by_query):
    """One large defect among small ones of its category."""
    write_product(tmp_path, "Plate", {"spot": 3})
    write_product(tmp_path, "Disk", {"stain": 2})
    small, large = (read_index(tmp_path, name) for name in ("Plate", "Disk"))
    odd = large.samples[0]
    small.samples.append(replace(odd, object="Plate", category=0, category_name="spot"))
    query = queries(small, scale_by_query=by_query)[3]
    assert query.sample.area_share > 0.01 and query.supports[0].windowed is not by_query


def test_repeats_draw_other_supports_and_a_share_of_the_queries_is_as_among_all(product):
    _, index = product
    part = queries(index, repeats=(0, 2), numbers=[1, 3])
    assert [part[i].number for i in range(len(part))] == [1, 3]
    together = part[0]
    assert part[1].sample == index.samples[3] and list(together.supports) == [0, 2]
    for repeat, supports in together.supports.items():
        alone = EvaluationQueries(EpisodeList(index, 1, seed=3 + repeat), SETTINGS)[1].supports[0]
        assert torch.equal(supports.images, alone.images)
        assert torch.equal(supports.masks, alone.masks)
    assert not torch.equal(together.supports[0].images, together.supports[2].images)
