"""Few-shot anomaly detection: supports are normal images alone, the abnormal prior answers (MVTec AD, VisA)."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from datasets.build import build_anomaly_objects
from datasets.images import read_image
from datasets.readers.anomaly import AnomalyImage, AnomalyObject, draw_normal, read_target
from models.build import build_prior_method
from models.sofs import SupportMemory
from tools.gallery import Entry, ranks, write_gallery
from tools.job import begin
from tools.methods import PRIOR, weights_files
from tools.predictor import Predictor
from tools.results import summary
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import DataError, UserError
from utils.logging import progress_bar
from utils.metrics.score_curves import FINE, Curve, ScoreCounts
from utils.metrics.segmentation import mean_std
from utils.output_files import write_json, write_text
from utils.run_folder import provenance, run_facts
from utils.tables import anomaly_table
from utils.visualize import TRUTH, heat, outline

LOG = logging.getLogger(__name__)
MEASURES = (
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro",
)
LEAST = 1e-6  # highest score of an object whose images are all alike


@dataclass
class ObjectResult:
    """What was found on one object.

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

    def report(self) -> dict[str, Any]:
        """As plain JSON: how many images were tested, and mean and spread of each measure."""
        images = len({image for image, *_ in self.scores})
        return {"images": images} | {
            name: summary(values) for name, values in self.measures.items()
        }


def detect_anomalies(cfg: CfgNode, folder: Path) -> list[str]:
    """Test every object of the config; each process takes its share of the objects. Returns a line for each object that
    could not be tested.

    Writes metrics.json, the score of every image to images.csv, curves.json and a gallery.
    """
    objects = build_anomaly_objects(cfg)
    predictor = Predictor.from_config(cfg, {PRIOR: build_prior_method(cfg)})
    begin(folder, cfg, "test.log", reads=weights_files(cfg))
    if cfg.TEST.method != PRIOR:
        LOG.warning(
            "TEST.method is %s: with normal images alone the answer is that of %r",
            cfg.TEST.method,
            PRIOR,
        )
    for item in objects:
        kinds = {test.is_anomalous for test in item.test}
        if len(kinds) == 1:
            lacking, figures = (
                ("without", "figure of whole images") if True in kinds else ("with", "figure")
            )
            LOG.warning(
                "%s: there is no test image %s a defect, so no %s can be given",
                item.name,
                lacking,
                figures,
            )
    detection = AnomalyTest(cfg, predictor)
    own: dict[str, ObjectResult | str] = {}
    for item in objects[rank() :: world_size()]:
        try:
            own[item.name] = detection.run(item)
        except UserError as error:  # what is found on the others is not lost
            own[item.name] = f"{item.name}: {error}"
    found = {name: result for part in gather_objects(own) for name, result in part.items()}
    results = {
        item.name: found[item.name]
        for item in objects
        if isinstance(found[item.name], ObjectResult)
    }
    failed = [found[item.name] for item in objects if item.name not in results]
    for fault in (fault for result in results.values() for fault in result.faults):
        LOG.warning("left out: %s", fault)
    if not results:
        raise DataError("; ".join(failed))
    if is_main():
        _record(cfg, results, failed, folder)
        tested = (item for item in objects if item.name in results)
        shown = (entry for item in tested for entry in detection.entries(item, results[item.name]))
        write_gallery(folder / "gallery", shown)
    return failed


