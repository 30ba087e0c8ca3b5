"""Open domain segmentation of odd and broken files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.bad_files import saved, truncated, with_orientation
from tests.helpers import SIZE, surface
from tests.tools.open_domain_data import QUERIES, objects, run, write_object, write_typed, written
from tools.open_domain import output_names
from utils.errors import DataError, UserError

TWO = {"DATASET__open_domain_test_object": ["steel", "wood"]}


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def test_odd_names_of_queries_and_types(data, tmp_path):
    kinds = ("a b", "ü\n漢", os.fsdecode(b"\xff"), "k" * 250)
    names = ["ü 漢字.png", "a\nb.png", os.fsdecode(b"\xff\xfe.png"), "x" * 251 + ".png"]
    names += ["%s{}'\".png", "-rf.png"]
    write_typed(data, queries=dict.fromkeys(names, (40, 60)))
    support = data / "steel" / "support"
    for kind in kinds:
        shutil.copytree(support / "line", support / kind)
    shutil.rmtree(support / "line")
    shutil.rmtree(support / "spot")
    folder = run(data, tmp_path)
    assert output_names([Path("a.png"), Path("b.jpg")]) == ["a", "b"]
    assert output_names([Path("a.png"), Path("a.jpg")]) == ["a.png", "a.jpg"]
    assert max(len(os.fsencode(p.name)) for p in folder.rglob("*")) <= 255
    for kind in kinds[:-1]:
        stems = {path.stem for path in (folder / "steel" / "masks" / kind).iterdir()}
        assert len(stems) == len(names) and {Path(n).stem for n in names if len(n) < 99} <= stems
    assert len(list((folder / "steel").glob("support_*.safetensors"))) == len(kinds)
    assert list(objects(folder)) == [f"steel/{kind}" for kind in sorted(kinds)]


def test_an_unreadable_query_is_left_out_with_a_warning(data, tmp_path, capsys):
    """Be it broken, over DATASET.max_pixels, or of a label of another size."""
    write_object(data, "steel", QUERIES | {"large.png": (140, 140)})
    folder = data / "steel" / "query" / "image"
    (folder / "two.jpg").write_bytes((folder / "two.jpg").read_bytes()[:100])
    done = run(data, tmp_path, DATASET__max_pixels=19_000)
    entry, out = objects(done)["steel"], capsys.readouterr().out
    assert entry["queries"] == 2 and len(entry["unreadable"]) == 2
    for name, fault in zip(("large.png", "two.jpg"), entry["unreadable"], strict=True):
        assert name in fault and out.count(f"left out: {folder / name}") == 1
    assert "140 x 140 pixels" in entry["unreadable"][0] and "19000" in entry["unreadable"][0]
    assert {path.name for path in (done / "steel" / "masks").iterdir()} == {"one.png", "three.png"}


def test_an_object_that_fails_leaves_the_others_whole(data, tmp_path):
    for number, name in enumerate(("steel", "wood")):
        write_object(data, name, labels=("one.png",), seed=number)
    for path in (data / "wood" / "query" / "image").iterdir():
        path.write_bytes(b"")
    failure = "wood: no query could be read: .*one.png"
    with pytest.raises(DataError, match=rf"{failure}.*\(the results of the rest are in .*run\)"):
        run(data, tmp_path, **TWO)
    folder = tmp_path / "log" / "run"
    assert {p.stem for p in (folder / "steel" / "masks").iterdir()} == {"one", "two", "three"}
    assert objects(folder)["steel"]["iou"]["prior"] > 0.05
    assert len(objects(folder)["wood"]["unreadable"]) == 3
    assert (folder / "report.html").is_file() and (folder / "run.json").is_file()


def test_a_file_that_cannot_be_written_leaves_those_before_it(data, tmp_path, monkeypatch):
    """The disk refuses the second mask of an object; the next object is segmented."""
    before = os.replace

    def refuse(source, target):
        if "masks" in str(target) and Path(target).stem == "three":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        before(source, target)

    write_object(data, "steel", labels=("one.png",))
    write_object(data, "wood", {"a.png": SIZE})
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"No space left on device"):
        run(data, tmp_path, **TWO)
    folder = tmp_path / "log" / "run"
    assert {path.name for path in (folder / "steel" / "masks").iterdir()} == {"one.png"}
    assert [path.name for path in (folder / "wood" / "masks").iterdir()] == ["a.png"]
    assert [objects(folder)[name]["queries"] for name in ("steel", "wood")] == [1, 1]
    assert "three.png" in json.loads((folder / "run.json").read_text())["failed"][0]


def test_a_bad_support_is_an_error_before_anything_is_written(data, tmp_path):
    write_object(data, "steel")
    path = data / "steel" / "support" / "mask" / "s.png"
    truncated(path)
    with pytest.raises(DataError, match=str(path)):
        run(data, tmp_path)
    assert not (tmp_path / "log").exists()


def test_extreme_shapes_and_black_masks_are_queries_and_supports(data, tmp_path, capsys):
    sizes = {"a.png": (1, 1), "b.png": (3, 5000)}
    write_object(data, "steel", {"c.png": SIZE})
    for name, size in sizes.items():
        for part in ("query", "support"):
            saved(data / "steel" / part / "image" / name, surface(size, np.random.default_rng(0)))
    for value in (255, 0):
        for name, size in (sizes if value else sizes | {"s.png": SIZE}).items():
            saved(data / "steel" / "support" / "mask" / name, np.full(size, value, np.uint8))
        done = run(data, tmp_path, DATASET__crop_size=256, RUN_NAME=str(value))
        for name, size in sizes.items():
            for kind in ("masks", "scores", "overlays"):
                assert written(done / "steel", kind, name[0]).shape[:2] == size
        assert ("no support pixel is marked" in capsys.readouterr().out) == (value == 0)


def test_masks_of_turned_images_may_be_drawn_on_any_frame(data, tmp_path):
    """Support and query have EXIF orientation 8; a mask of the stored frame and one that is turned
    itself (6) give the figures of upright images."""
    for name in ("plain", "turned"):
        write_object(data / name, "steel", {"one.png": SIZE}, labels=("one.png",))
    root = data / "turned" / "steel"
    for image in (root / "support/image/s.png", root / "query/image/one.png"):
        with_orientation(image, np.array(Image.open(image)), 8)
    label = root / "query/true_label/one_mask.png"
    with_orientation(label, np.rot90(np.array(Image.open(label)), 2), 6)
    folders = [run(data / name, tmp_path, RUN_NAME=name) for name in ("plain", "turned")]
    assert objects(folders[0]) == objects(folders[1])
    assert np.array_equal(*(written(folder / "steel", "scores", "one") for folder in folders))
