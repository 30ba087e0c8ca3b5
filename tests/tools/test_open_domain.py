from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets.images import read_image
from tests.helpers import draw_defect, surface, tiny_config
from tools.open_domain import output_names
from tools.tester import run_test
from utils.errors import DataError

QUERIES = {"one.png": (96, 128), "two.jpg": (97, 65), "three.bmp": (40, 200)}


def write_object(root, name, queries=QUERIES, labels=(), seed=0):
    """Write an object with a support and queries, each with a spot; return the true masks by file name."""
    rng, truth = np.random.default_rng(seed), {}
    for part in ("support/image", "support/mask", "query/image", "query/true_label"):
        (root / name / part).mkdir(parents=True)
    for file, size in {"s.png": (96, 128), **queries}.items():
        image, mask = surface(size, rng), np.zeros(size, np.uint8)
        top, bottom, left, right = draw_defect(image, "spot", rng)
        mask[top:bottom, left:right] = 255
        support = file == "s.png"
        Image.fromarray(image).save(root / name / ("support" if support else "query") / "image" / file)
        if support:
            Image.fromarray(mask).save(root / name / "support" / "mask" / file)
        if file in labels:
            Image.fromarray(mask).save(root / name / "query" / "true_label" / f"{Path(file).stem}_mask.png")
        truth[file] = mask > 0
    return truth


def run(root, tmp_path, **changes):
    options = {"DATASET__name": "opendomain_test_dataset_ND", "DATASET__open_domain_test_object": ["steel"]}
    cfg = tiny_config(root, tmp_path / "log", **(options | changes))
    return run_test(cfg, "")


def written(folder, kind, name):
    return cv2.imread(str(folder / kind / f"{name}.png"), cv2.IMREAD_UNCHANGED)


def test_mask_score_and_overlay_of_each_query_at_its_size(tmp_path, capsys):
    write_object(tmp_path / "data", "steel")
    folder = run(tmp_path / "data", tmp_path)
    for file, size in QUERIES.items():
        image = read_image(tmp_path / "data" / "steel" / "query" / "image" / file)
        mask, score, overlay = (
            written(folder / "steel", kind, Path(file).stem) for kind in ("masks", "scores", "overlays")
        )
        assert (mask.shape, mask.dtype) == (size, np.uint8) and set(np.unique(mask)) == {0, 255}
        assert (score.shape, score.dtype) == (size, np.uint16)
        assert (overlay.shape, overlay.dtype) == ((*size, 3), np.uint8)
        assert np.array_equal(mask > 0, score.astype(np.float64) / 65535 > 0.5)
        assert np.array_equal(overlay[mask == 0][:, ::-1], image[mask == 0])
        assert not np.array_equal(overlay[mask > 0][:, ::-1], image[mask > 0])
    report = json.loads((folder / "metrics.json").read_text())
    assert report["objects"] == {"steel": {"queries": 3, "iou": {}, "unreadable": []}} and report["shot"] == [1]
    assert "'prior'" in capsys.readouterr().out, "a notice: no checkpoint, so the method without training"
    assert (folder / "test.log").is_file() and (folder / "config.yaml").is_file()


def test_iou_is_that_of_the_masks_and_the_true_labels(tmp_path):
    """Pooled over the labelled queries alone; several objects, each on its own."""
    labels = ("one.png", "two.jpg")
    truth = {n: write_object(tmp_path / "data", n, labels=labels, seed=s) for s, n in enumerate(("steel", "wood"))}
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
        run(tmp_path / "data", tmp_path, RUN_NAME=str(c), DATASET__open_domain_specific_defect_category=[c], **several)
        for c in (0, 1)
    )
    scores = [written(f / "steel", "scores", "one") for f in (first, second)]
    assert not np.array_equal(*scores)


def test_black_support_masks_mark_nothing(tmp_path, capsys):
    write_object(tmp_path / "data", "steel")
    path = tmp_path / "data" / "steel" / "support" / "mask" / "s.png"
    Image.new("L", (128, 96)).save(path)
    folder = run(tmp_path / "data", tmp_path)
    assert "no support pixel is marked" in capsys.readouterr().out
    assert not written(folder / "steel", "masks", "one").any() and not written(folder / "steel", "scores", "one").any()


def test_queries_that_differ_by_the_suffix_alone_keep_their_own_files(tmp_path):
    write_object(tmp_path / "data", "steel", {"a.png": (96, 128), "a.jpg": (40, 50), "b.png": (30, 30)})
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
    assert report["queries"] == 3 and len(report["unreadable"]) == 1 and str(path) in report["unreadable"][0]
    assert capsys.readouterr().out.count(str(path)) == 1
    assert {p.name for p in (folder / "steel" / "masks").iterdir()} == {"one.png", "three.png"}


def test_no_readable_query_is_an_error_and_leaves_nothing(tmp_path):
    write_object(tmp_path / "data", "steel", {"one.png": (96, 128)})
    (tmp_path / "data" / "steel" / "query" / "image" / "one.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"steel: no query could be read.*one\.png"):
        run(tmp_path / "data", tmp_path)
    assert not (tmp_path / "log" / "run").exists()


@pytest.mark.parametrize("part", ["support/image", "support/mask"])
def test_an_unreadable_support_is_an_error_before_anything_is_written(tmp_path, part):
    write_object(tmp_path / "data", "steel")
    path = tmp_path / "data" / "steel" / part / "s.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=str(path)):
        run(tmp_path / "data", tmp_path)
    assert not (tmp_path / "log").exists()
