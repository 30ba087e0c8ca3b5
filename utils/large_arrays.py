"""Arrays as large as an image: in memory that is given back at once, or in a temporary file."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from typing import Any

import numpy as np

from utils.errors import OutputError

IN_MEMORY = 1 << 24  # pixels; larger maps lie in a temporary file


def pages(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array of zeros in pages of its own, which return to the system with it: what comes and goes strip by strip
    would leave the process's heap in pieces."""
    count = int(np.prod(shape))
    if not count:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, count * np.dtype(dtype).itemsize), dtype).reshape(shape)


def allocate(shape: tuple[int, int], dtype: Any) -> np.ndarray:
    """An empty array; in a temporary file, which goes with it, where it would fill the memory.

    Raises:
        OutputError: the folder for temporary files has no space left, or cannot be written.
    """
    if shape[0] * shape[1] <= IN_MEMORY:
        return np.empty(shape, dtype)
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    try:
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(
                file.fileno(), 0, size
            )  # not sparse: a map that finds the disk full kills the process
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise OutputError(
            f"a map of {shape[0]} x {shape[1]} pixels needs {size:,} bytes in the folder for temporary files "
            f"({error.strerror}); free space in {_temporary_folder()}, or set TMPDIR to a larger disk"
        ) from error


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:  # there is none that may be written
        return os.environ.get("TMPDIR", "/tmp")


def let_go(*arrays: np.ndarray) -> None:
    """Take the pages of arrays in temporary files out of memory; they return when they are asked for."""
    for array in arrays:
        if isinstance(array, np.memmap):
            array._mmap.madvise(mmap.MADV_DONTNEED)


def trim_heap() -> None:
    """Give the system back what lies free in the process's heap, where the C library is glibc: threads that fill and
    free blocks of many sizes leave it in pieces."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
