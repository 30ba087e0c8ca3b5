from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest

from datasets.rle import rle_encode
from datasets.samples import Sample, SampleIndex, fingerprint, load_or_build
from utils import warn_once as notices
from utils.errors import DataError, OutputError
from utils.warn_once import warn_once


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
        warn_once(logging.getLogger("reader"), f"{root}/{object} is odd")
        return [sample(f"{object}/{i}.png", object, i) for i in range(count)], [f"{object}: a note"]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    for object, count in (("Ring", 2), ("Wood", 3)):
        (tmp_path / "data" / f"{object}.txt").write_text(str(count))
    return tmp_path / "data"


def test_properties_of_a_sample():
    one = sample(marked=3)
    assert one.size == (4, 6) and one.area_share == pytest.approx(3 / 24)
    assert one.class_key == ("Ring", 0) and one.class_name == "Ring/scratch"
    assert one.decode_mask().tolist() == [[1, 1, 1, 0, 0, 0]] + [[0] * 6] * 3
    assert len({one, sample()}) == 1


def test_index_looks_up_classes_objects_and_images(tmp_path):
    samples = [
        sample(),
        sample("Wood/a.png", "Wood", 0),
        sample(category=1),
        sample("Ring/train/b.png"),
    ]
    index = SampleIndex(tmp_path, samples)
    assert len(index) == 4 and index.objects() == ["Ring", "Wood"]
    assert index.classes() == {("Ring", 0): [0, 3], ("Wood", 0): [1], ("Ring", 1): [2]}
    (tmp_path / "Wood").mkdir()
    (tmp_path / "Wood" / "a.png").touch()
    assert index.image_path(samples[1]) == tmp_path / "Wood" / "a.png"
    assert index.missing_images() == [
        tmp_path / "Ring" / "train" / "a.png",
        tmp_path / "Ring" / "train" / "b.png",
    ]


def test_save_and_load_round_trip(tmp_path):
    index = SampleIndex(
        tmp_path, [sample(), sample(category=7, name="Kratzer ä")], ["a note"], "abc"
    )
    index.save(tmp_path / "deep" / "index.json")
    assert SampleIndex.load(tmp_path / "deep" / "index.json") == index
    assert os.listdir(tmp_path / "deep") == ["index.json"]


def test_a_failed_save_keeps_the_old_file_and_names_the_setting(tmp_path):
    path = tmp_path / "index.json"
    SampleIndex(tmp_path, [sample()]).save(path)
    before = path.read_bytes()
    broken = SampleIndex(tmp_path, [sample(image=object())])
    with pytest.raises(TypeError):
        broken.save(path)
    assert path.read_bytes() == before
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"vision_data_save_path"):
        SampleIndex(tmp_path, [sample()]).save(tmp_path / "file" / "index.json")


