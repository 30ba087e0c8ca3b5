from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets import large_images
from datasets.images import exif_orientation, image_size, limit_pixels, read_image
from datasets.masks import read_labels, read_mask
from datasets.readers import vision_v1
from tests.datasets.bad_files import saved, with_orientation
from tests.fuzz.inputs import annotations, bounded_memory, broken_files, contents, fuzzed
from utils.errors import DataError


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    """All files count as large ones, and truly large ones are refused."""
    monkeypatch.setattr(large_images, "AT_ONCE", 0)
    limit_pixels(4_000_000)
    yield
    limit_pixels(500_000_000)


def result_of(call, arguments, named):
    """What is returned; None where the file is refused by its name."""
    try:
        return call(*arguments)
    except DataError as error:
        assert named in str(error) and len(str(error)) < 1500
        return None


def test_odd_annotations_are_read_or_refused_by_name(tmp_path):
    folder, pixels = tmp_path / "Plate" / "train", np.zeros((12, 16), np.uint8)
    for name in ("a.png", "c.png"):
        saved(folder / name, pixels)
    with_orientation(folder / "b.png", pixels.T.copy(), 6)

    @fuzzed(120)
    @given(contents(annotations()))
    def read(content):
        (folder / vision_v1.ANNOTATIONS).write_bytes(content)
        result_of(vision_v1.normal_images, (tmp_path, "Plate"), vision_v1.ANNOTATIONS)
        answer = result_of(vision_v1.read_object, (tmp_path, "Plate"), vision_v1.ANNOTATIONS)
        for sample in answer[0] if answer else ():
            assert sample.image.startswith("Plate/train/") and ".." not in sample.image.split("/")
            assert sample.decode_mask().shape == sample.size and sample.decode_mask().any()
            if sample.image.endswith(("/a.png", "/b.png", "/c.png")):
                with Image.open(tmp_path / sample.image) as image:
                    assert image.size == sample.size[::-1]

    with bounded_memory():
        read()


def read_in_strips(path):
    """All rows, 5 at a time, as a large image is read."""
    image = large_images.ImageStrips(path)
    rows = [image.strip(top, min(top + 5, image.size[0])) for top in range(0, image.size[0], 5)]
    return np.concatenate(rows)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about odd tags
def test_broken_images_are_read_or_refused_by_name(tmp_path):
    @fuzzed(200)
    @given(broken_files, st.sampled_from(["a.png", "a.jpg", "a.TIF", "a.bmp"]))
    def read(content, name):
        path = tmp_path / name
        path.write_bytes(content)
        calls = (image_size, read_image, read_in_strips, read_mask, read_labels, exif_orientation)
        size, *pixels, mask, labels, turn = (result_of(call, [path], name) for call in calls)
        if size is None:
            assert all(found is None for found in (*pixels, mask, labels))
        assert turn is None or turn in range(1, 9)
        for found in pixels:
            assert found is None or (found.shape, found.dtype) == ((*size, 3), np.uint8)
        assert mask is None or (mask.shape == size and set(np.unique(mask)) <= {0, 1})
        assert labels is None or (labels.shape == size and labels.dtype.kind in "iu")

    with bounded_memory():
        read()
