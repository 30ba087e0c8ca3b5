"""The segment job: teach or recall defects, answer queries, write masks and tables."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from datasets.annotations import read_annotation
from datasets.folders import images_below, named_files, plain, some_images
from datasets.images import limit_pixels, read_image
from method_config.values import leaves
from models.memory import Memory
from tools.defects import find_defects
from tools.open_domain import Supports, write_answers
from tools.predictor import AUTO, Predictor
from tools.segment.journal import CSV, FOLDER, Journal, stamp_of, write_tables
from tools.segment.queries import Query, find_queries
from tools.segment.report import write_page
from tools.segment.watch import watch
from tools.support_file import fingerprint, load_memory, save_memory, type_of
from utils.distributed import (
    from_main,
    gather_objects,
    is_main,
    launch,
    rank,
    started_by_torchrun,
    world_size,
)
from utils.errors import ConfigError, DataError, WeightsError
from utils.logging import progress_bar, setup_logging
from utils.output_files import file_name, sha256_of
from utils.run_folder import claimed

LOG = logging.getLogger(__name__)
FORMAT = 1  # of the journal; another one has all images done anew
SUFFIX = ".safetensors"
SAME_ANSWERS = ("NUM_GPUS", "DIST_BACKEND", "OUTPUT_DIR", "RUN_NAME")  # settings without influence
Faults = dict[str, str]  # why an image could not be read, by file


def run(args: Namespace, cfg: CfgNode) -> bool:
    """Do what the arguments of `tools.segment` ask for, in one or many processes; returns whether
    a defect is left, under torchrun never, as it takes every exit code but 0 for a failure.

    Raises UserError, of a query that cannot be read after all others were done.
    """
    found = launch(segment, cfg.NUM_GPUS, cfg.DIST_BACKEND, args, cfg)
    return found and not started_by_torchrun()


def segment(args: Namespace, cfg: CfgNode) -> bool:
    """`run` in each process."""
    setup_logging()
    limit_pixels(cfg.DATASET.max_pixels)
    if args.watch and world_size() > 1:
        raise ConfigError("--watch takes one process; start it without torchrun and NUM_GPUS")
    with claimed(args.out, setting="--out"):
        queries = [] if args.watch else find_queries(args.queries, args.out)
        supports = read_supports(args) if args.support else {}
        warn_of_supports(queries, args)
        predictor = Predictor.from_config(cfg)
        memories = {kind: predictor.teach(pairs) for kind, pairs in supports.items()}
        if args.memory:
            memories = recall(args.memory, predictor, args.threshold)
        elif args.save_memory and is_main():
            keep(args.save_memory, memories, predictor)
        journal = Journal(args.out, settings_of(args, cfg, predictor, supports))
        setup_logging(args.out / FOLDER / "log.txt")
        bounds = {"min_area": args.min_area, "min_score": args.min_score}
        segmenter = Segmenter(predictor, memories, journal, bounds, args.scores)
        if args.watch:
            tables = partial(write_tables, journal, kinds=list(memories))
            faults = watch(args.queries, segmenter, tables)
            files = journal.current
        else:
            faults = answer_all(queries, segmenter)
            files = [query.file for query in queries if query.file not in faults]
        defects = 0
        if is_main():
            journal.join()
            defects, images = write_tables(journal, files, list(memories))
            about = f"{defects} defects in {images} of {len(files)} images"
            LOG.info("%s: %s, masks beside it", args.out / CSV, about)
            if args.report:
                write_page(journal, files, about, list(faults.values()), cfg.dump())
        defects = from_main(defects)  # and wait for what it writes
        if faults:
            some = "; ".join(list(faults.values())[:3])
            count = f"{len(faults)} of {len(files) + len(faults)} images"
            raise DataError(f"{count} could not be read: {some} (the others are in {args.out})")
        return defects > 0


@dataclass
class Segmenter:
    """Answers queries by memories of types of defect, and notes in a journal what is done."""

    predictor: Predictor
    memories: dict[str, Memory]
    journal: Journal
    bounds: dict[str, float]  # of the defects that are left
    scores: bool  # whether maps are written, too

    def answers(self, queries: Sequence[Query]) -> Iterator[tuple[Query, int, DataError | None]]:
        """Segment queries in order; yields each with its number of defects, or why it could not be
        read. OutputError: an answer cannot be written."""
        sources: deque = deque()

        def pictures() -> Iterator[tuple[Path, list[Memory]]]:
            for query in queries:
                stamp = stamp_of(query.path)  # before it is read, as it may change meanwhile
                content = sha256_of(query.path) if query.path.is_file() else ""
                sources.append((stamp, content))
                yield query.path, list(self.memories.values())

        outcomes = self.predictor.segment(pictures(), reproducible=True)
        for query, outcome in zip(queries, outcomes, strict=True):
            source = sources.popleft()
            if outcome.error is not None:
                yield query, 0, outcome.error
                continue
            main = [answers[self.predictor.main] for answers in outcome.answers]
            by_type = dict(zip(self.memories, main, strict=True))
            defects, by_type = find_defects(by_type, **self.bounds)
            about = (self.journal.out, query.name, outcome.image, by_type)
            written = write_answers(*about, scores=self.scores)
            self.journal.add(query, source, outcome.image.size, written, defects)
            yield query, len(defects), None


def answer_all(queries: Sequence[Query], segmenter: Segmenter) -> Faults:
    """Segment the queries that are not done yet, in each process its share; returns all faults."""
    journal, start = segmenter.journal, time.perf_counter()
    todo = [query for query in queries[rank() :: world_size()] if not journal.has(query)]
    faults: Faults = {}
    left = sum(gather_objects(len(todo)))
    if left < len(queries):
        LOG.info("%d of %d images are done already", len(queries) - left, len(queries))
    if others := set(journal.files) - {query.file for query in queries}:
        LOG.warning("%s holds answers to %d other images, such as %s, of an earlier command; the "
                    "tables leave them out", journal.out, len(others), min(others))  # fmt: skip
    for query, _, error in progress_bar(segmenter.answers(todo), total=len(todo), unit="image"):
        if error is not None:
            faults[query.file] = str(error)
    seconds = time.perf_counter() - start
    together = {file: fault for part in gather_objects(faults) for file, fault in part.items()}
    faults = {query.file: together[query.file] for query in queries if query.file in together}
    for fault in faults.values():
        LOG.warning("left out: %s", fault)
    if todo:
        LOG.info("%.2f s per image", seconds / len(todo))
    return faults


@named_files()
def read_supports(args: Namespace) -> Supports:
    """Images and masks of the supports by type of defect, sorted; each type has the images without
    defect, too.

    Raises:
        DataError: a file cannot be read, an image looks like a mask, or nothing is marked.
        ConfigError: types have no names, or names that are easily mixed up.
    """
    supports: Supports = {}
    normal: list[np.ndarray] = []
    for kind, image, annotation in args.support:
        pixels = read_image(image)
        values = np.unique(pixels)
        if set(values.tolist()) in ({0, 255}, {0, 1}) and np.ptp(pixels, axis=2).max() == 0:
            expected = "--support takes the image first, then its annotation"
            raise DataError(f"{image}: black and white alone, as a mask is; {expected}")
        masks = read_annotation(annotation, image, pixels.shape[:2], kind)
        marked = {kind: mask for kind, mask in masks.items() if mask.any()}
        if not marked:
            LOG.warning("%s marks nothing in %s, which counts as normal", annotation, image)
            normal.append(pixels)
        for kind, mask in marked.items():
            supports.setdefault(kind, []).append((pixels, mask))
    for place in args.normal:
        images = (images_below(place) or some_images(place)) if place.is_dir() else [place]
        normal += map(read_image, images)
    if not supports:
        raise DataError("no support marks a defect; give one that does")
    names = [kind or "(without a name)" for kind in sorted(supports)]
    if len({plain(name) for name in names}) < len(names) or ("" in supports and len(names) > 1):
        remedy = "name each alike, --support NAME=IMG,ANNOTATION"
        raise ConfigError(f"types of defect in the supports: {', '.join(names)}; {remedy}")
    return {kind: [*supports[kind], *((image, None) for image in normal)]
            for kind in sorted(supports)}  # fmt: skip


def warn_of_supports(queries: Iterable[Query], args: Namespace) -> None:
    """Warn of queries that are supports, too."""
    taught = {image.resolve() for _, image, _ in args.support}
    both = [query.path for query in queries if query.path.resolve() in taught]
    if both:
        LOG.warning("%d of the queries, such as %s, are supports, too: what they show was taught",
                    len(both), both[0])  # fmt: skip


def keep(path: Path, memories: dict[str, Memory], predictor: Predictor) -> None:
    """Write memories: one as the file `path`, several into the folder `path`.

    Raises:
        ConfigError: the folder holds memories of other types, which would be recalled, too.
        OutputError: a file cannot be written.
    """
    files = {kind: path / file_name(kind or "defect", SUFFIX) for kind in memories}
    if len(memories) == 1 and not path.is_dir():
        files = dict.fromkeys(memories, path)
    elif others := sorted(set(path.glob(f"*{SUFFIX}")) - set(files.values())):
        raise ConfigError(f"--save-memory {path}: holds {others[0].name} of another type; choose "
                          "another folder, or delete it")  # fmt: skip
    for kind, file in files.items():
        save_memory(file, memories[kind], predictor, kind)


def recall(path: Path, predictor: Predictor, threshold: str | None) -> dict[str, Memory]:
    """The memories that `keep` wrote, by type, sorted; a `threshold` that is given as a number
    counts in place of those that were chosen on the supports.

    Raises:
        WeightsError: there are none, one cannot be read, or two are of one type.
    """
    memories: dict[str, Memory] = {}
    for file in memory_files(path):
        memory, kind = load_memory(file, predictor), type_of(file)
        if kind in memories or (memories and "" in (kind, *memories)):
            raise WeightsError(f"{file}: of the same type as another file there; delete one")
        if threshold not in (None, AUTO):
            coarse = memory.coarse and replace(memory.coarse, thresholds={})
            memory = replace(memory, thresholds={}, coarse=coarse)
        memories[kind] = memory
    if not memories:
        raise WeightsError(f"{path}: no memory in this folder; --save-memory writes them")
    return dict(sorted(memories.items()))


def memory_files(path: Path) -> list[Path]:
    """The files of memories in a folder, sorted, or the path itself."""
    return sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]


def settings_of(args: Namespace, cfg: CfgNode, predictor: Predictor, supports: Supports) -> str:
    """A digest of all that decides the answers, but for the queries."""
    same = {key: str(value) for key, value in leaves(cfg) if key not in SAME_ANSWERS}
    options = [FORMAT, same, fingerprint(predictor), args.min_area, args.min_score, args.scores]
    total = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for kind, pairs in supports.items():
        for image, mask in pairs:
            total.update(repr((kind, image.shape, mask is None)).encode())
            total.update(image)
            total.update(b"" if mask is None else mask)
    for file in memory_files(args.memory) if args.memory else ():
        total.update(sha256_of(file).encode())
    return total.hexdigest()
