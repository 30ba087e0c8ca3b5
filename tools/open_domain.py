"""The open domain job: segment the query images of objects of which only a few masked examples are known."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from datasets.images import limit_pixels, read_image, read_mask
from datasets.open_domain import OpenDomainObject, read_open_domain, support_mask
from datasets.orientation import turned_back
from models.sofs import SupportMemory
from tools.answers import Outcome
from tools.gallery import Entry, query_panels, shrunk, support_panels, write_gallery
from tools.open_domain_files import write_answers
from tools.predictor import Predictor
from tools.results import Evaluation
from utils.errors import DataError
from utils.files import write_json
from utils.logging import setup_logging
from utils.metrics import intersection_union
from utils.names import file_name
from utils.run import create_run_folder, provenance, run_facts

LOG = logging.getLogger(__name__)
OPEN_DOMAIN_NAME = "opendomain_test_dataset"
SHOWN = 8  # queries of an object in the gallery

Supports = dict[str, list[tuple[np.ndarray, np.ndarray | None]]]


def segment_open_domain(cfg: CfgNode, folder: Path) -> None:
    """Segment every query of every object of the config.

    Writes what `tools.open_domain_files.write_answers` writes for each query; per object and type of defect a support
    file, for `Predictor.load_support`; metrics.json, and queries.csv and curves.json where there are true labels.
    """
    setup_logging()
    limit_pixels(cfg.DATASET.max_pixels)
    names = cfg.DATASET.open_domain_test_object
    objects = [read_open_domain(cfg.TEST.dataset_path, name, "TEST.dataset_path") for name in names]
    supports = [read_supports(cfg, item, number) for number, item in enumerate(objects)]
    predictor = Predictor.from_config(cfg)
    create_run_folder(folder, cfg)
    setup_logging(folder / "test.log")
    classes = {(o.name, i): o.class_name(kind) for o in objects for i, kind in enumerate(o.supports)}
    evaluation, entries, report = Evaluation(classes, list(predictor.methods)), [], {}
    for item, known in zip(objects, supports, strict=True):
        job = ObjectJob(predictor, item, known, folder / item.name, evaluation)
        report |= job.run()
        entries += job.entries()
    shots = [sum(map(len, item.supports.values())) for item in objects]
    write_json(folder / "metrics.json", run_facts(cfg) | {"objects": report, "shot": shots} | provenance())
    if evaluation.results:
        evaluation.write_queries(folder / "queries.csv")
        write_json(folder / "curves.json", evaluation.curve_report())
    write_gallery(folder / "gallery", iter(entries))
    LOG.info("masks, scores and overlays in %s", folder)


def read_supports(cfg: CfgNode, item: OpenDomainObject, number: int) -> Supports:
    """Images and masks of the chosen category of the supports of object `number`, by type of defect; to each type the
    images without defect, whose mask is None."""
    category_num, category = (
        values[number if len(values) > 1 else 0]
        for values in (cfg.DATASET.open_domain_object_category_num, cfg.DATASET.open_domain_specific_defect_category)
    )
    supports = {
        kind: [_support(image, mask, category, category_num) for image, mask in files]
        for kind, files in item.supports.items()
    }
    for kind, pairs in supports.items():
        if not any(mask.any() for _, mask in pairs):
            LOG.warning("%s: no support pixel is marked: what looks like no support is taken for a defect",
                        item.class_name(kind))  # fmt: skip
    normal = [(read_image(path), None) for path in item.normal]
    return {kind: [*pairs, *normal] for kind, pairs in supports.items()}


def _support(image: Path, mask: Path, category: int, category_num: int) -> tuple[np.ndarray, np.ndarray]:
    marked = turned_back(support_mask(mask, category, category_num), image)
    if marked.all():
        LOG.warning("%s marks every pixel: it shows no normal surface, and all of it is taken for the defect", mask)
    return read_image(image), marked


class ObjectJob:
    """The segmentation of one object.

    Args:
        predictor: who answers.
        item: the object's files.
        supports: what is known of it, by type of defect.
        folder: for its files.
        evaluation: where answers to labelled queries are counted.
    """

    def __init__(
        self, predictor: Predictor, item: OpenDomainObject, supports: Supports, folder: Path, evaluation: Evaluation
    ) -> None:
        self.predictor, self.item, self.supports = predictor, item, supports
        self.folder, self.evaluation = folder, evaluation
        self.shown: dict[str, list[tuple[float, Entry]]] = {kind: [] for kind in supports}

    def run(self) -> dict[str, Any]:
        """Segment every query once for all types of defect; returns the object's part of metrics.json.

        Raises:
            DataError: no query can be read.
        """
        faults: list[str] = []
        item, names = self.item, output_names(self.item.queries)
        memories = [self._memory(kind) for kind in self.supports]
        answered = self.predictor.segment_all(item.queries, memories)
        for number, (path, outcomes) in enumerate(zip(item.queries, answered, strict=True)):
            try:
                if outcomes[0].error is not None:
                    raise outcomes[0].error
                targets = [self._target(kind, path) for kind in self.supports]
            except DataError as error:
                LOG.warning("left out: %s", error)
                faults.append(str(error))
                continue
            answers = {k: o.answers[self.predictor.main] for k, o in zip(self.supports, outcomes, strict=True)}
            write_answers(self.folder, names[number], outcomes[0].image, answers)
            for place, (outcome, target) in enumerate(zip(outcomes, targets, strict=True)):
                self._count(place, number, outcome, target)
        if len(faults) == len(item.queries):
            raise DataError(f"{item.name}: no query could be read: {'; '.join(faults[:3])}")
        return {item.class_name(kind): self._report(place, faults) for place, kind in enumerate(self.supports)}

    def entries(self) -> list[Entry]:
        """What the gallery shows of it, by type, worst first; what has no IoU comes last."""
        return [entry for shown in self.shown.values() for entry in _ranked(shown)]

    def _memory(self, kind: str) -> SupportMemory:
        memory = self.predictor.set_support(*zip(*self.supports[kind], strict=True))
        self.predictor.save_support(self.folder / file_name(f"support_{kind}" if kind else "support", ".safetensors"))
        for method, threshold in memory.thresholds.items():
            LOG.info("%s: threshold of %s is %.3f", self.item.class_name(kind), method, threshold)
        return memory

    def _target(self, kind: str, query: Path) -> np.ndarray | None:
        labels = self.item.true_labels[kind]
        return turned_back(read_mask(labels[query.name]), query) if query.name in labels else None

    def _count(self, place: int, number: int, outcome: Outcome, target: np.ndarray | None) -> None:
        """Add the answer about one type of defect to the figures and, of the first queries, to the gallery."""
        query, kind = self.item.queries[number], list(self.supports)[place]
        scores: dict[str, float | None] = {}
        if target is not None:
            name = f"{self.item.name}/query/image/{query.name}"
            self.evaluation.add((0, number), (self.item.name, place), name, target, outcome.answers)
            counts = {m: intersection_union(a.label, target) for m, a in outcome.answers.items()}
            scores = {m: float(i[1] / u[1]) if u[1] else None for m, (i, u) in counts.items()}
        if number < SHOWN and outcome.image.pixels is not None:
            known = support_panels([(image, mask) for image, mask in self.supports[kind] if mask is not None])
            panels = known + query_panels(outcome.image.pixels, target, outcome.answers)
            panels = [(caption, shrunk(picture)) for caption, picture in panels]  # many are held until the end
            iou = scores.get(self.predictor.main)
            entry = Entry(self.item.class_name(kind), "", query.name, scores, panels)
            self.shown[kind].append((math.inf if iou is None else iou, entry))

    def _report(self, place: int, faults: list[str]) -> dict[str, Any]:
        kind = list(self.supports)[place]
        labelled, name, iou = len(self.item.true_labels[kind]), self.item.class_name(kind), {}
        if labelled:
            key = (self.item.name, place)
            iou = {method: self.evaluation.meters(method)[0].class_iou()[key] for method in self.evaluation.methods}
            shown = ", ".join(f"{m} {'-' if v is None else f'{100 * v:.2f} %'}" for m, v in iou.items())
            LOG.info("%s: pooled IoU over %d labelled queries: %s", name, labelled, shown)
        return {"queries": len(self.item.queries), "iou": iou, "unreadable": faults}


def _ranked(shown: list[tuple[float, Entry]]) -> list[Entry]:
    """Entries in the order of their IoU, infinite for none; the first and the last that differ are worst and best."""
    ordered = sorted(shown, key=lambda pair: pair[0])
    known = [iou for iou, _ in ordered if math.isfinite(iou)]
    ranks = {0: "worst", len(known) - 1: "best"} if known and known[0] < known[-1] else {}
    return [replace(entry, rank=ranks.get(place, "")) for place, (_, entry) in enumerate(ordered)]


def output_names(queries: list[Path]) -> list[str]:
    """A name for the files of each query: the query's without suffix, or whole where two differ by the suffix alone."""
    stems = [path.stem for path in queries]
    return stems if len(set(stems)) == len(stems) else [path.name for path in queries]
