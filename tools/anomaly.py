"""Few-shot anomaly detection: all supports are normal images, and a pixel unlike them is abnormal.

Data sets are those of kind "anomaly", such as MVTec AD and VisA.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from yacs.config import CfgNode

from datasets.build import build_anomaly_objects
from datasets.images import read_image
from datasets.large_images import ImageStrips
from datasets.readers.anomaly import AnomalyObject, draw_normal, read_target
from models.build import build_method
from models.methods import BASELINE, method_class
from tools.evaluation import summary, write_csv
from tools.gallery import GalleryWriter, Panel
from tools.methods import weights_files
from tools.predictor import Predictor
from tools.running import begin
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import DataError, UserError
from utils.logging import progress_bar
from utils.metrics import ANOMALY
from utils.metrics.score_curves import FINE, Curve, ScoreCounts
from utils.metrics.segmentation import mean_std
from utils.output_files import write_json
from utils.run_folder import provenance, run_facts
from utils.tables import anomaly_table
from utils.visualize import TRUTH, outline

LOG = logging.getLogger(__name__)
THUMBNAIL = 480  # pixels, longer side of a picture of an image that is read in strips


@dataclass
class ObjectResult:
    """The measurements of one object.

    Attributes:
        measures: by name, the value of each repeat, None where undefined.
        scores: (image, kind of defect, repeat, image score).
        curve: precision, recall and IoU of the pixels of the first repeat.
        faults: files that could not be read.
    """

    measures: dict[str, list[float | None]] = field(default_factory=dict)
    scores: list[tuple[str, str, int, float]] = field(default_factory=list)
    curve: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def detect_anomalies(cfg: CfgNode, folder: Path) -> list[str]:
    """Test every object of the config; each process takes its share of the objects.

    Writes metrics.json, the score of every image to images.csv, curves.json and a gallery.

    Returns:
        A line for each object that could not be tested.
    """
    objects = build_anomaly_objects(cfg)
    name = BASELINE if method_class(cfg.TEST.method).needs_training else cfg.TEST.method
    predictor = Predictor.from_config(cfg, {name: build_method(cfg, name)})
    begin(folder, cfg, "test.log", reads=weights_files(cfg))
    if cfg.TEST.method != name:
        LOG.warning("TEST.method is %s: with normal images alone the answer is that of %r",
                    cfg.TEST.method, name)  # fmt: skip
    for item in objects:
        kinds = {test.is_anomalous for test in item.test}
        if len(kinds) == 1:
            lack = "without a defect, so no figure of whole images" if True in kinds else (
                   "with a defect, so no figure")  # fmt: skip
            LOG.warning("%s: there is no test image %s can be given", item.name, lack)
    gallery = GalleryWriter(folder / "gallery")
    mine: dict[str, ObjectResult | str] = {}
    for item in objects[rank() :: world_size()]:
        try:
            mine[item.name] = measure_object(cfg, predictor, item, gallery)
        except UserError as error:  # the other objects are tested
            mine[item.name] = f"{item.name}: {error}"
    parts = gather_objects((mine, gallery.entries))
    outcomes = {name: outcome for found, _ in parts for name, outcome in found.items()}
    outcomes = {item.name: outcomes[item.name] for item in objects}
    failed = [outcome for outcome in outcomes.values() if isinstance(outcome, str)]
    results = {name: r for name, r in outcomes.items() if not isinstance(r, str)}
    for result in results.values():
        for fault in result.faults:
            LOG.warning("left out: %s", fault)
    if not results:
        raise DataError("; ".join(failed))
    if is_main():
        _record(cfg, results, failed, folder, predictor.backbone.source)
        gallery.finish([entry for _, entries in parts for entry in entries], results)
    return failed


def measure_object(
    cfg: CfgNode, predictor: Predictor, item: AnomalyObject, gallery: GalleryWriter
) -> ObjectResult:
    """Score every test image of an object, encoded once for all repeats.

    Raises:
        DataError: a support cannot be read, or no test image can.
    """
    drawn = [draw_normal(item.normal, item.name, cfg.DATASET.shot, cfg.RNG_SEED + repeat)
             for repeat in range(cfg.DATASET.few_shot_repeated_multiple)]  # fmt: skip
    memories = [predictor.teach([(read_image(path), None) for path in paths]) for paths in drawn]
    support, result = read_image(drawn[0][0]), ObjectResult()
    pixels = [ScoreCounts(FINE, 2.0, with_regions=True) for _ in memories]
    images: list[list[tuple[float, bool]]] = [[] for _ in memories]
    outcomes = predictor.segment((test.image, memories) for test in item.test)
    together = zip(item.test, outcomes, strict=True)
    bar = progress_bar(together, desc=item.name, total=len(item.test))
    for number, (test, outcome) in enumerate(bar):
        try:
            if outcome.error is not None:
                raise outcome.error
            target = read_target(test, outcome.image.size)
        except DataError as error:
            result.faults.append(str(error))
            continue
        file = test.image.relative_to(cfg.TEST.dataset_path).as_posix()
        scores = [answers[predictor.main].score for answers in outcome.answers]
        for repeat, score in enumerate(scores):
            pixels[repeat].update(score, target)
            images[repeat].append((float(score.max()), test.is_anomalous))
            result.scores.append((file, test.defect, repeat, float(score.max())))
        panels = [("support", support), *_panels(outcome.image, target), ("score", scores[0])]
        highest = float(scores[0].max())
        about = (item.name, item.name, highest, file, {"image score": highest}, panels)
        gallery.add(number, *about, normal=not test.is_anomalous)
    if not result.scores:
        raise DataError(f"no test image could be read: {'; '.join(result.faults[:3])}")
    measured, curves = [], [counts.curve() for counts in pixels]
    for pairs, curve in zip(images, curves, strict=True):
        levels = {"image": Curve.of(*zip(*pairs, strict=True)), "pixel": curve}
        values = {f"{level}_{name}": value for level, of_level in levels.items()
                  for name, value in of_level.measures().items()}  # fmt: skip
        measured.append(values | {"aupro": curve.aupro()})
    result.measures = {m.name: [values[m.name] for values in measured] for m in ANOMALY}
    first = {"name": item.name, "average_precision": measured[0]["pixel_ap"]}
    result.curve = first | curves[0].points()
    return result


def _panels(image: ImageStrips, target: np.ndarray) -> list[Panel]:
    """Pictures of a test image and, where it has a defect, of its true outline."""
    shown = image.pixels
    if shown is None:
        shown = image.thumbnail(THUMBNAIL)
        target = cv2.resize(target * 255, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
    truth = [("truth", outline(shown, target > 0, TRUTH))] if target.any() else []
    return [("query", shown), *truth]


def _record(
    cfg: CfgNode, results: dict[str, ObjectResult], failed: list[str], folder: Path, weights: str
) -> None:
    objects, means = {}, {}
    for name, result in results.items():
        images = len({image for image, *_ in result.scores})
        measures = {measure: summary(values) for measure, values in result.measures.items()}
        objects[name] = {"images": images} | measures
    for measure in (m.name for m in ANOMALY):
        repeats = zip(*(result.measures[measure] for result in results.values()), strict=True)
        means[measure] = summary([mean_std(list(values))[0] for values in repeats])
    report = {"objects": objects, "mean": means}
    LOG.info("%d-shot anomaly detection\n%s", cfg.DATASET.shot, anomaly_table(report))
    faults = [fault for result in results.values() for fault in result.faults] + failed
    content = run_facts(cfg, weights) | {"anomaly": report, "unreadable": faults} | provenance()
    write_json(folder / "metrics.json", content)
    write_json(folder / "curves.json", {"curves": [result.curve for result in results.values()]})
    rows = [(name, *row) for name, result in results.items() for row in result.scores]
    write_csv(folder / "images.csv", ("object", "image", "defect", "repeat", "score"), rows)
