"""Readers on real photographs; skipped where they are not at hand."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from datasets.images import image_size, read_image
from datasets.masks import read_mask
from datasets.readers.open_domain import category_mask, read_open_domain
from tests.helpers import read_index

DATA = Path(os.environ.get("SOFS_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
if not DATA.is_dir():
    pytest.skip(f"no real images in {DATA}; set SOFS_DATA", allow_module_level=True)

COUNTS = {"MT_Blowhole": 115, "MT_Break": 85, "MT_Crack": 57, "MT_Fray": 32, "MT_Uneven": 99}


def test_every_labelled_magnetic_tile_is_a_sample():
    tiles = read_index(DATA / "magnetic_tile", *COUNTS)
    assert Counter(sample.object for sample in tiles.samples) == COUNTS
    assert tiles.missing_images() == []
    assert all(sample.size == image_size(tiles.image_path(sample)) for sample in tiles.samples)


def test_severstal_steel():
    steel = read_open_domain(DATA, "severstal_steel")
    assert [len(steel.supports[""]), len(steel.queries), len(steel.true_labels[""])] == [1, 6, 6]
    image, mask = steel.supports[""][0]
    marked = category_mask(mask, 0, 1)
    assert read_image(image).shape == (256, 1600, 3) and marked.shape == (256, 1600)
    assert 0.0005 < marked.mean() < 0.05
    for query in steel.queries:
        label = read_mask(steel.true_labels[""][query.name])
        assert label.shape == read_image(query).shape[:2] and 0 < label.mean() < 0.05
