"""Invented inputs: trees of JSON and YAML, annotation and image files, broken in many ways."""

from __future__ import annotations

import copy
import io
import json
import operator
import os
import re
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.rle import rle_of_annotation

TIMES = int(os.environ.get("SOFS_FUZZ", "1"))  # times as many inputs; other ones from 2 on
GROWTH = 400 << 20  # bytes of memory, for all inputs of a test
SIDES = (13, 17)
NAMES = ["", ".", "..", "/etc/passwd", "a/../../b", "./a.png", "a.png\0", "a\nb.png", "\ud800.png"]
NAMES += ["ü 漢.png", "x" * 256, "C:\\a", "~"]
NUMBERS = [0, 1, -1, 2, 16, 17, 255, 2**31, 2**63, 10**30, 10**400, -0.0, 0.5, 8.5, 1e308, 1e-320]
NUMBERS += [float("nan"), float("inf"), float("-inf")]
OTHERS = [None, True, [], {}, [[]], [{}], {"a": {}}, [[1.0]], [None], "1", "true", "[1, 2]"]
ODD = st.one_of(
    st.sampled_from(NAMES + NUMBERS + OTHERS),
    st.lists(st.lists(st.integers(-9, 40), max_size=9), max_size=3),
    st.text(max_size=9),
).map(copy.deepcopy)


def fuzzed(count: int):
    """Decorates a `given` test, which then tries `count` inputs, the same in each run.

    SOFS_FUZZ=N tries N times as many, new ones.
    """
    options = {"derandomize": TIMES == 1, "database": None, "deadline": 30_000}
    return settings(max_examples=count * TIMES, suppress_health_check=list(HealthCheck), **options)


@contextmanager
def bounded_memory():
    """The block raises the most memory that this process ever had by at most GROWTH."""

    def most():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    before = most()
    yield
    assert most() - before < GROWTH


def _places(tree, path=()):
    yield path
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _places(value, (*path, key))


@st.composite
def changed(draw, tree):
    """A copy of a tree with up to four values replaced or taken out."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(0, 4))):
        if places := [path for path in _places(tree) if path]:
            *path, last = draw(st.sampled_from(places))
            parent = reduce(operator.getitem, path, tree)
            if draw(st.integers(0, 3)):
                parent[last] = draw(ODD)
            else:
                del parent[last]
    return tree


@st.composite
def spoilt(draw, content, parts=()):
    """Bytes, some of which are replaced, taken out, put in or repeated."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(content)) | st.integers(0, min(99, len(content))))
        length = draw(st.sampled_from([0, 1, 2, 4, 4, 40]))
        part = content[start : start + length]
        new = [b"", b"[", b'"', b"\0", b"9", b"[" * 5000, bytes(part) * 3, *parts]
        content[start : start + length] = draw(st.sampled_from(new) | st.binary(max_size=4))
    return bytes(content[: draw(st.integers(0, len(content)) | st.just(len(content)))])


def annotations(size=(12, 16), names=("a.png", "b.png", "c.png", "gone.png")):
    """COCO of some images, with polygons and both forms of run lengths."""
    height, width = size
    runs = {"size": [height, width], "counts": [height + 2, 5, height * width - height - 7]}
    shapes = [[[2, 2, 8, 2, 8, 8, 2, 8]], [[1.5, 1, 4, 1], [0, 0]]]
    shapes += [runs, rle_of_annotation(runs, size)]
    listed = {"height": height, "width": width}
    return {
        "images": [{"id": i, "file_name": name} | listed for i, name in enumerate(names)],
        "categories": [{"id": 0, "name": "spot"}, {"id": 7, "name": "line"}],
        "annotations": [
            {"id": i, "image_id": i % len(names), "category_id": 7 * (i % 2)}
            | {"segmentation": shapes[i % 4]}
            for i in range(6)
        ],
    }


def contents(tree):
    """Content of an annotation file: a changed tree, or a spoilt text."""
    odd = changed(tree).map(lambda tree: json.dumps(tree).encode())
    return st.one_of(odd, odd, spoilt(json.dumps(tree).encode()))


def _encoded(image, form, **options):
    file = io.BytesIO()
    image.copy().save(file, form, **options)  # a copy: encoders leave settings behind in an image
    return file.getvalue()


def _images():
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (*SIDES, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, SIDES, dtype=np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    modes = {"PNG": "1 LA P RGB", "JPEG": "L RGB CMYK", "BMP": "1 P RGB", "TIFF": "1 RGB CMYK LAB"}
    files = [
        _encoded(colour.convert(m), form) for form, some in modes.items() for m in some.split()
    ]
    files += [_encoded(colour, form, exif=exif) for form in ("PNG", "JPEG", "TIFF")]
    pages = {"save_all": True, "append_images": [colour.rotate(90)]}
    files += [_encoded(colour, form, **pages) for form in ("PNG", "TIFF", "MPO", "GIF")]
    packed = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    files += [_encoded(colour, "TIFF", compression=name) for name in packed]
    files += [_encoded(deep, "PNG"), _encoded(deep.convert("F"), "TIFF")]
    return [*files, *(_encoded(colour, form) for form in ("WEBP", "PPM", "JPEG2000")), b"no image"]


_NUMBERS = [0, 1, 127, 256, 5000, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1]
_HEADER = [n.to_bytes(4, order) for n in _NUMBERS for order in ("little", "big")]
# Content of image files, most often broken: cut, spliced, with odd numbers in their headers
broken_files = st.sampled_from(_images()).flatmap(lambda whole: spoilt(whole, _HEADER))
