from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from datasets import large_images
from datasets.images import exif_orientation, image_size, limit_pixels, read_image
from datasets.masks import read_labels, read_mask
from tests.fuzz.guards import bounded_memory, bounded_time, fuzzed, writes_only
from tests.fuzz.images import broken_files
from utils.errors import DataError

NAMES = st.sampled_from(["a.png", "a.jpg", "a.TIF", "a.bmp"])


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    """All files count as large ones, and truly large ones are refused."""
    monkeypatch.setattr(large_images, "AT_ONCE", 0)
    limit_pixels(4_000_000)
    yield
    limit_pixels(500_000_000)


def result_of(call, path):
    """What is returned; None where the file is refused by its name."""
    try:
        return call(path)
    except DataError as error:
        assert path.name in str(error) and len(str(error)) < 1500
        return None


def read_in_strips(path):
    """All rows, 5 at a time, as a large image is read."""
    image = large_images.ImageStrips(path)
    rows = [image.strip(top, min(top + 5, image.size[0])) for top in range(0, image.size[0], 5)]
    return np.concatenate(rows)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about odd tags
def test_broken_images_are_read_or_refused_by_name(tmp_path):
    @fuzzed(300)
    @given(broken_files(), NAMES)
    def read(content, name):
        path = tmp_path / name
        path.write_bytes(content)
        calls = (image_size, read_image, read_in_strips, read_mask, read_labels, exif_orientation)
        with bounded_time(), writes_only(tmp_path / "nowhere"):
            size, *pixels, mask, labels, turn = (result_of(call, path) for call in calls)
        if size is None:
            assert all(found is None for found in (*pixels, mask, labels))
        assert turn is None or turn in range(1, 9)
        for found in pixels:
            assert found is None or (found.shape, found.dtype) == ((*size, 3), np.uint8)
        assert mask is None or (mask.shape == size and set(np.unique(mask)) <= {0, 1})
        assert labels is None or (labels.shape == size and labels.dtype.kind in "iu")

    with bounded_memory():
        read()


def around(values, row, column):
    """Values above, below, left and right of a pixel, as far as they are inside."""
    height, width = values.shape
    near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [int(values[r, c]) for r, c in near if 0 <= r < height and 0 <= c < width]


def labels_by_loops(values):
    """Whether the grey values of a mask stand for classes, pixel by pixel.

    At least half of the values below the greatest one, and of their pixels, lie beside no other
    marked value, nor are they within 3 % of 0 or the greatest and scattered.
    """
    most, odd = int(values.max()), {}
    for (row, column), value in np.ndenumerate(values):
        if 0 < value < most:
            others = around(values, row, column)
            beside = any(other not in (0, value) for other in others)
            near = value <= 0.03 * most or value >= most - 0.03 * most
            scattered = near and any(other != value for other in others)
            odd.setdefault(value, []).append(beside or scattered)
    graded = [2 * sum(found) > len(found) for found in odd.values()]
    pixels = [one for part in odd.values() for one in part]
    half = 2 * sum(graded) <= len(graded) and 2 * sum(pixels) <= len(pixels)
    return half or (most < 128 and len(odd) < 32)


def unsure_by_loops(values):
    """Whether 255 lies beside values below 32 alone that fill areas or lie within it."""
    small = [place for place, value in np.ndenumerate(values) if value not in (0, 255)]
    if values.max() != 255 or not small or max(values[place] for place in small) >= 32:
        return False
    near = [(values[place], around(values, *place)) for place in small]
    inside = [set(others) == {value} or 0 not in others for value, others in near]
    return 2 * sum(inside) > len(small)


SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9))
MASKS = arrays(np.uint8, SHAPES, elements=st.integers(0, 255))
FEW = arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 0, 0, 1, 2, 127, 128, 254, 255]))


def test_masks_mark_what_is_not_zero_or_the_upper_half_of_shades(tmp_path):
    @fuzzed(200)
    @given(MASKS | FEW, st.sampled_from(["L", "RGB", "LA", "RGBA"]))
    def read(values, mode):
        path = tmp_path / "m.png"
        Image.fromarray(values).convert(mode).save(path)
        most, unsure = values.max(), unsure_by_loops(values)
        expected = values > 0 if labels_by_loops(values) else values.astype(int) * 2 >= most
        mask, labels = result_of(read_mask, path), result_of(read_labels, path)
        assert mask is None if unsure else (mask == expected).all()
        assert (labels is None) == (len(set(values.ravel())) > 32 or unsure)
        assert labels is None or (labels == values).all()

    read()
