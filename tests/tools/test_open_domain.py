from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datasets.images import read_image
from tests.tools.open_domain_data import QUERIES, as_levels, config, run, write_object, written
from tools.open_domain import output_names
from tools.predictor import Predictor
from tools.tester import run_test
from utils.errors import DataError, UserError


def test_mask_score_and_overlay_of_each_query_at_its_size(tmp_path, capsys):
    write_object(tmp_path / "data", "steel")
    folder = run(tmp_path / "data", tmp_path)
    for file, size in QUERIES.items():
        image = read_image(tmp_path / "data" / "steel" / "query" / "image" / file)
        mask, score, overlay = (
            written(folder / "steel", kind, Path(file).stem)
            for kind in ("masks", "scores", "overlays")
        )
        assert (mask.shape, mask.dtype) == (size, np.uint8) and set(np.unique(mask)) == {0, 255}
        assert (score.shape, score.dtype) == (size, np.uint16)
        assert (overlay.shape, overlay.dtype) == ((*size, 3), np.uint8)
        assert np.array_equal(mask > 0, score.astype(np.float64) / 65535 > 0.5)
        assert np.array_equal(overlay[mask == 0][:, ::-1], image[mask == 0])
        assert not np.array_equal(overlay[mask > 0][:, ::-1], image[mask > 0])
    report = json.loads((folder / "metrics.json").read_text())
    assert report["objects"] == {
        "steel": {"queries": 3, "labelled": 0, "iou": {}, "unreadable": []}
    }
    assert report["shot"] == [1]
    assert "'prior'" in capsys.readouterr().out, (
        "a notice: no checkpoint, so the method without training"
    )
    assert (folder / "test.log").is_file() and (folder / "config.yaml").is_file()


def test_iou_is_that_of_the_masks_and_the_true_labels(tmp_path):
    """Pooled over the labelled queries alone; several objects, each on its own."""
    labels = ("one.png", "two.jpg")
    truth = {
        n: write_object(tmp_path / "data", n, labels=labels, seed=s)
        for s, n in enumerate(("steel", "wood"))
    }
    folder = run(tmp_path / "data", tmp_path, DATASET__open_domain_test_object=["wood", "steel"])
    report = json.loads((folder / "metrics.json").read_text())["objects"]
    assert list(report) == ["wood", "steel"]
    for name, masks in truth.items():
        pairs = [(written(folder / name, "masks", Path(f).stem) > 0, masks[f]) for f in labels]
        iou = sum((p & t).sum() for p, t in pairs) / sum((p | t).sum() for p, t in pairs)
        assert report[name]["iou"] == {"prior": pytest.approx(iou)}
        assert iou > 0.05
    assert report["wood"]["iou"] != report["steel"]["iou"]


def test_one_of_several_categories(tmp_path):
    """The category chooses the pixels of the support mask, one number for each object."""
    write_object(tmp_path / "data", "steel")
    path = tmp_path / "data" / "steel" / "support" / "mask" / "s.png"
    mask = np.array(Image.open(path)) // 255
    mask[:12, :12] = 2
    Image.fromarray(mask).save(path)
    several = {"DATASET__open_domain_object_category_num": [2]}
    first, second = (
        run(
            tmp_path / "data",
            tmp_path,
            RUN_NAME=str(c),
            DATASET__open_domain_specific_defect_category=[c],
            **several,
        )
        for c in (0, 1)
    )
    scores = [written(f / "steel", "scores", "one") for f in (first, second)]
    assert not np.array_equal(*scores)


def test_black_support_masks_leave_what_looks_unlike_the_supports(tmp_path, capsys):
    """The answer of an image that is given without a mask."""
    write_object(tmp_path / "data", "steel")
    folder = tmp_path / "data" / "steel"
    Image.new("L", (128, 96)).save(folder / "support" / "mask" / "s.png")
    cfg = config(tmp_path / "data", tmp_path, TEST__threshold=0.2)
    answers = run_test(cfg, "") / "steel"
    assert "no support pixel is marked" in capsys.readouterr().out
    predictor = Predictor.from_config(cfg)
    predictor.set_support([folder / "support" / "image" / "s.png"], [None])
    for file in QUERIES:
        score = predictor.predict(folder / "query" / "image" / file).score
        assert np.array_equal(written(answers, "scores", Path(file).stem), as_levels(score))
        assert np.array_equal(written(answers, "masks", Path(file).stem) > 0, score > 0.2)
        assert score.max() > 0.1


