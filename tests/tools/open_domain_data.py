"""Objects with few masked examples, written and segmented."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.helpers import draw_defect, surface, tiny_config
from tools.evaluator import run_test

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
        Image.fromarray(image).save(
            root / name / ("support" if support else "query") / "image" / file
        )
        if support:
            Image.fromarray(mask).save(root / name / "support" / "mask" / file)
        if file in labels:
            Image.fromarray(mask).save(
                root / name / "query" / "true_label" / f"{Path(file).stem}_mask.png"
            )
        truth[file] = mask > 0
    return truth


def write_typed(root, kinds=("line", "spot"), queries=QUERIES, labels=(), size=(96, 128)):
    """Write the object steel with a support of each type, and queries with a defect of each; true masks by type and
    file name, of which `labels` are written for the files it names."""
    rng, folder, truth = np.random.default_rng(1), root / "steel", {kind: {} for kind in kinds}
    (folder / "query" / "image").mkdir(parents=True)

    def save(pixels, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def drawn(image, kind):
        mask = np.zeros(image.shape[:2], np.uint8)
        top, bottom, left, right = draw_defect(image, kind, rng)
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


def config(root, tmp_path, **changes):
    options = {
        "DATASET__name": "opendomain_test_dataset_ND",
        "DATASET__open_domain_test_object": ["steel"],
    }
    return tiny_config(root, tmp_path / "log", **(options | changes))


def run(root, tmp_path, **changes):
    return run_test(config(root, tmp_path, **changes), "")


def as_levels(score):
    return np.rint(np.minimum(score, 1) * 65535).astype(np.uint16)


def written(folder, kind, name):
    return cv2.imread(str(folder / kind / f"{name}.png"), cv2.IMREAD_UNCHANGED)
