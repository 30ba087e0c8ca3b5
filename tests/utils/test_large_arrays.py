from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils import large_arrays
from utils.errors import OutputError

REPO = Path(__file__).parents[2]
FULL = """
import resource
from utils import large_arrays
large_arrays.IN_MEMORY = 100
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
large_arrays.allocate((100, 200), "float32")[:] = 1
large_arrays.allocate((300, 400), "float32")
"""


def test_a_map_for_which_there_is_no_space_is_refused_when_it_is_made():
    """Not when it is written, where the system would kill the process."""
    done = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, cwd=REPO)
    error = done.stderr.splitlines()[-1]
    assert "OutputError: a map of 300 x 400 pixels needs 480,000 bytes" in error
    assert "TMPDIR" in error


def test_a_map_in_a_temporary_file_holds_what_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(large_arrays, "IN_MEMORY", 100)
    array = large_arrays.allocate((30, 40), np.uint16)
    values = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    assert isinstance(array, np.memmap) and not array.any()
    array[:] = values
    large_arrays.let_go(array, array[3:5], values)
    np.testing.assert_array_equal(array, values)
    assert not isinstance(large_arrays.allocate((10, 10), np.uint16), np.memmap)
    monkeypatch.setattr(large_arrays.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match=r"No such file .*free space in .*gone, or set TMPDIR"):
        large_arrays.allocate((30, 40), np.uint8)
