"""The open domain job: segment the query images of objects of which only a few masked examples are known."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from yacs.config import CfgNode

from datasets.images import read_image, read_mask
from datasets.open_domain import OpenDomainObject, read_open_domain, support_mask
from datasets.strips import ImageStrips
from tools.answers import Prediction
from tools.predictor import Predictor
from utils.errors import DataError
from utils.logging import setup_logging
from utils.memory import allocate, let_go
from utils.metrics import SegmentationMeter
from utils.run import create_run_folder, provenance, write_json
from utils.visualize import overlay, write_image

LOG = logging.getLogger(__name__)
OPEN_DOMAIN_NAME = "opendomain_test_dataset"
SCORE_LEVELS = 65535
ROWS = 128
OVERLAY_SIDE = 4096  # pixels, longer side of the overlay of an image that is too large to be held


def segment_open_domain(cfg: CfgNode, folder: Path) -> None:
    """Segment every query of every object of the config.

    Writes per object and query, at the query's size: `masks/NAME.png` {0, 255}, `scores/NAME.png` (16 bit, 65535 is
    probability 1), `overlays/NAME.png`; per object `support.safetensors`, for `Predictor.load_support`;
    and metrics.json with IoU where there are true labels.
    """
    setup_logging()
    names = cfg.DATASET.open_domain_test_object
    objects = [read_open_domain(cfg.TEST.dataset_path, name, "TEST.dataset_path") for name in names]
    supports = [read_supports(cfg, item, number) for number, item in enumerate(objects)]
    predictor = Predictor.from_config(cfg)
    create_run_folder(folder, cfg)
    setup_logging(folder / "test.log")
    report = {
        item.name: _segment_object(cfg, predictor, item, pairs, folder / item.name)
        for item, pairs in zip(objects, supports, strict=True)
    }
    write_json(folder / "metrics.json", {"objects": report, "shot": [len(o.supports) for o in objects]} | provenance())
    LOG.info("masks, scores and overlays in %s", folder)


def read_supports(cfg: CfgNode, item: OpenDomainObject, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and masks of the chosen category of the supports of object `number`."""
    category_num, category = (
        values[number if len(values) > 1 else 0]
        for values in (cfg.DATASET.open_domain_object_category_num, cfg.DATASET.open_domain_specific_defect_category)
    )
    pairs = [(read_image(image), support_mask(mask, category, category_num)) for image, mask in item.supports]
    if not any(mask.any() for _, mask in pairs):
        LOG.warning("%s: no support pixel is marked: a head scores anomalies then, the prior nothing", item.name)
    return pairs


def _segment_object(
    cfg: CfgNode, predictor: Predictor, item: OpenDomainObject, pairs: list[tuple[np.ndarray, np.ndarray]], folder: Path
) -> dict[str, Any]:
    memory = predictor.set_support(*zip(*pairs, strict=True))
    predictor.save_support(folder / "support.safetensors")
    meters = {method: SegmentationMeter([item.name]) for method in predictor.methods}
    faults = []
    names = output_names(item.queries)
    for path, name, outcome in zip(item.queries, names, predictor.segment(item.queries, memory), strict=True):
        try:
            if outcome.error is not None:
                raise outcome.error
            target = read_mask(item.true_labels[path.name]) if path.name in item.true_labels else None
        except DataError as error:
            LOG.warning("left out: %s", error)
            faults.append(str(error))
            continue
        write_answer(folder, name, outcome.image, outcome.answers[predictor.main])
        for method, answer in outcome.answers.items():
            if target is not None:
                meters[method].update(item.name, answer.label, target)
    if len(faults) == len(item.queries):
        raise DataError(f"{item.name}: no query could be read: {'; '.join(faults[:3])}")
    return _report(item, meters, faults)


def output_names(queries: list[Path]) -> list[str]:
    """A name for the files of each query: the query's without suffix, or whole where two differ by the suffix alone."""
    stems = [path.stem for path in queries]
    return stems if len(set(stems)) == len(stems) else [path.name for path in queries]


def write_answer(folder: Path, name: str, image: ImageStrips, answer: Prediction) -> None:
    """Write mask, 16-bit score and overlay of one query; the overlay of an image read in strips is shrunk."""
    levels = allocate(answer.score.shape, np.uint16)
    marks = allocate(answer.score.shape, np.uint8)
    for top in range(0, len(levels), ROWS):
        rows = np.s_[top : top + ROWS]
        levels[rows] = np.rint(answer.score[rows] * SCORE_LEVELS)
        marks[rows] = (answer.label[rows] == 1) * np.uint8(255)
        let_go(levels, marks, answer.score, answer.label)
    write_image(folder / "masks" / f"{name}.png", marks)
    let_go(marks)
    write_image(folder / "scores" / f"{name}.png", levels)
    let_go(levels)
    shown = image.pixels if image.pixels is not None else image.thumbnail(OVERLAY_SIDE)
    seen = cv2.resize(marks, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
    let_go(marks)
    write_image(folder / "overlays" / f"{name}.png", overlay(shown, seen > 0))


def _report(item: OpenDomainObject, meters: dict[str, SegmentationMeter], faults: list[str]) -> dict[str, Any]:
    iou = {method: meter.class_iou()[item.name] for method, meter in meters.items()}
    if item.true_labels:
        shown = ", ".join(f"{m} {'-' if v is None else f'{100 * v:.2f} %'}" for m, v in iou.items())
        LOG.info("%s: pooled IoU over %d labelled queries: %s", item.name, len(item.true_labels), shown)
    return {"queries": len(item.queries), "iou": iou if item.true_labels else {}, "unreadable": faults}
