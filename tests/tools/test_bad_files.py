"""Whole jobs with bad files in the midst of good ones."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image, ImageFilter

from datasets.readers import vision_v1
from tests.datasets.bad_files import REFUSED, saved, truncated
from tests.helpers import SIZE, surface, tiny_config, write_product
from tests.tools.open_domain_data import run, write_object, written
from tools.evaluator import run_test
from tools.trainer import run_training
from utils.errors import DataError

KINDS = ("empty", "truncated", "text", "pipe", "floats")


def spoil(path, kind):
    if kind == "truncated":
        return os.truncate(path, path.stat().st_size // 2)
    path.unlink()
    REFUSED[kind](path)


@pytest.fixture
def data(surfaces, tmp_path):
    """A data set of one's own, to be spoilt."""
    shutil.copytree(surfaces, tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("kind", KINDS)
def test_training_refuses_by_name(data, tmp_path, kind):
    spoil(data / "Plate" / "train" / "line_1.png", kind)
    with pytest.raises(DataError, match=r"line_1\.png"):
        run_training(tiny_config(data, tmp_path / "log"), "")


def test_training_refuses_by_name_what_a_worker_cannot_read(data, tmp_path):
    spoil(data / "Plate" / "train" / "line_1.png", "truncated")
    with pytest.raises(DataError, match=r"line_1\.png: cannot be read"):
        run_training(tiny_config(data, tmp_path / "log", TRAIN_SETUPS__num_workers=2), "")
    with pytest.raises(DataError, match=r"96 x 128 pixels .*DATASET\.max_pixels, 9999"):
        run_training(
            tiny_config(
                data, tmp_path / "log", DATASET__max_pixels=9999, TRAIN_SETUPS__num_workers=2
            ),
            "",
        )


def tiny_products(root, size):
    """Two products of images of one size, in each of which one pixel is marked."""
    rng = np.random.default_rng(0)
    for name in ("Plate", "Disk"):
        folder = root / name / "train"
        folder.mkdir(parents=True)
        content = {"images": [], "annotations": [], "categories": [{"id": 0, "name": "spot"}]}
        for number in range(3):
            saved(folder / f"{number}.png", surface(size, rng))
            content["images"].append(
                {"id": number, "file_name": f"{number}.png", "height": size[0], "width": size[1]}
            )
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": number,
                    "category_id": 0,
                    "segmentation": [[size[1] // 2, size[0] // 2]],
                }
            )
        (folder / vision_v1.ANNOTATIONS).write_text(json.dumps(content))


@pytest.mark.parametrize("size", [(1, 1), (3, 5000), (5000, 3)])
@pytest.mark.parametrize("resized", [False, True])
def test_extreme_shapes_train_and_are_queries_and_supports(tmp_path, size, resized):
    tiny_products(tmp_path / "data", size)
    name = "VISION_V1" if resized else "VISION_V1_ND"
    options = {"DATASET__name": name, "DATASET__crop_size": 256, "TRAIN_SETUPS__epochs": 1}
    folder = run_training(
        tiny_config(tmp_path / "data", tmp_path / "log", DATASET__area_resize_ratio=1.0, **options),
        "",
    )
    report = json.loads((folder / "metrics.json").read_text())
    assert report["failed_queries"] == 0 and report["unreadable"] == []


def test_a_full_support_mask_is_used_with_a_warning(tmp_path, capsys):
    write_object(tmp_path / "data", "steel")
    saved(tmp_path / "data" / "steel" / "support" / "mask" / "s.png", np.full(SIZE, 255, np.uint8))
    run(tmp_path / "data", tmp_path)
    assert "support/mask/s.png: the mask marks every pixel" in capsys.readouterr().out


LABELS = ("one.png", "two.jpg", "three.bmp", "void.png", "whole.png")
PLAIN = dict.fromkeys(("one.png", "three.bmp", "void.png", "whole.png"), SIZE) | {
    "two.jpg": (97, 65)
}


def odd_queries(folder, grey):
    """Queries of many pixel types beside good ones; returns the stems of those that show the grey
    pixels (h, w).
    """
    image = Image.fromarray(grey)
    saved(folder / "a_bit.png", grey, "1")
    saved(folder / "p_cmyk.jpg", grey, "CMYK", quality=95)
    saved(folder / "deep.png", grey.astype(np.uint16) * 257)
    for mode in ("L", "P", "RGBA"):
        saved(folder / f"q_{mode}.png", grey, mode)
    frames = {"save_all": True, "append_images": [image.rotate(180)]}
    image.save(folder / "u_animated.png", **frames)
    image.save(folder / "zz_pages.tif", **frames)
    truncated(folder / "r_broken.png", grey)
    return ("deep", "q_L", "q_P", "q_RGBA", "u_animated", "zz_pages")


def odd_masks(folder):
    """Save the masks of supports and queries in other ways that mean the same."""
    support, labels = folder / "support", folder / "query" / "true_label"
    saved(
        support / "mask" / "s.png",
        np.uint8(1) * (np.array(Image.open(support / "mask" / "s.png")) > 0),
    )
    (support / "image" / "void.png").write_bytes((support / "good" / "void.png").read_bytes())
    saved(support / "mask" / "void.png", np.zeros(SIZE, np.uint8), "RGB")
    shutil.rmtree(support / "good")
    saved(support / "mask" / "full.png", np.full(SIZE, 255, np.uint8), "1")
    one, two, three = (
        np.array(Image.open(labels / f"{stem}_mask.png")) for stem in ("one", "two", "three")
    )
    saved(labels / "one_mask.png", one // 255)
    soft = np.array(Image.fromarray(two).filter(ImageFilter.MaxFilter(3)))
    saved(labels / "two_mask.png", np.where(two, two, soft // 255 * 127))
    saved(labels / "three_mask.png", three[:, :, None] * np.array([0, 1, 0], np.uint8))
    saved(labels / "void_mask.png", np.zeros(SIZE, np.uint8), "1")
    saved(labels / "whole_mask.png", np.ones(SIZE, np.uint8), "RGBA")


def test_answers_to_good_files_are_those_of_a_run_without_odd_ones(tmp_path):
    """Supports: one of a defect, a normal one, and one of which all is marked; among the labels,
    too.
    """
    runs = {}
    for name in ("good", "odd"):
        folder = tmp_path / name / "steel"
        write_object(tmp_path / name, "steel", PLAIN, labels=LABELS)
        for stem, value in (("void", 0), ("whole", 255)):
            saved(
                folder / "query" / "true_label" / f"{stem}_mask.png", np.full(SIZE, value, np.uint8)
            )
        saved(folder / "support" / "image" / "full.png", np.full((*SIZE, 3), 250, np.uint8))
        saved(folder / "support" / "mask" / "full.png", np.full(SIZE, 255, np.uint8))
        (folder / "support" / "good").mkdir()
        saved(folder / "support" / "good" / "void.png", surface(SIZE, np.random.default_rng(5)))
        if name == "odd":
            grey = np.array(Image.open(folder / "query" / "image" / "one.png"))[:, :, 0]
            alike = odd_queries(folder / "query" / "image", grey)
            odd_masks(folder)
        alone = {"TEST_SETUPS__ND_batch_size": 1}  # windows that share a pass differ by a rounding
        runs[name] = run(tmp_path / name, tmp_path, RUN_NAME=name, **alone)
    good, odd = (
        json.loads((f / "metrics.json").read_text())["objects"]["steel"] for f in runs.values()
    )
    (fault,) = odd["unreadable"]
    assert "r_broken.png" in fault and odd["queries"] == good["queries"] + 8
    assert {k: v for k, v in odd.items() if k not in ("queries", "unreadable")} == {
        k: v for k, v in good.items() if k not in ("queries", "unreadable")
    }
    for kind in ("masks", "scores"):
        for stem in ("one", "two", "three", "void", "whole"):
            np.testing.assert_array_equal(
                *(written(f / "steel", kind, stem) for f in runs.values())
            )
        for stem in alike:
            np.testing.assert_array_equal(
                *(written(runs["odd"] / "steel", kind, s) for s in ("one", stem))
            )
        for stem in ("a_bit", "p_cmyk"):
            assert written(runs["odd"] / "steel", kind, stem).shape == SIZE


def test_odd_names_of_objects_and_categories(tmp_path):
    for name in ("Plate", "Di sk\n漢"):
        write_product(tmp_path / "data", name, {"spot": 2, "line": 2})
    for path in (tmp_path / "data" / "Di sk\n漢").rglob(vision_v1.ANNOTATIONS):
        content = json.loads(path.read_text())
        for category, name in zip(
            content["categories"], ("../" * 9 + "x", "y" * 4000), strict=True
        ):
            category["name"] = name
        path.write_text(json.dumps(content))
    options = {"DATASET__test_objects": ["Di sk\n漢"], "TEST__VISUALIZE__save_figure": True}
    folder = run_test(
        tiny_config(
            tmp_path / "data", tmp_path / "log", TEST__VISUALIZE__sample_prob=1.0, **options
        ),
        "",
    )
    assert len(list((folder / "figures").iterdir())) == 4
    assert {p.name for p in tmp_path.iterdir()} == {"data", "log"}
