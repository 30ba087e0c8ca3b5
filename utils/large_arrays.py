"""Arrays as large as an image: memory that returns to the system at once, or a temporary file."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from typing import Any

import numpy as np

from utils.errors import OutputError

IN_MEMORY = 1 << 24  # pixels; larger arrays lie in a temporary file


def pages(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of zeros in memory pages of its own, which return to the system with it: strips
    that come and go would fragment the heap."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(mmap.mmap(-1, size) if size else b"", dtype).reshape(shape)


def allocate(shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """An empty array; a large one lies in a temporary file that vanishes with it. OutputError:
    there is no space for it."""
    if shape[0] * shape[1] <= IN_MEMORY:
        return np.empty(shape, dtype)
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile() as file:
            # a sparse file on a full disk would kill the process when it is written
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        need = f"a map of {shape[0]} x {shape[1]} pixels needs {size:,} bytes in a temporary file"
        folder = tempfile.tempdir or "/tmp"
        remedy = f"free space in {folder}, or set TMPDIR to a larger disk"
        raise OutputError(f"{need} ({error.strerror}); {remedy}") from error


def let_go(*arrays: np.ndarray) -> None:
    """Drop the pages of arrays in temporary files from memory; they are read again when used."""
    for array in arrays:
        base = array if isinstance(array, np.memmap) else None
        while isinstance(base, np.ndarray):
            base = base.base
        if base is not None:
            base.madvise(mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Return free memory of a fragmented heap to the system, where the C library is glibc."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
