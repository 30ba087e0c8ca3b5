"""The open domain job: segment queries of objects by a few masked examples of each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from yacs.config import CfgNode

from datasets.images import limit_pixels, read_image
from datasets.large_images import ImageStrips
from datasets.orientation import turned_back
from datasets.readers.open_domain import (
    OpenDomainObject,
    category_mask,
    read_open_domain,
    support_mask,
)
from tools.evaluation import Evaluation
from tools.gallery import GalleryWriter, all_ranked, query_panels, support_panels
from tools.methods import weights_files
from tools.predictor import Prediction, Predictor
from tools.running import begin
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import DataError, OutputError
from utils.large_arrays import allocate, let_go
from utils.output_files import file_name, write_json
from utils.run_folder import provenance, run_facts
from utils.visualize import overlay, overlay_labels, write_image

LOG = logging.getLogger(__name__)
SHOWN = 8  # queries of an object in the gallery
SCORE_LEVELS = 65535
ROWS = 128  # of a large map, handled at once
OVERLAY_SIDE = 4096  # pixels, longer side of the overlay of an image that is read in strips

Supports = dict[str, list[tuple[np.ndarray, np.ndarray | None]]]  # by type of defect


@dataclass
class ObjectTask:
    """An object to segment, and the state of its queries.

    Attributes:
        item: its files.
        category: number of the category to segment, from 0, and count of categories in its masks.
        supports: images and masks by type of defect; each type has the images without defect, too.
        first: number of its first query in the evaluation.
        answered: numbers of the queries that were answered.
        faults: (number, reason) of those that could not be read.
    """

    item: OpenDomainObject
    category: tuple[int, int]
    supports: Supports
    first: int
    answered: list[int] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)

    def target(self, kind: str, query: Path) -> np.ndarray | None:
        """The true mask (h, w) {0, 1} of a type in a query; None where there is none."""
        label = self.item.true_labels[kind].get(query.name)
        return label and turned_back(category_mask(label, *self.category), query, label)


def segment_open_domain(cfg: CfgNode, folder: Path) -> list[str]:
    """Segment every query of every object of the config; each process takes its share.

    Writes what `write_answers` writes for each query; per object and type of defect a support file,
    for `Predictor.load_support`; metrics.json, a gallery, and queries.csv and curves.json where
    there are true labels.

    Returns:
        A line for each object whose files could not all be written, or no query be read.
    """
    limit_pixels(cfg.DATASET.max_pixels)
    tasks = read_tasks(cfg)
    predictor = Predictor.from_config(cfg)
    begin(folder, cfg, "test.log", reads=weights_files(cfg))
    classes = {(task.item.name, place): task.item.class_name(kind)
               for task in tasks for place, kind in enumerate(task.supports)}  # fmt: skip
    share, whole = (Evaluation(classes, list(predictor.methods)) for _ in range(2))
    gallery = GalleryWriter(folder / "gallery")
    states = []
    for task in tasks:
        unwritten = ""
        try:
            _segment_object(predictor, task, folder / task.item.name, share, gallery)
        except OutputError as error:  # the other objects are segmented
            unwritten = f"{task.item.name}: {error}"
        states.append((task.answered, task.faults, unwritten))
    parts = gather_objects((share, gallery.entries, states))
    evaluations, entries, states = zip(*parts, strict=True)
    whole.join(evaluations)
    failed = []
    for task, of_all in zip(tasks, zip(*states, strict=True), strict=True):
        task.answered = [number for answered, _, _ in of_all for number in answered]
        task.faults = sorted(fault for _, faults, _ in of_all for fault in faults)
        for _, fault in task.faults:
            LOG.warning("left out: %s", fault)
        if unwritten := [reason for _, _, reason in of_all if reason]:
            failed.append(unwritten[0])
        elif not task.answered:
            reasons = "; ".join(fault for _, fault in task.faults[:3])
            failed.append(f"{task.item.name}: no query could be read: {reasons}")
    if not any(task.answered for task in tasks):
        raise DataError("; ".join(failed))
    if is_main():
        _record(cfg, folder, tasks, whole, predictor.backbone.source)
        gallery.finish([entry for part in entries for entry in part], classes, all_ranked)
    return failed


def read_tasks(cfg: CfgNode) -> list[ObjectTask]:
    """The objects of the config, with their supports.

    Raises:
        DataError: an object has a file too few, or a support cannot be read.
    """
    tasks, first = [], 0
    chosen = cfg.DATASET.open_domain_specific_defect_category
    counts = cfg.DATASET.open_domain_object_category_num
    for number, name in enumerate(cfg.DATASET.open_domain_test_object):
        item, supports = read_open_domain(cfg.TEST.dataset_path, name, "TEST.dataset_path"), {}
        category = tuple(v[number if len(v) > 1 else 0] for v in (chosen, counts))
        normal = [(read_image(path), None) for path in item.normal]
        for kind, files in item.supports.items():
            pairs = [(read_image(image), support_mask(image, file, kind, *category))
                     for image, file in files]  # fmt: skip
            if not any(mask.any() for _, mask in pairs):
                LOG.warning("%s: no support pixel is marked: what looks like no support is taken "
                            "for a defect", item.class_name(kind))  # fmt: skip
            supports[kind] = [*pairs, *normal]
        tasks.append(ObjectTask(item, category, supports, first))
        first += len(item.queries)
    return tasks


def _segment_object(
    predictor: Predictor,
    task: ObjectTask,
    folder: Path,
    evaluation: Evaluation,
    gallery: GalleryWriter,
) -> None:
    """Segment this process's queries, each once for all types; those of the first queries join the
    gallery."""
    item, memories = task.item, []
    names = output_names([PurePath(query.name) for query in item.queries])
    numbers = range(rank(), len(item.queries), world_size())
    for kind, pairs in task.supports.items():
        memories.append(predictor.teach(pairs))
        if is_main():
            file = file_name(f"support_{kind}" if kind else "support", ".safetensors")
            predictor.save_support(folder / file)
        for method, threshold in memories[-1].thresholds.items():
            LOG.info("%s: threshold of %s is %.3f", item.class_name(kind), method, threshold)
    queries = ((item.queries[number], memories) for number in numbers)
    outcomes = predictor.segment(queries, reproducible=True)
    for number, outcome in zip(numbers, outcomes, strict=True):
        query, place = item.queries[number], task.first + number
        try:
            if outcome.error is not None:
                raise outcome.error
            targets = [task.target(kind, query) for kind in task.supports]
        except DataError as error:
            task.faults.append((number, str(error)))
            continue
        main = [answers[predictor.main] for answers in outcome.answers]
        by_type = dict(zip(task.supports, main, strict=True))
        write_answers(folder, names[number], outcome.image, by_type)
        task.answered.append(number)
        together = zip(task.supports.items(), outcome.answers, targets, strict=True)
        for order, ((kind, pairs), answers, target) in enumerate(together):
            key, ious = (item.name, order), dict[str, float | None]()
            if target is not None:
                name = f"{item.name}/query/image/{query.name}"
                ious = evaluation.add(0, place, key, name, target, answers)
            if number < SHOWN and outcome.image.pixels is not None:
                shown = support_panels([pair for pair in pairs if pair[1] is not None])
                shown += query_panels(outcome.image.pixels, target, answers)
                iou = ious.get(predictor.main)
                about = (key, item.class_name(kind), iou, query.name, ious, shown)
                gallery.add(place, *about)


def _record(
    cfg: CfgNode, folder: Path, tasks: list[ObjectTask], evaluation: Evaluation, weights: str
) -> None:
    objects: dict[str, Any] = {}
    ious = {method: evaluation.meters(method)[0].class_iou() for method in evaluation.methods}
    for task in tasks:
        for place, kind in enumerate(task.supports):
            name, key = task.item.class_name(kind), (task.item.name, place)
            labelled = len({r.number for r in evaluation.results if r.key == key})
            iou = {method: values[key] for method, values in ious.items() if labelled}
            if labelled:
                values = (f"{m} {'-' if v is None else f'{100 * v:.2f} %'}" for m, v in iou.items())
                counted = (name, labelled, ", ".join(values))
                LOG.info("%s: pooled IoU over %d labelled queries: %s", *counted)
            counts = {"queries": len(task.answered), "labelled": labelled}
            faults = [fault for _, fault in task.faults]
            objects[name] = counts | {"iou": iou, "unreadable": faults}
    shots = [sum(map(len, task.item.supports.values())) for task in tasks]
    content = run_facts(cfg, weights) | {"objects": objects, "shot": shots} | provenance()
    write_json(folder / "metrics.json", content)
    if evaluation.results:
        evaluation.write(folder)
    LOG.info("masks, scores and overlays in %s", folder)


def output_names(queries: Sequence[PurePath]) -> list[str]:
    """A name for the answers to each query, a relative path: without suffix unless two names differ
    by it alone."""
    names = [path.as_posix() for path in queries]
    stems = [name.removesuffix(path.suffix) for name, path in zip(names, queries, strict=True)]
    return stems if len(set(stems)) == len(stems) else names


def write_answers(
    folder: Path, name: str, image: ImageStrips, answers: dict[str, Prediction], *,
    scores: bool = True,
) -> list[Path]:  # fmt: skip
    """Write the answers about each type of defect to one query, at its size; returns the files.

    The files are `masks/NAME.png` {0, 255}, `scores/NAME.png` (16 bit, 65535 is probability 1) and
    `overlays/NAME.png`, which is shrunk for an image read in strips; NAME may lead through folders.
    Types with names have folders of masks and scores; `labels/NAME.png` is then 0 for background
    and i for the i-th type, at each pixel the one furthest above its threshold, and the overlay has
    a legend.
    """
    *above, name = name.split("/")
    several, file = list(answers) != [""], "/".join([*above, file_name(name, ".png")])
    written: list[Path] = []

    def write(kind: str, path: str, pixels: np.ndarray) -> None:
        write_image(folder / kind / path, pixels)
        written.append(folder / kind / path)

    size = next(iter(answers.values())).score.shape
    blocks = [np.s_[top : top + ROWS] for top in range(0, size[0], ROWS)]
    for kind, answer in answers.items():
        path = f"{kind}/{file}" if several else file
        marks = allocate(size, np.uint8)
        for rows in blocks:
            marks[rows] = (answer.label[rows] == 1) * np.uint8(255)
            let_go(marks, answer.label)
        write("masks", path, marks)
        let_go(marks)
        if scores:
            levels = allocate(size, np.uint16)
            for rows in blocks:
                levels[rows] = np.rint(np.minimum(answer.score[rows], 1) * SCORE_LEVELS)
                let_go(levels, answer.score)
            write("scores", path, levels)
            let_go(levels)
    labels = allocate(size, np.uint8)
    for rows in blocks:
        above = np.stack([np.where(a.label[rows] == 1, a.score[rows] - a.threshold, -np.inf)
                          for a in answers.values()])  # fmt: skip
        labels[rows] = np.where(np.isfinite(above.max(0)), above.argmax(0) + 1, 0)
        let_go(labels, *(array for a in answers.values() for array in (a.score, a.label)))
    if several:
        write("labels", file, labels)
    let_go(labels)
    shown = image.pixels if image.pixels is not None else image.thumbnail(OVERLAY_SIDE)
    if labels.shape != shown.shape[:2]:
        labels = _shrunk(labels, shown.shape[:2])
    picture = overlay_labels(shown, labels, list(answers)) if several else overlay(shown, labels)
    write("overlays", file, picture)
    return written


def _shrunk(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Labels at the size of a thumbnail, each pixel with the largest label in its block."""
    step, small = -(-max(labels.shape) // OVERLAY_SIDE), np.empty(size, np.uint8)
    for row in range(size[0]):
        lines = labels[row * step : (row + 1) * step].max(0)
        small[row] = np.maximum.reduceat(lines, np.arange(0, labels.shape[1], step))
        let_go(labels)
    return small
