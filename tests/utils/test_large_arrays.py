from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import largest_file
from utils import large_arrays
from utils.errors import OutputError


def test_a_map_in_a_temporary_file_holds_what_is_written(monkeypatch):
    monkeypatch.setattr(large_arrays, "IN_MEMORY", 100)
    array = large_arrays.allocate((30, 40), np.uint16)
    values = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    assert isinstance(array, np.memmap) and not array.any()
    array[:] = values
    large_arrays.let_go(array, array[3:5], values)
    np.testing.assert_array_equal(array, values)
    assert not isinstance(large_arrays.allocate((10, 10), np.uint16), np.memmap)


def test_a_map_for_which_there_is_no_space_is_refused_when_it_is_made(monkeypatch):
    """Not when it is written, where the system would kill the process."""
    monkeypatch.setattr(large_arrays, "IN_MEMORY", 100)
    words = "a map of 300 x 400 pixels needs 480,000 bytes .*TMPDIR"
    with largest_file(100_000), pytest.raises(OutputError, match=words):
        large_arrays.allocate((300, 400), np.float32)
