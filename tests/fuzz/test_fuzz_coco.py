from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datasets.images import limit_pixels
from datasets.readers import vision_v1
from datasets.samples import load_or_build
from tests.datasets.bad_files import saved, with_orientation
from tests.fuzz.coco import annotations, contents
from tests.fuzz.guards import bounded_memory, bounded_time, fuzzed, writes_only
from tests.fuzz.trees import changed
from tests.helpers import write_product
from utils.errors import DataError


@pytest.fixture(autouse=True)
def small_images():
    limit_pixels(4_000_000)
    yield
    limit_pixels(500_000_000)


def test_odd_annotations_are_read_or_refused_by_name(tmp_path):
    folder, pixels = tmp_path / "Plate" / "train", np.zeros((12, 16), np.uint8)
    for name in ("a.png", "c.png"):
        saved(folder / name, pixels)
    with_orientation(folder / "b.png", pixels.T.copy(), 6)

    def check(sample):
        assert sample.image.startswith("Plate/train/") and ".." not in sample.image.split("/")
        assert sample.decode_mask().shape == sample.size and sample.decode_mask().any()
        if sample.image.endswith(("/a.png", "/b.png", "/c.png")):
            with Image.open(tmp_path / sample.image) as image:
                assert image.size == sample.size[::-1]

    @fuzzed(200)
    @given(contents(annotations()))
    def read(content):
        (folder / vision_v1.ANNOTATIONS).write_bytes(content)
        with bounded_time(), writes_only(tmp_path / "nowhere"):
            for call in (vision_v1.read_object, vision_v1.normal_images):
                try:
                    found = call(tmp_path, "Plate")
                except DataError as error:
                    assert vision_v1.ANNOTATIONS in str(error) and len(str(error)) < 1500
                    continue
                for item in found[0] if call is vision_v1.read_object else ():
                    check(item)

    with bounded_memory():
        read()


def test_a_saved_index_is_read_or_built_anew(tmp_path):
    write_product(tmp_path, "Plate", {"spot": 2}, size=(80, 90))

    def index(load):
        keep = {"save": not load, "load": load}
        names, cache = ("VISION_V1", tmp_path, ["Plate"]), tmp_path / "saved"
        return load_or_build(vision_v1, *names, cache, **keep).samples

    expected = index(load=False)
    path = tmp_path / "saved" / "VISION_V1" / "Plate.json"
    whole = json.loads(path.read_text())

    @fuzzed(80)
    @given(changed(whole).map(lambda tree: json.dumps(tree).encode()) | st.binary(max_size=50))
    def read(content):
        path.write_bytes(content)
        samples = []
        with bounded_time(), contextlib.suppress(DataError):
            samples = index(load=True)
        try:
            same = json.loads(content)["fingerprint"] == whole["fingerprint"]
        except (ValueError, KeyError, TypeError):
            same = False
        assert same or samples == expected
        for sample in samples:
            assert sample.decode_mask().shape == sample.size and 0 <= sample.area_share <= 1

    read()
