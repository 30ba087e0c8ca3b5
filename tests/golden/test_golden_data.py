"""Masks, pixel for pixel those of the original implementation; skipped where its figures are not at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from datasets.readers.vision_v1 import read_object

GOLDEN = Path(os.environ.get("SOFS_GOLDEN", Path(__file__).parents[2] / ".." / "shared" / "golden"))
if not GOLDEN.is_dir():
    pytest.skip(f"no golden figures in {GOLDEN}; set SOFS_GOLDEN", allow_module_level=True)


@pytest.fixture(scope="module")
def arrays():
    with np.load(GOLDEN / "coco_masks.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def samples():
    samples, notes = read_object(GOLDEN, "coco_case")
    assert notes == []
    return samples


def key(sample):
    """The original's name for an image: folder and file."""
    return "/".join(Path(sample.image).parts[-2:])


def test_polygon_masks_are_the_same_pixel_for_pixel(arrays, samples):
    for position, file in enumerate(arrays["files"]):
        found = {sample.category: sample for sample in samples if key(sample) == file}
        assert sorted(found) == sorted(arrays[f"categories_{position}"].tolist())
        assert len(found) == arrays[f"category_sum_{position}"]
        for category, sample in found.items():
            np.testing.assert_array_equal(
                sample.decode_mask(), arrays[f"mask_{position}_cat{category}"]
            )


def test_every_category_has_the_same_files(arrays, samples):
    for category in range(int(arrays["category_num"])):
        files = sorted(key(sample) for sample in samples if sample.category == category)
        assert files == sorted(arrays[f"files_of_category_{category}"].tolist())


def test_sample_count_and_names(arrays, samples):
    assert len(samples) == sum(
        int(arrays[f"category_sum_{i}"]) for i in range(len(arrays["files"]))
    )
    assert {sample.class_name for sample in samples} == {
        "coco_case/scratch",
        "coco_case/pit",
        "coco_case/stain",
    }
