"""Builders of tiny anomaly detection data sets in their true layouts."""

from __future__ import annotations

import csv
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import SIZE, draw_defect, surface
from utils.metrics.score_curves import FINE, ROUNDING

KINDS = ("spot", "line")  # of the defects in test


def write_mvtec(root, objects=("bottle",), **options):
    """Write objects in the layout of MVTec AD; for the options see `_pictures`."""
    for name in objects:
        folder = Path(root) / name
        for split, kind, number, image, mask in _pictures(name, **options):
            _save(image, folder / split / kind / f"{number:03}.png")
            if kind != "good":
                _save(mask * 255, folder / "ground_truth" / kind / f"{number:03}_mask.png")
        for text in ("license.txt", "readme.txt"):
            (folder / text).write_text("words")


def write_visa(root, objects=("candle",), **options):
    """Write objects in VisA's layout; the values of a mask are 1 and 2 by the kind of defect."""
    root, rows = Path(root), [("object", "split", "label", "image", "mask")]
    for name in objects:
        for split, stem, image, mask in _visa_pictures(name, **options):
            label, place = ("anomaly", "Anomaly") if mask.any() else ("normal", "Normal")
            image_path = f"{name}/Data/Images/{place}/{stem}.JPG"
            mask_path = f"{name}/Data/Masks/{place}/{stem}.png" if mask.any() else ""
            _save(image, root / image_path)
            if mask_path:
                _save(mask, root / mask_path)
            rows.append((name, split, label, image_path, mask_path))
    write_table(root, rows)


def write_converted_visa(root, objects=("candle",), **options):
    """Write what write_visa writes, converted to the layout of MVTec AD."""
    for name in objects:
        folder = Path(root) / name
        for split, stem, image, mask in _visa_pictures(name, **options):
            kind = "bad" if mask.any() else "good"
            _save(image, folder / split / kind / f"{stem}.JPG")
            if mask.any():
                _save(np.uint8(255) * (mask > 0), folder / "ground_truth" / kind / f"{stem}.png")


def write_table(root, rows):
    """Write the rows of VisA's split_csv/1cls.csv, the header first."""
    path = Path(root) / "split_csv" / "1cls.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def score_maps(predictor, item, supports):
    """(scores, bool mask) of every test image, by the answers of the predictor; the scores are
    rounded down to the steps in which pixels are counted."""
    predictor.set_support(supports, [None] * len(supports))
    maps, answers = [], predictor.predict_many(test.image for test in item.test)
    for test, score in zip(item.test, (answer.score for answer in answers), strict=True):
        mask = np.zeros(score.shape) if test.mask is None else np.array(Image.open(test.mask))
        maps.append((np.floor(score * np.float32(FINE / 2) + np.float32(ROUNDING)) / (FINE / 2),
                     mask > 0))  # fmt: skip
    return maps


def _pictures(name, *, train=4, good=2, abnormal=2, size=SIZE, kinds=KINDS):
    """(split, kind, number within both, image, mask) of an object, the same for the same arguments:
    `train` and `good` normal images, `abnormal` images of each kind."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    counts = {("train", "good"): train, ("test", "good"): good}
    for (split, kind), count in (counts | {("test", k): abnormal for k in kinds}).items():
        for number in range(count):
            image, mask = surface(size, rng), np.zeros(size, np.uint8)
            if kind != "good":
                top, bottom, left, right = draw_defect(image, kind, rng)
                mask[top:bottom, left:right] = 1
            yield split, kind, number, image, mask


def _visa_pictures(name, **options):
    """(split, stem of the file, image, mask of class values) of an object; VisA numbers normal and
    abnormal images."""
    counts = {False: 0, True: 0}
    for split, kind, _, image, mask in _pictures(name, **options):
        is_abnormal = kind in KINDS
        stem = f"{counts[is_abnormal]:0{3 if is_abnormal else 4}}"
        counts[is_abnormal] += 1
        yield split, stem, image, mask * (KINDS.index(kind) + 1 if is_abnormal else 0)


def _save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