def test_queries_that_differ_by_the_suffix_alone_keep_their_own_files(tmp_path):
    write_object(
        tmp_path / "data", "steel", {"a.png": (96, 128), "a.jpg": (40, 50), "b.png": (30, 30)}
    )
    folder = run(tmp_path / "data", tmp_path) / "steel"
    assert written(folder, "masks", "a.png").shape == (96, 128)
    assert written(folder, "masks", "a.jpg").shape == (40, 50)
    for kind in ("masks", "scores", "overlays"):
        assert len(list((folder / kind).iterdir())) == 3


def test_names_of_outputs_never_collide():
    assert output_names([Path("a.png"), Path("b.jpg")]) == ["a", "b"]
    for names in (["a.png", "a.jpg"], ["a.jpg", "a.jpg.png", "a.png"]):
        assert len(set(output_names([Path(n) for n in names]))) == len(names)


def test_an_unreadable_query_is_reported_and_the_rest_goes_on(tmp_path, capsys):
    write_object(tmp_path / "data", "steel", labels=("one.png",))
    path = tmp_path / "data" / "steel" / "query" / "image" / "two.jpg"
    path.write_bytes(path.read_bytes()[:100])
    folder = run(tmp_path / "data", tmp_path)
    report = json.loads((folder / "metrics.json").read_text())["objects"]["steel"]
    assert (
        report["queries"] == 2
        and len(report["unreadable"]) == 1
        and str(path) in report["unreadable"][0]
    )
    assert capsys.readouterr().out.count(str(path)) == 1
    assert {p.name for p in (folder / "steel" / "masks").iterdir()} == {"one.png", "three.png"}


