"""Whole jobs with bad or odd files in the midst of good ones."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from datasets.readers import vision_v1
from tests.datasets.bad_files import saved
from tests.helpers import surface, tiny_config, write_product
from tools.evaluator import run_test
from tools.trainer import run_training
from utils.errors import DataError


def test_training_refuses_by_name_what_a_worker_cannot_read(surfaces, tmp_path):
    data = shutil.copytree(surfaces, tmp_path / "data")
    options = {"TRAIN_SETUPS__num_workers": 2}
    with pytest.raises(DataError, match=r"96 x 128 pixels .*DATASET\.max_pixels, 9999"):
        run_training(tiny_config(data, tmp_path / "log", DATASET__max_pixels=9999, **options), "")
    os.truncate(data / "Plate" / "train" / "line_1.png", 300)
    with pytest.raises(DataError, match=r"line_1\.png: cannot be read"):
        run_training(tiny_config(data, tmp_path / "log", **options), "")


@pytest.mark.parametrize(("size", "name"), [((1, 1), "VISION_V1"), ((3, 5000), "VISION_V1_ND")])
def test_extreme_shapes_train_and_are_queries_and_supports(tmp_path, size, name):
    """Of each image one pixel is marked."""
    rng = np.random.default_rng(0)
    for product in ("Plate", "Disk"):
        folder, images, marks = tmp_path / "data" / product / "train", [], []
        for i in range(2):
            saved(folder / f"{i}.png", surface(size, rng))
            images.append({"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
            mark = {"category_id": 0, "segmentation": [[size[1] // 2, size[0] // 2]]}
            marks.append({"id": i, "image_id": i} | mark)
        content = {"images": images, "annotations": marks, "categories": [{"id": 0, "name": "a"}]}
        (folder / vision_v1.ANNOTATIONS).write_text(json.dumps(content))
    options = {"DATASET__name": name, "DATASET__crop_size": 256, "TRAIN_SETUPS__epochs": 1}
    options |= {"DATASET__area_resize_ratio": 1.0}
    folder = run_training(tiny_config(tmp_path / "data", tmp_path / "log", **options), "")
    report = json.loads((folder / "metrics.json").read_text())
    assert report["failed_queries"] == 0 and report["unreadable"] == []


def test_odd_names_of_objects_and_categories(tmp_path):
    root, names = tmp_path / "data", ("../" * 9 + "x", "y" * 4000)
    write_product(root, "Di sk\n漢", {"spot": 2, "line": 2})
    for path in root.rglob(vision_v1.ANNOTATIONS):
        content = json.loads(path.read_text())
        content["categories"] = [{"id": i, "name": name} for i, name in enumerate(names)]
        path.write_text(json.dumps(content))
    options = {"DATASET__test_objects": ["Di sk\n漢"], "TEST__VISUALIZE__save_figure": True}
    options |= {"TEST__VISUALIZE__sample_prob": 1.0}
    folder = run_test(tiny_config(root, tmp_path / "log", **options), "")
    assert len(list((folder / "figures").iterdir())) == 4
    assert {p.name for p in tmp_path.iterdir()} == {"data", "log"}