def test_who_reads_the_old_file_while_it_is_replaced_reads_it_whole(tmp_path):
    path = tmp_path / "index.json"
    SampleIndex(tmp_path, [sample()]).save(path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        SampleIndex(tmp_path, [sample(), sample(category=1)]).save(path)
        assert reader.read() == before != path.read_bytes()


def damaged(change):
    def damage(path):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


DAMAGES = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "empty": lambda path: path.write_bytes(b""),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "a list": lambda path: path.write_text("[]"),
    "other format": damaged(lambda content: content.update(format=0)),
    "no notes": damaged(lambda content: content.pop("notes")),
    "extra key": damaged(lambda content: content["samples"][0].update(more=1)),
    "no mask": damaged(lambda content: content["samples"][0].pop("mask")),
    "text for a number": damaged(lambda content: content["samples"][0].update(category="0")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_index_files_are_errors_that_name_the_file(tmp_path, damage):
    path = tmp_path / "index.json"
    SampleIndex(tmp_path, [sample()]).save(path)
    DAMAGES[damage](path)
    with pytest.raises(DataError, match=r"index\.json"):
        SampleIndex.load(path)


def test_a_missing_index_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json"):
        SampleIndex.load(tmp_path / "gone.json")


def test_building_merges_objects_in_the_order_asked_for(data, tmp_path):
    index = load_or_build(
        CountingReader(), "toy", data, ["Wood", "Ring"], tmp_path / "cache", save=False, load=False
    )
    assert index.objects() == ["Wood", "Ring"] and len(index) == 5 and index.root == data
    assert index.notes == ["Wood: a note", "Ring: a note"]
    assert not (tmp_path / "cache").exists()


def test_a_saved_index_is_loaded_instead_of_read(data, tmp_path):
    cache = tmp_path / "cache"
    built = load_or_build(
        CountingReader(), "toy", data, ["Ring", "Wood"], cache, save=True, load=False
    )
    assert sorted(path.name for path in (cache / "toy").iterdir()) == ["Ring.json", "Wood.json"]
    reader = CountingReader()
    assert (
        load_or_build(reader, "toy", data, ["Ring", "Wood"], cache, save=False, load=True) == built
    )
    assert reader.read == []
    load_or_build(reader, "toy", data, ["Ring"], cache, save=False, load=False)
    load_or_build(reader, "other", data, ["Ring"], cache, save=False, load=True)
    assert reader.read == ["Ring", "Ring"]


def test_a_moved_data_set_is_loaded_with_its_new_root(data, tmp_path):
    load_or_build(
        CountingReader(), "toy", data, ["Ring"], tmp_path / "cache", save=True, load=False
    )
    moved = data.rename(tmp_path / "moved")
    index = load_or_build(
        CountingReader(), "toy", moved, ["Ring"], tmp_path / "cache", save=False, load=True
    )
    assert index.root == moved and index.image_path(index.samples[0]) == moved / "Ring" / "0.png"


def test_without_a_saved_index_it_is_built_with_a_message(data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        index = load_or_build(
            CountingReader(), "toy", data, ["Ring"], tmp_path / "cache", save=True, load=True
        )
    assert len(index) == 2 and "Ring.json" in caplog.text
    assert (tmp_path / "cache" / "toy" / "Ring.json").is_file()


def test_changed_sources_are_read_again_and_saved(data, tmp_path, caplog):
    cache = tmp_path / "cache"
    load_or_build(CountingReader(), "toy", data, ["Ring", "Wood"], cache, save=True, load=True)
    (data / "Ring.txt").write_text("12")
    reader = CountingReader()
    with caplog.at_level(logging.INFO):
        index = load_or_build(reader, "toy", data, ["Ring", "Wood"], cache, save=True, load=True)
    assert reader.read == ["Ring"] and len(index) == 15 and "changed" in caplog.text
    load_or_build(reader, "toy", data, ["Ring", "Wood"], cache, save=True, load=True)
    assert reader.read == ["Ring"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_saved_index_is_rebuilt_with_a_warning(data, tmp_path, caplog, damage):
    cache = tmp_path / "cache"
    built = load_or_build(CountingReader(), "toy", data, ["Ring"], cache, save=True, load=False)
    path = cache / "toy" / "Ring.json"
    whole = path.read_bytes()
    DAMAGES[damage](path)
    assert (
        load_or_build(CountingReader(), "toy", data, ["Ring"], cache, save=True, load=True) == built
    )
    assert [record.levelname for record in caplog.records if str(path) in record.getMessage()] == [
        "WARNING"
    ]
    assert path.read_bytes() == whole


def test_an_object_without_samples_is_an_error(data, tmp_path):
    (data / "Wood.txt").write_text("0")
    with pytest.raises(DataError, match=r"Wood.*MY\.key.*a note"):
        load_or_build(
            CountingReader(),
            "toy",
            data,
            ["Ring", "Wood"],
            tmp_path,
            save=False,
            load=False,
            key="MY.key",
        )


def test_fingerprint_follows_name_size_and_time_but_not_root_or_order(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for path in (first, second):
        path.write_text("x")
        os.utime(path, ns=(1, 1))
    both = fingerprint(tmp_path, [first, second])
    assert both == fingerprint(tmp_path, [second, first]) and len(both) == 64
    assert both != fingerprint(tmp_path, [first])
    seen = {fingerprint(tmp_path, [first]), fingerprint(tmp_path, [second])}
    os.utime(first, ns=(1, 2))
    seen.add(fingerprint(tmp_path, [first]))
    first.write_text("xy")
    os.utime(first, ns=(1, 1))
    seen.add(fingerprint(tmp_path, [first]))
    assert len(seen) == 4


def test_a_pipe_in_place_of_a_saved_index_is_not_waited_for(data, tmp_path):
    (tmp_path / "toy").mkdir()
    os.mkfifo(tmp_path / "toy" / "Ring.json")
    reader = CountingReader()
    load_or_build(reader, "toy", data, ["Ring"], tmp_path, save=False, load=True)
    assert reader.read == ["Ring"]


def test_a_saved_index_warns_as_the_reading_did(data, tmp_path, monkeypatch, caplog):
    """In a process of its own; also of what was warned of before the index was built."""
    reader = CountingReader()
    reader.read_object(data, "Ring", "")
    for _ in range(2):
        monkeypatch.setattr(notices, "_given", set())
        caplog.clear()
        load_or_build(reader, "set", data, ["Ring"], tmp_path / "cache", save=True, load=True)
        assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
            f"{data}/Ring is odd"
        ]
    assert reader.read == ["Ring", "Ring"]
