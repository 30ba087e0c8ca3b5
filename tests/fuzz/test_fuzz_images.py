from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from datasets import large_images as strips
from datasets.images import exif_orientation, image_size, limit_pixels, most_pixels, read_image
from datasets.masks import read_labels, read_mask
from datasets.orientation import turned_back
from tests.fuzz.guards import bounded_memory, bounded_time, fuzzed, writes_only
from tests.fuzz.images import broken_files
from utils.errors import DataError

LIMIT = 4_000_000  # pixels
NAMES = st.sampled_from(["a.png", "a.jpg", "a.TIF", "a.bmp"])


@pytest.fixture(autouse=True)
def small_images():
    before = most_pixels()
    limit_pixels(LIMIT)
    yield
    limit_pixels(before)


def result_of(call, path, *args):
    """What is returned; None where the file is refused by its name."""
    try:
        return call(path, *args)
    except DataError as error:
        assert path.name in str(error)
        assert len(str(error)) < 1500
        return None


def read_in_strips(path):
    """All rows, 5 at a time, as a large image is read."""
    image = strips.ImageStrips(path)
    rows = [image.strip(top, min(top + 5, image.size[0])) for top in range(0, image.size[0], 5)]
    return np.concatenate(rows)


@pytest.fixture
def always_in_strips(monkeypatch):
    monkeypatch.setattr(strips, "AT_ONCE", 0)


@pytest.mark.filterwarnings("ignore")  # of Pillow, about odd tags
def test_broken_images_are_read_or_refused_by_name(tmp_path, always_in_strips):
    @fuzzed(350)
    @given(broken_files(), NAMES)
    def read(content, name):
        path = tmp_path / name
        path.write_bytes(content)
        with bounded_time(), writes_only(tmp_path / "nowhere"):
            size = result_of(image_size, path)
            found = [result_of(call, path) for call in (read_image, read_mask, read_labels)]
            turned = result_of(exif_orientation, path)
            in_strips = result_of(read_in_strips, path)
        if size is None:
            assert found == [None] * 3 and in_strips is None
        assert turned is None or turned in range(1, 9)
        for pixels in (found[0], in_strips):
            assert pixels is None or (pixels.shape, pixels.dtype) == ((*size, 3), np.uint8)
        assert found[1] is None or (found[1].shape == size and set(np.unique(found[1])) <= {0, 1})
        assert found[2] is None or (found[2].shape == size and found[2].dtype.kind in "iu")

    with bounded_memory():
        read()


MASKS = arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 255)
)
FEW = arrays(np.uint8, (5, 7), elements=st.sampled_from([0, 0, 0, 1, 2, 127, 128, 254, 255]))


def around(values, row, column):
    """Values above, below, left and right of a pixel, as far as they are inside."""
    near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [
        int(values[r, c]) for r, c in near if 0 <= r < values.shape[0] and 0 <= c < values.shape[1]
    ]


def labels_by_loops(values):
    """Whether the grey values of a mask stand for classes, pixel by pixel: at least half of the values below the
    greatest one, and of their pixels, lie beside no other marked value, nor are they within 3 % of 0 or the greatest
    and scattered."""
    most, odd = int(values.max()), {}
    for (row, column), value in np.ndenumerate(values):
        if 0 < value < most:
            others = around(values, row, column)
            beside = any(other not in (0, value) for other in others)
            scattered = (value <= 0.03 * most or value >= most - 0.03 * most) and any(
                o != value for o in others
            )
            odd.setdefault(value, []).append(beside or scattered)
    graded = [2 * sum(found) > len(found) for found in odd.values()]
    found = [one for part in odd.values() for one in part]
    return (most < 128 and len(odd) < 32) or (
        2 * sum(graded) <= len(graded) and 2 * sum(found) <= len(found)
    )


def unsure_by_loops(values):
    """Whether 255 lies beside values below 32 alone that mostly fill areas or lie within it."""
    small = [place for place, value in np.ndenumerate(values) if value not in (0, 255)]
    if values.max() != 255 or not small or max(values[place] for place in small) >= 32:
        return False
    inside = [
        all(o == values[p] for o in around(values, *p)) or 0 not in around(values, *p)
        for p in small
    ]
    return 2 * sum(inside) > len(small)


def test_masks_mark_what_is_not_zero_or_the_upper_half_of_shades(tmp_path):
    @fuzzed(250)
    @given(
        MASKS | FEW,
        st.sampled_from(["L", "RGB", "LA", "RGBA"]),
        st.sampled_from(["png", "tif", "bmp"]),
    )
    def read(values, mode, suffix):
        path = tmp_path / f"m.{suffix}"
        Image.fromarray(values).convert(mode if suffix != "bmp" else "RGB").save(path)
        most, unsure = values.max(), unsure_by_loops(values)
        expected = values > 0 if labels_by_loops(values) else values.astype(int) * 2 >= most
        mask, labels = result_of(read_mask, path), result_of(read_labels, path)
        assert mask is None if unsure else (mask == expected).all()
        assert (labels is None) == (len(set(values.ravel())) > 32 or unsure)
        assert labels is None or (labels == values).all()

    read()


def test_masks_of_the_displayed_size_are_turned_to_the_stored_pixels(tmp_path):
    """Pillow's own turning is the way there."""

    @fuzzed(60)
    @given(
        st.integers(1, 8),
        st.integers(1, 9),
        st.integers(10, 19),
        st.integers(0, 2**32 - 1),
        st.booleans(),
    )
    def turn(orientation, height, width, seed, swap):
        height, width = (width, height) if swap else (height, width)
        marks = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8)
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(marks * 255).save(tmp_path / "i.png", exif=exif)
        with Image.open(tmp_path / "i.png") as image:
            shown = (np.array(ImageOps.exif_transpose(image)) > 0).astype(np.uint8)
        if shown.shape != marks.shape:
            np.testing.assert_array_equal(turned_back(shown, tmp_path / "i.png"), marks)
        np.testing.assert_array_equal(turned_back(marks, tmp_path / "i.png"), marks)

    turn()