class AnomalyTest:
    """A test by the config.

    Args:
        cfg: the config.
        predictor: whose only method is the prior.
    """

    def __init__(self, cfg: CfgNode, predictor: Predictor) -> None:
        self.root = Path(cfg.TEST.dataset_path)
        self.shot, self.seed, self.repeats = (
            cfg.DATASET.shot,
            cfg.RNG_SEED,
            cfg.DATASET.few_shot_repeated_multiple,
        )
        self.predictor = predictor

    def run(self, item: AnomalyObject) -> ObjectResult:
        """Score every test image of an object, encoded once for all repeats.

        Raises:
            DataError: a support cannot be read, or no test image can.
        """
        memories = [self.memory(item, repeat) for repeat in range(self.repeats)]
        result = ObjectResult()
        pixels = [ScoreCounts(FINE, 2.0, with_regions=True) for _ in memories]
        images: list[list[tuple[float, bool]]] = [[] for _ in memories]
        outcomes = self.predictor.segment_all((test.image for test in item.test), memories)
        for test, answers in zip(progress_bar(item.test, desc=item.name), outcomes, strict=True):
            try:
                if answers[0].error is not None:
                    raise answers[0].error
                target = read_target(test, answers[0].image.size)
            except DataError as error:
                result.faults.append(str(error))
                continue
            for repeat, answer in enumerate(answers):
                score = answer.answers[PRIOR].score
                pixels[repeat].update(score, target)
                images[repeat].append((float(score.max()), test.is_anomalous))
                result.scores.append((self._name(test), test.defect, repeat, float(score.max())))
        if not result.scores:
            raise DataError(f"no test image could be read: {'; '.join(result.faults[:3])}")
        curves = [counts.curve() for counts in pixels]
        measured = [_measures(*pair) for pair in zip(images, curves, strict=True)]
        result.measures = {name: [values[name] for values in measured] for name in MEASURES}
        curve = {"average_precision": measured[0]["pixel_ap"]} | curves[0].points()
        result.curve = {"name": item.name} | curve
        return result

    def memory(self, item: AnomalyObject, repeat: int) -> SupportMemory:
        """What the supports of a repeat look like."""
        windowed = self.predictor.settings.resize_ratio is not None
        images = (read_image(path) for path in self._supports(item, repeat))
        normal = self.predictor.normality(images, windowed=windowed)
        return self.predictor.encoder.remember([], normal, windowed=windowed)

    def entries(self, item: AnomalyObject, result: ObjectResult) -> Iterator[Entry]:
        """Of the first repeat, the defects with the lowest, the median and the highest score, and the normal image with
        the highest one; score maps are shown as shares of the highest score."""
        tests = {self._name(test): test for test in item.test}
        scores = sorted((score, name) for name, _, repeat, score in result.scores if repeat == 0)
        abnormal, normal = (
            [pair for pair in scores if tests[pair[1]].is_anomalous is kind]
            for kind in (True, False)
        )
        shown = [(name, *abnormal[place]) for name, place in ranks(len(abnormal)).items()]
        shown += [("highest of the normal ones", *pair) for pair in normal[-1:]]
        memory, most = self.memory(item, 0), max(scores[-1][0], LEAST)
        support = read_image(self._supports(item, 0)[0])
        outcomes = self.predictor.segment((tests[name].image for *_, name in shown), memory)
        for (place, score, name), outcome in zip(shown, outcomes, strict=True):
            image, answer = read_image(tests[name].image), outcome.answers[PRIOR]
            target = read_target(tests[name], image.shape[:2])
            truth = [("truth", outline(image, target, TRUTH))] if target.any() else []
            panels = [
                ("support", support),
                ("query", image),
                *truth,
                ("score", heat(answer.score / most)),
            ]
            yield Entry(item.name, place, name, {"image score": score}, panels)

    def _supports(self, item: AnomalyObject, repeat: int) -> list[Path]:
        return draw_normal(item.normal, item.name, self.shot, self.seed + repeat)

    def _name(self, test: AnomalyImage) -> str:
        return test.image.relative_to(self.root).as_posix()


def _record(
    cfg: CfgNode, results: dict[str, ObjectResult], failed: list[str], folder: Path
) -> None:
    objects = {name: result.report() for name, result in results.items()}
    report = {
        "objects": objects,
        "mean": {measure: mean_of(results, measure) for measure in MEASURES},
    }
    faults = [fault for result in results.values() for fault in result.faults] + failed
    LOG.info("%d-shot anomaly detection\n%s", cfg.DATASET.shot, anomaly_table(report))
    write_json(
        folder / "metrics.json",
        run_facts(cfg) | {"anomaly": report, "unreadable": faults} | provenance(),
    )
    write_json(folder / "curves.json", {"curves": [result.curve for result in results.values()]})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("object", "image", "defect", "repeat", "score"))
    writer.writerows((name, *row) for name, result in results.items() for row in result.scores)
    write_text(folder / "images.csv", text.getvalue())


def _measures(images: list[tuple[float, bool]], pixels: Curve) -> dict[str, float | None]:
    """The seven measures of one object in one repeat, from the scores and labels of its images."""
    levels = {"image": Curve.of(*zip(*images, strict=True)), "pixel": pixels}
    found = {f"{k}_{n}": v for k, curve in levels.items() for n, v in curve.measures().items()}
    return found | {"aupro": pixels.aupro()}


def mean_of(results: dict[str, ObjectResult], measure: str) -> dict[str, Any]:
    """Mean over objects in each repeat, without undefined values; mean and spread of that over repeats."""
    repeats = zip(*(result.measures[measure] for result in results.values()), strict=True)
    return summary([mean_std(list(values))[0] for values in repeats])
