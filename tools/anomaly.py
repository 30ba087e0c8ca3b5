"""Few-shot anomaly detection: all supports are normal images, and a pixel unlike them is abnormal.

Data sets are those of kind "anomaly", such as MVTec AD and VisA.
"""

from __future__ import annotations

import csv
import io
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
from datasets.readers.anomaly import AnomalyImage, AnomalyObject, draw_normal, read_target
from models.build import build_method
from models.memory import Memory
from models.methods import BASELINE, method_class
from tools.evaluation import summary
from tools.gallery import GalleryWriter, Panel
from tools.job import begin
from tools.methods import weights_files
from tools.predictor import Predictor
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import DataError, UserError
from utils.logging import progress_bar
from utils.metrics import ANOMALY
from utils.metrics.score_curves import FINE, Curve, ScoreCounts
from utils.metrics.segmentation import mean_std
from utils.output_files import write_json, write_text
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
        scores: (image, kind of defect, repeat, image score) of every test image and repeat.
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
            lacking = (
                "without a defect, so no figure of whole images"
                if True in kinds
                else "with a defect, so no figure"
            )
            LOG.warning("%s: there is no test image %s can be given", item.name, lacking)
    gallery = GalleryWriter(folder / "gallery")
    test = AnomalyTest(cfg, predictor, gallery)
    mine: dict[str, ObjectResult | str] = {}
    for item in objects[rank() :: world_size()]:
        try:
            mine[item.name] = test.run(item)
        except UserError as error:  # the other objects are tested
            mine[item.name] = f"{item.name}: {error}"
    found = {name: result for part in gather_objects(mine) for name, result in part.items()}
    entries = [entry for part in gather_objects(gallery.entries) for entry in part]
    tested = [item for item in objects if isinstance(found[item.name], ObjectResult)]
    failed = [found[item.name] for item in objects if item not in tested]
    results = {item.name: found[item.name] for item in tested}
    for result in results.values():
        for fault in result.faults:
            LOG.warning("left out: %s", fault)
    if not results:
        raise DataError("; ".join(failed))
    if is_main():
        _record(cfg, results, failed, folder)
        gallery.finish(entries, [item.name for item in tested])
    return failed


class AnomalyTest:
    """A test by the config.

    Args:
        cfg: the config.
        predictor: of one method.
        gallery: of all objects.
    """

    def __init__(self, cfg: CfgNode, predictor: Predictor, gallery: GalleryWriter) -> None:
        self.root, self.shot = Path(cfg.TEST.dataset_path), cfg.DATASET.shot
        self.seed, self.repeats = cfg.RNG_SEED, cfg.DATASET.few_shot_repeated_multiple
        self.predictor, self.gallery = predictor, gallery

    def run(self, item: AnomalyObject) -> ObjectResult:
        """Score every test image of an object, encoded once for all repeats.

        Raises:
            DataError: a support cannot be read, or no test image can.
        """
        memories = [self.memory(item, repeat) for repeat in range(self.repeats)]
        pixels = [ScoreCounts(FINE, 2.0, with_regions=True) for _ in memories]
        images: list[list[tuple[float, bool]]] = [[] for _ in memories]
        result = ObjectResult()
        outcomes = self.predictor.segment((test.image, memories) for test in item.test)
        support = read_image(self._supports(item, 0)[0])
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
            for repeat, answers in enumerate(outcome.answers):
                score = answers[self.predictor.main].score
                highest = float(score.max())
                pixels[repeat].update(score, target)
                images[repeat].append((highest, test.is_anomalous))
                result.scores.append((self._name(test), test.defect, repeat, highest))
                if repeat == 0:
                    panels = [("support", support), *_panels(outcome.image, target)]
                    panels.append(("score", score))
                    caption, scores = self._name(test), {"image score": highest}
                    about = (number, item.name, item.name, highest, caption, scores, panels)
                    self.gallery.add(*about, normal=not test.is_anomalous)
        if not result.scores:
            raise DataError(f"no test image could be read: {'; '.join(result.faults[:3])}")
        curves = [counts.curve() for counts in pixels]
        measured = []
        for scores, curve in zip(images, curves, strict=True):
            levels = {"image": Curve.of(*zip(*scores, strict=True)), "pixel": curve}
            values = {
                f"{level}_{name}": value
                for level, of_level in levels.items()
                for name, value in of_level.measures().items()
            }
            measured.append(values | {"aupro": curve.aupro()})
        result.measures = {m.name: [values[m.name] for values in measured] for m in ANOMALY}
        average = {"average_precision": measured[0]["pixel_ap"]}
        result.curve = {"name": item.name} | average | curves[0].points()
        return result

    def memory(self, item: AnomalyObject, repeat: int) -> Memory:
        """The memory of the supports of a repeat."""
        windowed = self.predictor.settings.resize_ratio is not None
        images = map(read_image, self._supports(item, repeat))
        normal = self.predictor.encode_normal(images, windowed=windowed)
        return self.predictor.encoder.remember([], normal, windowed=windowed)

    def _supports(self, item: AnomalyObject, repeat: int) -> list[Path]:
        return draw_normal(item.normal, item.name, self.shot, self.seed + repeat)

    def _name(self, test: AnomalyImage) -> str:
        return test.image.relative_to(self.root).as_posix()


def _measures(images: ScoreCounts, pixels: ScoreCounts) -> dict[str, float | None]:
    """The measures of `ANOMALY` of one object in one repeat; None where undefined."""
    values = {"aupro": pixels.aupro()}
    for level, counts in (("image", images), ("pixel", pixels)):
        best = counts.f1_max()
        values[f"{level}_auroc"] = counts.auroc()
        values[f"{level}_ap"] = counts.average_precision()
        values[f"{level}_f1_max"] = best[0] if best else None
    return values


def _panels(image: ImageStrips, target: np.ndarray) -> list[Panel]:
    """Pictures of a test image and, where it has a defect, of its true outline."""
    shown = image.pixels
    if shown is None:
        shown = image.thumbnail(THUMBNAIL)
        target = cv2.resize(target * 255, shown.shape[1::-1], interpolation=cv2.INTER_AREA)
    truth = [("truth", outline(shown, target > 0, TRUTH))] if target.any() else []
    return [("query", shown), *truth]


def _record(
    cfg: CfgNode, results: dict[str, ObjectResult], failed: list[str], folder: Path
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
    content = run_facts(cfg) | {"anomaly": report, "unreadable": faults} | provenance()
    write_json(folder / "metrics.json", content)
    write_json(folder / "curves.json", {"curves": [result.curve for result in results.values()]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("object", "image", "defect", "repeat", "score"))
    writer.writerows((name, *row) for name, result in results.items() for row in result.scores)
    write_text(folder / "images.csv", text.getvalue())
