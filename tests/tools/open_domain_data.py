"""Objects with few masked examples, written and segmented."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.helpers import draw_defect, surface, tiny_config
from tools.evaluator import run_test

QUERIES = {"one.png": (96, 128), "two.jpg": (97, 65), "three.bmp": (40, 200)}


def write_object(root, name, queries=QUERIES, labels=(), seed=0):
    """Write an object with a support and queries, each with a spot; true masks by file name, of
    which `labels` are written for the files it names."""
    return _write(root / name, {"": "spot"}, queries, labels, (96, 128), seed)[""]


def write_typed(root, kinds=("line", "spot"), queries=QUERIES, labels=(), size=(96, 128)):
    """Write the object steel with a support of each type, and queries with a defect of each; true
    masks by type and file name, of which `labels` are written for the files it names."""
    return _write(root / "steel", dict(zip(kinds, kinds, strict=True)), queries, labels, size, 1)


def _write(folder, kinds, queries, labels, size, seed):
    """`kinds`: the defect by type, which is the name of its folders."""
    rng, truth = np.random.default_rng(seed), {kind: {} for kind in kinds}

    def drawn(image, kind):
        mask = np.zeros(image.shape[:2], np.uint8)
        top, bottom, left, right = draw_defect(image, kinds[kind], rng)
        mask[top:bottom, left:right] = 255
        return mask

    for kind in kinds:
        image = surface(size, rng)
        save(drawn(image, kind), folder / "support" / kind / "mask" / "s.png")
        save(image, folder / "support" / kind / "image" / "s.png")
    for file, shape in queries.items():
        image = surface(shape, rng)
        for kind in kinds:
            mask = drawn(image, kind)
            truth[kind][file] = mask > 0
            if file in labels:
                save(mask, folder / "query" / "true_label" / kind / f"{Path(file).stem}_mask.png")
        save(image, folder / "query" / "image" / file)
    return truth


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def config(root, tmp_path, **changes):
    options = {"DATASET__name": "opendomain_test_dataset_ND"}
    options |= {"DATASET__open_domain_test_object": ["steel"]}
    return tiny_config(root, tmp_path / "log", **options | changes)


def run(root, tmp_path, **changes):
    return run_test(config(root, tmp_path, **changes), "")


def as_levels(score):
    return np.rint(np.minimum(score, 1) * 65535).astype(np.uint16)


def written(folder, kind, name):
    return cv2.imread(str(folder / kind / f"{name}.png"), cv2.IMREAD_UNCHANGED)


def objects(folder):
    """The figures of each object and type."""
    return json.loads((folder / "metrics.json").read_text())["objects"]
