from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from datasets.rle import rle_encode
from datasets.samples import Sample, SampleIndex, join_categories, load_or_build
from tests.datasets.bad_files import warnings_about
from utils.errors import DataError, OutputError


def sample(image="Ring/train/a.png", object="Ring", category=0, name="scratch", marked=3):
    mask = np.zeros((4, 6), np.uint8)
    mask.flat[:marked] = 1
    return Sample(image, object, category, name, rle_encode(mask))


class CountingReader:
    """A data set of one text file per object: the number of its samples."""

    def __init__(self):
        self.read = []

    def source_files(self, root, object, key):
        return [root / f"{object}.txt"]

    def read_object(self, root, object, key):
        self.read.append(object)
        count = int((root / f"{object}.txt").read_text())
        return [sample(f"{object}/{i}.png", object, i) for i in range(count)], [f"{object}: a note"]


@pytest.fixture
def build(tmp_path):
    """Build an index of objects of a data set: (index, names of the objects that were read)."""
    root = tmp_path / "data"
    root.mkdir()
    for name, count in (("Ring", 2), ("Wood", 3)):
        (root / f"{name}.txt").write_text(str(count))

    def build(*objects, save=False, load=False, root=root):
        reader = CountingReader()
        keep = {"save": save, "load": load, "key": "MY.key"}
        cache = tmp_path / "cache"
        return load_or_build(reader, "toy", root, objects, cache, **keep), reader.read

    build.root, build.saved = root, tmp_path / "cache" / "toy"
    return build


def test_properties_of_a_sample():
    one = sample(marked=3)
    assert one.size == (4, 6) and one.area_share == pytest.approx(3 / 24)
    assert one.class_key == ("Ring", 0) and one.class_name == "Ring/scratch"
    assert one.decode_mask().tolist() == [[1, 1, 1, 0, 0, 0]] + [[0] * 6] * 3
    assert len({one, sample()}) == 1


def test_index_looks_up_classes_objects_and_images(tmp_path):
    samples = [sample(), sample("Wood/a.png", "Wood"), sample(category=1), sample("Ring/b.png")]
    index = SampleIndex(tmp_path, samples)
    assert len(index) == 4 and index.objects() == ["Ring", "Wood"]
    assert index.classes() == {("Ring", 0): [0, 3], ("Wood", 0): [1], ("Ring", 1): [2]}
    (tmp_path / "Wood").mkdir()
    index.image_path(samples[1]).touch()
    assert index.missing_images() == [tmp_path / "Ring/train/a.png", tmp_path / "Ring/b.png"]


def test_save_and_load_round_trip(tmp_path):
    samples = [sample(), sample(category=7, name="Kratzer ä")]
    index = SampleIndex(tmp_path, samples, ["a note"], "abc")
    index.save(tmp_path / "deep" / "index.json")
    assert SampleIndex.load(tmp_path / "deep" / "index.json") == index
    assert os.listdir(tmp_path / "deep") == ["index.json"]
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="vision_data_save_path"):
        index.save(tmp_path / "file" / "index.json")


DAMAGES = [b"", b"{", bytes(range(256)), b"[]", b'{"format": 0}', b'{"format": 2}']


@pytest.mark.parametrize("content", DAMAGES)
def test_a_broken_saved_index_is_rebuilt_with_a_warning(build, caplog, content):
    built, _ = build("Ring", save=True)
    path = build.saved / "Ring.json"
    whole = path.read_bytes()
    path.write_bytes(content)
    assert build("Ring", save=True, load=True) == (built, ["Ring"])
    (message,) = warnings_about(caplog, path)
    assert "no index of samples" in message and path.read_bytes() == whole


def test_a_saved_index_is_loaded_instead_of_read(build, caplog):
    with caplog.at_level(logging.INFO):
        built, read = build("Ring", "Wood", save=True, load=True)
    assert read == ["Ring", "Wood"] and "no saved index" in caplog.text
    assert built.objects() == ["Ring", "Wood"] and len(built) == 5
    assert built.notes == ["Ring: a note", "Wood: a note"]
    assert build("Ring", "Wood", load=True) == (built, [])
    assert build("Ring", "Wood") == (built, ["Ring", "Wood"])
    moved = build.root.rename(build.root.with_name("moved"))
    index, read = build("Ring", load=True, root=moved)
    assert index.image_path(index.samples[0]) == moved / "Ring" / "0.png" and read == []


def test_changed_sources_are_read_again_and_saved(build, caplog):
    build("Ring", "Wood", save=True)
    (build.root / "Ring.txt").write_text("12")
    with caplog.at_level(logging.INFO):
        index, read = build("Ring", "Wood", save=True, load=True)
    assert read == ["Ring"] and len(index) == 15 and "has changed" in caplog.text
    assert build("Ring", "Wood", load=True) == (index, [])
    os.utime(build.root / "Wood.txt", ns=(1, 2))
    assert build("Ring", "Wood", load=True) == (index, ["Wood"])


def test_an_object_without_samples_is_an_error(build):
    (build.root / "Wood.txt").write_text("0")
    with pytest.raises(DataError, match=r"Wood.*MY\.key.*no sample with a marked defect: .*a note"):
        build("Ring", "Wood")


def test_a_name_is_one_category_whatever_its_number_in_a_file():
    known = {}
    assert join_categories(known, "a", {4: "pit", 0: "scratch"}, [0, 4]) == {0: 0, 4: 4}
    assert join_categories(known, "b", {4: "scratch", 0: "pit"}, [0, 4]) == {0: 4, 4: 0}
    assert join_categories(known, "c", {1: "pit", 2: "pit"}, [1, 2]) == {1: 4, 2: 4}
    assert join_categories(known, "d", {4: "all", 0: "scratch"}, [0]) == {0: 0}, "not used"
    assert join_categories(known, "e", {0: "hole", 4: "scratch", 7: "pit"}, [0, 4]) == {0: 8, 4: 0}


@pytest.mark.parametrize("name", ["hole", "PIT "])
def test_a_clash_of_category_names_is_refused_with_both_files(name):
    with pytest.raises(DataError, match=f"b: category 4 is '{name}', but in a it is 'pit'"):
        join_categories({"pit": (4, "a")}, "b", {4: name}, [4])
