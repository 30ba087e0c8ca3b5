"""The open domain job: segment the query images of objects of which only a few masked examples are known."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from datasets.images import limit_pixels, read_image
from datasets.orientation import turned_back
from datasets.readers.open_domain import OpenDomainObject, category_mask, read_open_domain
from models.sofs import SupportMemory
from tools.gallery import Entry, query_panels, shrunk, support_panels, write_gallery
from tools.job import begin
from tools.methods import weights_files
from tools.open_domain_files import write_answers
from tools.prediction.answers import Outcome
from tools.predictor import Predictor
from tools.results import Evaluation
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import DataError, OutputError
from utils.metrics.segmentation import intersection_union
from utils.output_files import file_name, write_json
from utils.run_folder import provenance, run_facts

LOG = logging.getLogger(__name__)
OPEN_DOMAIN_NAME = "opendomain_test_dataset"
SHOWN = 8  # queries of an object in the gallery

Supports = dict[str, list[tuple[np.ndarray, np.ndarray | None]]]


def segment_open_domain(cfg: CfgNode, folder: Path) -> list[str]:
    """Segment every query of every object of the config; each process takes its share of the queries. Returns a line
    for each object of which no query could be read, or whose files could not all be written.

    Writes what `tools.open_domain_files.write_answers` writes for each query; per object and type of defect a support
    file, for `Predictor.load_support`; metrics.json, and queries.csv and curves.json where there are true labels.
    """
    limit_pixels(cfg.DATASET.max_pixels)
    names = cfg.DATASET.open_domain_test_object
    objects = [read_open_domain(cfg.TEST.dataset_path, name, "TEST.dataset_path") for name in names]
    categories = [chosen_category(cfg, number) for number in range(len(objects))]
    supports = [
        read_supports(item, category) for item, category in zip(objects, categories, strict=True)
    ]
    predictor = Predictor.from_config(cfg)
    begin(folder, cfg, "test.log", reads=weights_files(cfg))
    classes = {
        (o.name, i): o.class_name(kind) for o in objects for i, kind in enumerate(o.supports)
    }
    own, jobs, first = Evaluation(classes, list(predictor.methods)), [], 0
    for item, category, known in zip(objects, categories, supports, strict=True):
        jobs.append(ObjectJob(predictor, item, category, known, folder / item.name, own, first))
        jobs[-1].run()
        first += len(item.queries)
    evaluation = Evaluation(classes, list(predictor.methods))
    evaluation.join(gather_objects(own))
    for job in jobs:
        job.join()
    failed = [job.failure for job in jobs if job.failure]
    if not any(job.answered for job in jobs):
        raise DataError("; ".join(failed))
    if is_main():
        _record(cfg, folder, jobs, evaluation)
    return failed


def _record(cfg: CfgNode, folder: Path, jobs: list[ObjectJob], evaluation: Evaluation) -> None:
    report = {name: part for job in jobs for name, part in job.report(evaluation).items()}
    shots = [sum(map(len, job.item.supports.values())) for job in jobs]
    write_json(
        folder / "metrics.json", run_facts(cfg) | {"objects": report, "shot": shots} | provenance()
    )
    if evaluation.results:
        evaluation.write_queries(folder / "queries.csv")
        write_json(folder / "curves.json", evaluation.curve_report())
    write_gallery(folder / "gallery", (entry for job in jobs for entry in job.entries()))
    LOG.info("masks, scores and overlays in %s", folder)


def chosen_category(cfg: CfgNode, number: int) -> tuple[int, int]:
    """The category to segment of object `number`, counted from 0, and how many categories its masks hold."""
    chosen, counts = (
        cfg.DATASET.open_domain_specific_defect_category,
        cfg.DATASET.open_domain_object_category_num,
    )
    return chosen[number if len(chosen) > 1 else 0], counts[number if len(counts) > 1 else 0]


def read_supports(item: OpenDomainObject, category: tuple[int, int]) -> Supports:
    """Images and masks of the category of an object's supports, see `chosen_category`, by type of defect; to each type
    the images without defect, whose mask is None."""
    supports = {
        kind: [
            (read_image(image), turned_back(category_mask(mask, *category), image, mask))
            for image, mask in files
        ]
        for kind, files in item.supports.items()
    }
    for kind, pairs in supports.items():
        if not any(mask.any() for _, mask in pairs):
            LOG.warning("%s: no support pixel is marked: what looks like no support is taken for a defect",
                        item.class_name(kind))  # fmt: skip
    normal = [(read_image(path), None) for path in item.normal]
    return {kind: [*pairs, *normal] for kind, pairs in supports.items()}


class ObjectJob:
    """The segmentation of one object.

    Args:
        predictor: who answers.
        item: the object's files.
        category: what is segmented, see `chosen_category`.
        supports: what is known of it, by type of defect.
        folder: for its files.
        evaluation: where answers to labelled queries are counted.
        first: number of its first query there.
    """

    def __init__(
        self,
        predictor: Predictor,
        item: OpenDomainObject,
        category: tuple[int, int],
        supports: Supports,
        folder: Path,
        evaluation: Evaluation,
        first: int = 0,
    ) -> None:
        self.predictor, self.item, self.category, self.supports = (
            predictor,
            item,
            category,
            supports,
        )
        self.folder, self.evaluation, self.first = folder, evaluation, first
        self.shown: list[Shown] = []
        self.faults: list[tuple[int, str]] = []
        self.answered: list[int] = []
        self.unwritten: list[str] = []

    def run(self) -> None:
        """Segment this process's queries, each once for all types of defect, up to the first file that cannot be
        written."""
        item, names = self.item, output_names(self.item.queries)
        try:
            memories = [self._memory(kind) for kind in self.supports]
            numbers = range(rank(), len(item.queries), world_size())
            answered = self.predictor.segment_all(
                (item.queries[number] for number in numbers), memories
            )
            for number, outcomes in zip(numbers, answered, strict=True):
                try:
                    if outcomes[0].error is not None:
                        raise outcomes[0].error
                    targets = [self._target(kind, item.queries[number]) for kind in self.supports]
                except DataError as error:
                    self.faults.append((number, str(error)))
                    continue
                answers = {
                    k: o.answers[self.predictor.main]
                    for k, o in zip(self.supports, outcomes, strict=True)
                }
                write_answers(self.folder, names[number], outcomes[0].image, answers)
                self.answered.append(number)
                for place, (outcome, target) in enumerate(zip(outcomes, targets, strict=True)):
                    self._count(place, number, outcome, target)
        except OutputError as error:  # what is found on the others is not lost
            self.unwritten.append(f"{item.name}: {error}")

    def join(self) -> None:
        """Take in what the other processes have found; all call it."""
        parts = gather_objects((self.shown, self.faults, self.answered, self.unwritten))
        shown, faults, answered, unwritten = (
            [one for part in kind for one in part] for kind in zip(*parts, strict=True)
        )
        self.shown = sorted(shown, key=lambda one: (one.place, one.number))
        self.faults, self.answered, self.unwritten = (
            sorted(faults),
            sorted(answered),
            sorted(set(unwritten)),
        )
        for _, fault in self.faults:
            LOG.warning("left out: %s", fault)

    @property
    def failure(self) -> str:
        """What is told where no query of the object could be read, or not all be written; "" otherwise."""
        if self.unwritten:
            return self.unwritten[0]
        if self.answered:
            return ""
        return f"{self.item.name}: no query could be read: {'; '.join(fault for _, fault in self.faults[:3])}"

    def report(self, evaluation: Evaluation) -> dict[str, Any]:
        """The object's part of metrics.json."""
        return {
            self.item.class_name(kind): self._report(place, evaluation)
            for place, kind in enumerate(self.supports)
        }

    def entries(self) -> list[Entry]:
        """What the gallery shows of it, by type, worst first; what has no IoU comes last."""
        places = range(len(self.supports))
        return [
            entry
            for place in places
            for entry in _ranked([one for one in self.shown if one.place == place])
        ]

    def _memory(self, kind: str) -> SupportMemory:
        memory = self.predictor.teach(self.supports[kind])
        if is_main():
            name = file_name(f"support_{kind}" if kind else "support", ".safetensors")
            self.predictor.save_support(self.folder / name)
        for method, threshold in memory.thresholds.items():
            LOG.info("%s: threshold of %s is %.3f", self.item.class_name(kind), method, threshold)
        return memory

    def _target(self, kind: str, query: Path) -> np.ndarray | None:
        label = self.item.true_labels[kind].get(query.name)
        return turned_back(category_mask(label, *self.category), query, label) if label else None

    def _count(self, place: int, number: int, outcome: Outcome, target: np.ndarray | None) -> None:
        """Add the answer about one type of defect to the figures and, of the first queries, to the gallery."""
        query, kind = self.item.queries[number], list(self.supports)[place]
        scores: dict[str, float | None] = {}
        if target is not None:
            name = f"{self.item.name}/query/image/{query.name}"
            self.evaluation.add(
                (0, self.first + number), (self.item.name, place), name, target, outcome.answers
            )
            counts = {m: intersection_union(a.label, target) for m, a in outcome.answers.items()}
            scores = {m: float(i[1] / u[1]) if u[1] else None for m, (i, u) in counts.items()}
        if number < SHOWN and outcome.image.pixels is not None:
            known = support_panels(
                [(image, mask) for image, mask in self.supports[kind] if mask is not None]
            )
            panels = known + query_panels(outcome.image.pixels, target, outcome.answers)
            panels = [
                (caption, shrunk(picture)) for caption, picture in panels
            ]  # many are held until the end
            iou = scores.get(self.predictor.main)
            entry = Entry(self.item.class_name(kind), "", query.name, scores, panels)
            self.shown.append(Shown(place, number, math.inf if iou is None else iou, entry))

    def _report(self, place: int, evaluation: Evaluation) -> dict[str, Any]:
        name, key, iou = (
            self.item.class_name(list(self.supports)[place]),
            (self.item.name, place),
            {},
        )
        labelled = len({result.number for result in evaluation.results if result.key == key})
        if labelled:
            iou = {
                method: evaluation.meters(method)[0].class_iou()[key]
                for method in evaluation.methods
            }
            shown = ", ".join(
                f"{m} {'-' if v is None else f'{100 * v:.2f} %'}" for m, v in iou.items()
            )
            LOG.info("%s: pooled IoU over %d labelled queries: %s", name, labelled, shown)
        counts = {"queries": len(self.answered), "labelled": labelled}
        return counts | {"iou": iou, "unreadable": [fault for _, fault in self.faults]}


@dataclass(frozen=True)
class Shown:
    """A query for the gallery: place of the type of defect, number, IoU (infinite for none), pictures."""

    place: int
    number: int
    iou: float
    entry: Entry


def _ranked(shown: list[Shown]) -> list[Entry]:
    """Entries in the order of their IoU; the first and the last that differ are worst and best."""
    ordered = sorted(shown, key=lambda one: one.iou)
    known = [one.iou for one in ordered if math.isfinite(one.iou)]
    ranks = {0: "worst", len(known) - 1: "best"} if known and known[0] < known[-1] else {}
    return [replace(one.entry, rank=ranks.get(place, "")) for place, one in enumerate(ordered)]


def output_names(queries: list[Path]) -> list[str]:
    """A name for the files of each query: the query's without suffix, or whole where two differ by the suffix alone."""
    stems = [path.stem for path in queries]
    return stems if len(set(stems)) == len(stems) else [path.name for path in queries]