def test_no_readable_query_is_an_error_and_leaves_no_figures(tmp_path):
    write_object(tmp_path / "data", "steel", {"one.png": (96, 128)})
    (tmp_path / "data" / "steel" / "query" / "image" / "one.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"steel: no query could be read.*one\.png"):
        run(tmp_path / "data", tmp_path)
    left = {path.name for path in (tmp_path / "log" / "run").rglob("*") if path.is_file()}
    assert left == {"config.yaml", "test.log", "support.safetensors"}


def test_the_true_label_of_a_category_is_what_of_that_value(tmp_path):
    """Supports and true labels hold two categories; each is measured against its own pixels."""
    write_object(tmp_path / "data", "steel", labels=QUERIES)
    several = {"DATASET__open_domain_object_category_num": [2]}
    for path in (tmp_path / "data" / "steel").rglob("*.png"):
        if path.parent.name in ("mask", "true_label"):
            mask = np.array(Image.open(path)) // 255
            mask[:12, :12] = 2
            Image.fromarray(mask).save(path)
    for category in (0, 1):
        chosen = {
            "DATASET__open_domain_specific_defect_category": [category],
            "RUN_NAME": str(category),
        }
        folder = run(tmp_path / "data", tmp_path, **several, **chosen)
        entry = json.loads((folder / "metrics.json").read_text())["objects"]["steel"]
        true, found = [], []
        for name in QUERIES:
            path = (
                tmp_path / "data" / "steel" / "query" / "true_label" / f"{Path(name).stem}_mask.png"
            )
            true.append(np.array(Image.open(path)) == category + 1)
            found.append(written(folder / "steel", "masks", Path(name).stem) > 0)
        pairs = list(zip(found, true, strict=True))
        iou = sum((p & t).sum() for p, t in pairs) / sum((p | t).sum() for p, t in pairs)
        assert entry["iou"]["prior"] == pytest.approx(iou) and entry["labelled"] == len(QUERIES)
    label = tmp_path / "data" / "steel" / "query" / "true_label" / "one_mask.png"
    Image.fromarray(np.full((96, 128), 3, np.uint8)).save(label)
    folder = run(tmp_path / "data", tmp_path, RUN_NAME="bad", **several)
    (fault,) = json.loads((folder / "metrics.json").read_text())["objects"]["steel"]["unreadable"]
    assert "one_mask.png: value 3" in fault and "open_domain_object_category_num is 2" in fault


def test_an_object_that_fails_takes_nothing_from_the_others(tmp_path):
    """Its fault ends the job, with the masks, the figures and the report of the others."""
    for number, name in enumerate(("steel", "wood")):
        write_object(tmp_path / "data", name, labels=("one.png",), seed=number)
    for path in (tmp_path / "data" / "wood" / "query" / "image").iterdir():
        path.write_bytes(b"")
    objects = {"DATASET__open_domain_test_object": ["steel", "wood"]}
    with pytest.raises(
        DataError, match=r"wood: no query could be read.*\(the results of the rest are in .*run\)"
    ):
        run(tmp_path / "data", tmp_path, **objects)
    folder = tmp_path / "log" / "run"
    assert {p.stem for p in (folder / "steel" / "masks").iterdir()} == {"one", "two", "three"}
    report = json.loads((folder / "metrics.json").read_text())["objects"]
    assert report["steel"]["iou"]["prior"] > 0.05 and len(report["wood"]["unreadable"]) == 3
    assert (folder / "report.html").is_file() and (folder / "run.json").is_file()


@pytest.mark.parametrize("late", ["masks", "metrics.json", "report.html"])
def test_a_file_that_cannot_be_written_takes_nothing_from_those_before_it(
    tmp_path, monkeypatch, late
):
    """The disk refuses the second mask, the figures or the report; what is found on another object is recorded."""
    write_object(tmp_path / "data", "steel", labels=("one.png",))
    before = os.replace

    def refuse(source, target):
        if late in str(target) and (late != "masks" or Path(target).stem == "three"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        before(source, target)

    write_object(tmp_path / "data", "wood")
    for path in (tmp_path / "data" / "wood" / "query" / "image").iterdir():
        path.rename(path.with_stem(f"wood_{path.stem}"))
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"No space left on device"):
        run(tmp_path / "data", tmp_path, DATASET__open_domain_test_object=["steel", "wood"])
    folder = tmp_path / "log" / "run"
    masks = {p.name for p in (folder / "steel" / "masks").iterdir()}
    assert masks == {"one.png"} | (set() if late == "masks" else {"three.png", "two.png"}), (
        "and no part of one"
    )
    assert len(list((folder / "wood" / "masks").iterdir())) == 3
    if late == "metrics.json":
        assert not (folder / "metrics.json").exists()
        return
    report = json.loads((folder / "metrics.json").read_text())["objects"]
    assert (
        report["steel"]["queries"] == (1 if late == "masks" else 3)
        and report["wood"]["queries"] == 3
    )
    if late == "masks":
        assert "three.png" in json.loads((folder / "run.json").read_text())["failed"][0]


def test_a_second_run_of_the_same_name_leaves_its_own_files_alone(tmp_path):
    """Other queries, no labels, no figures: nothing of the first run is among them, and nothing of it is lost."""
    write_object(tmp_path / "data", "steel", labels=("one.png",))
    first = run(tmp_path / "data", tmp_path)
    kept = {p.relative_to(first) for p in first.rglob("*") if p.is_file()}
    folder = tmp_path / "data" / "steel" / "query"
    (folder / "image" / "one.png").rename(folder / "image" / "new.png")
    (folder / "true_label" / "one_mask.png").unlink()
    second = run(tmp_path / "data", tmp_path)
    alone = run(tmp_path / "data", tmp_path, RUN_NAME="alone")
    found = [{p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in (second, alone)]
    assert found[0] == found[1] and not any(
        "one" in p.name or p.name == "queries.csv" for p in found[0]
    )
    earlier = tmp_path / "log" / "run.1"
    assert {p.relative_to(earlier) for p in earlier.rglob("*") if p.is_file()} == kept
    assert (
        "one.png" in (earlier / "report.html").read_text()
        and "one.png" not in (second / "report.html").read_text()
    )


@pytest.mark.parametrize("part", ["support/image", "support/mask"])
def test_an_unreadable_support_is_an_error_before_anything_is_written(tmp_path, part):
    write_object(tmp_path / "data", "steel")
    path = tmp_path / "data" / "steel" / part / "s.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=str(path)):
        run(tmp_path / "data", tmp_path)
    assert not (tmp_path / "log").exists()


def test_several_processes_write_what_one_does(tmp_path, monkeypatch):
    """Every file, byte for byte; a query that cannot be read is left out by whoever has it. Sums over several threads
    round differently."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed, name in enumerate(("steel", "wood")):
        write_object(tmp_path / "data", name, labels=("one.png", "two.jpg"), seed=seed)
    (tmp_path / "data" / "wood" / "query" / "image" / "three.bmp").write_bytes(b"text")
    changes = {"DATASET__open_domain_test_object": ["steel", "wood"]}
    folders = [
        run(tmp_path / "data", tmp_path, RUN_NAME=f"of{n}", NUM_GPUS=n, **changes) for n in (1, 2)
    ]
    torch.set_num_threads(threads)
    names = [
        {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} for folder in folders
    ]
    assert (
        names[0] == names[1]
        and len(json.loads((folders[1] / "gallery" / "index.json").read_text())) == 5
    )
    known = [load_file(folder / "steel" / "support.safetensors") for folder in folders]
    assert known[0].keys() == known[1].keys() and all(
        torch.equal(known[0][k], known[1][k]) for k in known[0]
    )
    # of these some name the run or the time; the other's header has no fixed order
    own = {"config.yaml", "test.log", "run.json", "report.html", "support.safetensors"}
    for name in names[0]:
        if name.name not in own:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    rows = (folders[0] / "queries.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["0", "2", "3", "5"], (
        "numbers go on from object to object"
    )
