"""Readers on real photographs; skipped where they are not at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from datasets.images import image_size, read_image
from datasets.masks import read_mask
from datasets.readers import vision_v1
from datasets.readers.open_domain import category_mask, read_open_domain
from datasets.samples import load_or_build

DATA = Path(os.environ.get("SOFS_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
if not DATA.is_dir():
    pytest.skip(f"no real images in {DATA}; set SOFS_DATA", allow_module_level=True)

COUNTS = {"MT_Blowhole": 115, "MT_Break": 85, "MT_Crack": 57, "MT_Fray": 32, "MT_Uneven": 99}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return load_or_build(
        vision_v1, "VISION_V1", DATA / "magnetic_tile", list(COUNTS), cache, save=False, load=False
    )


def test_every_labelled_magnetic_tile_is_a_sample(tiles):
    counts = {name: sum(sample.object == name for sample in tiles.samples) for name in COUNTS}
    assert counts == COUNTS
    assert tiles.missing_images() == []
    assert all(sample.size == image_size(tiles.image_path(sample)) for sample in tiles.samples)


def test_masks_lie_within_the_boxes_of_their_annotations(tiles):
    folder = DATA / "magnetic_tile" / "MT_Blowhole" / "train"
    content = json.loads((folder / "_annotations.coco.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    masks = {
        Path(s.image).name: s.decode_mask()
        for s in tiles.samples
        if s.image.startswith("MT_Blowhole/train")
    }
    outside = {name: mask.copy() for name, mask in masks.items()}
    for annotation in content["annotations"]:
        x, y, w, h = (int(value) for value in annotation["bbox"])
        assert masks[names[annotation["image_id"]]][y : y + h, x : x + w].any()
        outside[names[annotation["image_id"]]][y : y + h, x : x + w] = 0
    assert masks and not any(mask.any() for mask in outside.values())


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
