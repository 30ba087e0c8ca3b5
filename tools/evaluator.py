"""The test job: measure methods on the test objects of a split, over repeats with new supports."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, SequentialSampler
from yacs.config import CfgNode

from datasets.build import build_normal_images, build_test_index, view_settings
from datasets.episodes import NORMAL_STREAM, EpisodeList, derive_seed
from datasets.images import read_image
from datasets.large_images import ImageStrips
from datasets.queries import EvaluationQueries, NormalImage, NormalQueries, NormalQuery, Query
from datasets.readers import reader_of
from datasets.readers.anomaly import draw_normal
from datasets.samples import SampleIndex
from datasets.views import SupportSet
from models.memory import Memory
from tools.anomaly import detect_anomalies
from tools.evaluation import Evaluation
from tools.gallery import Entry, GalleryWriter, Panel, query_panels, support_panels
from tools.loading import Loader
from tools.methods import tests_a_head, weights_files
from tools.open_domain import segment_open_domain
from tools.predictor import Prediction, Predictor
from tools.running import begin, run_job
from utils.distributed import barrier, gather_objects, is_main, rank, world_size
from utils.errors import DataError
from utils.logging import progress_bar
from utils.output_files import file_name, sha256_of, write_json
from utils.run_folder import provenance, run_facts
from utils.visualize import TRUTH, heat, outline, overlay, panels, write_image

LOG = logging.getLogger(__name__)
Remember = Callable[[SupportSet, str, int], Memory]
REPEATS_AT_ONCE = 5  # share the encoded queries; more would hold too many supports in memory
SUPPORT_BYTES = 1 << 30  # of the encoded supports that are kept
JOBS = {"anomaly": detect_anomalies, "open_domain": segment_open_domain}  # by kind of data set


class NoQueryError(DataError):
    """No query of a test could be evaluated."""


def run_test(cfg: CfgNode, config_file: str) -> Path:
    """Run test.py's job in NUM_GPUS processes; returns the run's folder."""
    job = JOBS.get(reader_of(cfg.DATASET.name).kind, test_split)
    return run_job(job, cfg, config_file, cfg.NUM_GPUS)


def test_split(cfg: CfgNode, folder: Path) -> list[str]:
    """Evaluate every test set of the config; log, metrics, figures and gallery go into `folder`.

    Returns:
        A line for each set that could not be tested.
    """
    names = cfg.DATASET.sub_datasets
    tests = [SplitTest(cfg, build_test_index(cfg, name), folder, name) for name in names]
    predictor = Predictor.from_config(cfg)
    begin(folder, cfg, "test.log", reads=weights_files(cfg))
    head = {"head_sha256": sha256_of(cfg.TEST.load_model_path)} if tests_a_head(cfg) else {}
    failed = []
    for test in tests:
        try:
            test.run(predictor, f"test of {test.name}", gallery=True, **head)
        except NoQueryError as error:  # the other sets are tested
            failed.append(f"{test.name} could not be tested: {error}")
    if len(failed) == len(tests):
        raise DataError("; ".join(failed))
    return failed


class SplitTest:
    """A test of an index by the protocol of the config.

    Args:
        folder: of the run.
        name: of the test set; files of others than `original` carry it.
        query_images: the images that are queries of a validation, once, while all others are
            supports; empty: each image is both.
    """

    def __init__(
        self,
        cfg: CfgNode,
        index: SampleIndex,
        folder: Path,
        name: str,
        query_images: frozenset[str] = frozenset(),
    ) -> None:
        data, self.validates = cfg.DATASET, bool(query_images)
        self.cfg, self.index, self.folder, self.name = cfg, index, folder, name
        self.suffix = "" if name == "original" else f"_{name.replace('/', '_')}"
        self.repeats = 1 if self.validates else data.few_shot_repeated_multiple
        multiple = 1 if self.validates else data.test_sample_repeated_multiple
        self.episodes = EpisodeList(index, data.shot, cfg.RNG_SEED, multiple, query_images)
        self.normal = {} if self.validates else build_normal_images(cfg, index.objects(), name)
        self.settings = view_settings(cfg)

    def run(
        self, predictor: Predictor, title: str, *, gallery: bool = False, **facts: Any
    ) -> Evaluation:
        """Evaluate and record; each process takes its share, and all return the whole. An image
        that cannot be read is reported and counted. `title` is that of the table in the log, and
        `facts` are further entries of metrics.json.

        Raises:
            NoQueryError: no query at all could be evaluated; all processes raise it.
            DataError: a normal image cannot be read.
        """
        for note in self.index.notes:
            LOG.info("%s", note)
        counts = (len(self.index), len(self.index.classes()))
        LOG.info("%d samples of %d classes in %s", *counts, self.index.root)
        if is_main():  # removes pictures of an earlier test
            for kind in ("figures", "gallery"):
                shutil.rmtree(self.folder / f"{kind}{self.suffix}", ignore_errors=True)
        barrier()
        for name, repeat in product(self.normal, range(self.repeats)):
            for path in self.normal_images(name, repeat):
                read_image(path)  # a broken one ends the test now and not after hours
        shown = GalleryWriter(self.folder / f"gallery{self.suffix}") if gallery else None
        evaluation, start = self._empty(predictor), time.perf_counter()
        for first in range(0, self.repeats, REPEATS_AT_ONCE):
            repeats = range(first, min(first + REPEATS_AT_ONCE, self.repeats))
            evaluation.join(gather_objects(self._evaluate(predictor, repeats, shown)))
            queries = len({result.number for result in evaluation.results})
            seconds = time.perf_counter() - start
            LOG.info("%d queries, %d repeats in %.1f s", queries, repeats.stop, seconds)
        for fault in evaluation.faults:
            LOG.warning("left out: %s", fault)
        if not evaluation.results:
            raise NoQueryError(f"no query could be evaluated: {'; '.join(evaluation.faults[:3])}")
        if is_main():
            data = self.cfg.DATASET
            LOG.info("%s, split %d, %d-shot\n%s", title, data.split, data.shot, evaluation.table())
            head = run_facts(self.cfg, predictor.backbone.source)
            content = head | evaluation.report() | facts | provenance()
            write_json(self.folder / f"metrics{self.suffix}.json", content)
            evaluation.write(self.folder, self.suffix)
            write_json(self.folder / f"timing{self.suffix}.json", evaluation.timing())
            LOG.info("figures and metrics in %s", self.folder)
        if shown is not None:
            entries = [entry for part in gather_objects(shown.entries) for entry in part]
            if is_main():
                shown.finish(entries, evaluation.class_names, before=self._support_panels)
        return evaluation

    def _empty(self, predictor: Predictor) -> Evaluation:
        queries = (self.index.samples[i] for i in self.episodes.queries)
        names = {sample.class_key: sample.class_name for sample in queries}
        return Evaluation(names, list(predictor.methods), self.repeats)

    def _evaluate(
        self, predictor: Predictor, repeats: Sequence[int], gallery: GalleryWriter | None
    ) -> Evaluation:
        """This process's share of some repeats: load queries, encode supports, segment, count."""
        part, remember = self._empty(predictor), self._remember(predictor)
        start = time.perf_counter()
        drawing = self._segment_queries(part, predictor, remember, repeats, gallery)
        part.seconds = time.perf_counter() - start - drawing
        self._segment_normal(part, predictor, remember, repeats)
        return part

    def _remember(self, predictor: Predictor) -> Remember:
        """What makes a memory of the supports of a class, of its object, in a repeat: the normal
        images of that repeat join them. Supports are encoded once for many queries."""
        kept: dict[bytes, Memory] = {}  # the least recently used comes first

        def encode(images: Tensor, masks: Tensor) -> Memory:
            content = hashlib.blake2b(images.numpy())
            content.update(masks.numpy())
            part = kept.pop(content.digest(), None) or predictor.encoder.encode(images, masks)
            kept[content.digest()] = part
            while len(kept) > 1 and sum(p.nbytes for p in kept.values()) > SUPPORT_BYTES:
                kept.pop(next(iter(kept)))
            return part

        @lru_cache(REPEATS_AT_ONCE)
        def images(name: str, repeat: int) -> list[np.ndarray]:
            return [read_image(path) for path in self.normal_images(name, repeat)]

        @lru_cache(4 * REPEATS_AT_ONCE)
        def normal(name: str, repeat: int, window: int) -> list[Memory]:
            return predictor.encode_normal(images(name, repeat), window=window)

        def remember(views: SupportSet, name: str, repeat: int) -> Memory:
            of_object = (lambda side: normal(name, repeat, side)), images(name, repeat)
            return predictor.remember(views, *of_object, encode)

        return remember

    def _segment_queries(
        self,
        part: Evaluation,
        predictor: Predictor,
        remember: Remember,
        repeats: Sequence[int],
        gallery: GalleryWriter | None,
    ) -> float:
        """Count this process's share of the queries in `part`; returns the seconds that pictures of
        them took."""
        numbers, drawing = range(rank(), len(self.episodes), world_size()), 0.0
        keep_pairs = predictor.needs_pairs(self.episodes.shot, self.cfg.DATASET.normal_shot)
        queries = self._queries(repeats, numbers, keep_pairs)
        pending: deque[Query] = deque()

        def stream() -> Iterator[tuple[ImageStrips, list[Memory]]]:
            for query in self._loaded(queries):
                part.faults += [fault for fault in query.faults if fault not in part.faults]
                part.failed_queries += len(repeats) - len(query.supports)
                if not query.supports:
                    bar.update()
                    continue
                pending.append(query)
                name, taught = query.sample.object, query.supports.items()
                yield ImageStrips(query.image), [remember(v, name, repeat) for repeat, v in taught]

        with progress_bar(total=len(queries), desc="test", unit="query") as bar:
            for outcome in predictor.segment(stream(), reproducible=True):
                query = pending.popleft()
                number, sample, target = query.number, query.sample, query.target
                key, image = sample.class_key, sample.image
                for repeat, answers in zip(query.supports, outcome.answers, strict=True):
                    ious = part.add(repeat, number, key, image, target, answers)
                    start = time.perf_counter()
                    if repeat == 0:
                        self._draw_figure(query, answers)
                    if repeat == 0 and gallery is not None:
                        shown = query_panels(query.image, target, answers)
                        about = (key, sample.class_name, ious[predictor.main], image, ious)
                        gallery.add(number, *about, shown)
                    drawing += time.perf_counter() - start
                bar.update()
        return drawing

    def _segment_normal(
        self, part: Evaluation, predictor: Predictor, remember: Remember, repeats: Sequence[int]
    ) -> None:
        """Look in this process's share of the normal images for every class of their object."""
        images = self.normal_queries()
        numbers = range(rank(), len(images), world_size())
        if not numbers:
            return
        keep_pairs = predictor.needs_pairs(self.episodes.shot, self.cfg.DATASET.normal_shot)
        options = {"repeats": repeats, "numbers": numbers, "keep_pairs": keep_pairs}
        queries = NormalQueries(self.episodes, self.settings, images, **options)
        pending: deque[NormalQuery] = deque()

        def stream() -> Iterator[tuple[ImageStrips, list[Memory]]]:
            for query in self._loaded(queries):
                part.faults += [fault for fault in query.faults if fault not in part.faults]
                if query.supports:
                    pending.append(query)
                    name, taught = query.normal.object, query.supports.items()
                    memories = [remember(views, name, repeat) for (_, repeat), views in taught]
                    yield ImageStrips(query.image), memories

        for outcome in predictor.segment(stream(), reproducible=True):
            query = pending.popleft()
            image = Path(os.path.relpath(query.normal.path, self.index.root)).as_posix()
            for (key, repeat), answers in zip(query.supports, outcome.answers, strict=True):
                part.add_normal(repeat, query.number, key, image, answers)

    def normal_queries(self) -> list[NormalImage]:
        """The normal images of all objects that are queries: of each TEST.normal_queries at most,
        drawn by seed and object. One that joins the supports in a repeat is no query of that
        repeat, so those that do so most seldom come first."""
        chosen = []
        for name, images in self.normal.items() if self.cfg.TEST.normal_queries else ():
            taught = [set(self.normal_images(name, repeat)) for repeat in range(self.repeats)]
            seed = derive_seed(self.cfg.RNG_SEED, NORMAL_STREAM)
            order = draw_normal(images, name, len(images), seed)
            order.sort(key=lambda path, taught=taught: sum(path in paths for paths in taught))
            for path in order[: self.cfg.TEST.normal_queries]:
                free = tuple(repeat for repeat, paths in enumerate(taught) if path not in paths)
                chosen += [NormalImage(name, path, free)] if free else []
        return chosen

    def _loaded(self, queries: Dataset) -> Iterator[Any]:
        """The items of a data set in order, read ahead by the loader's workers."""
        batches = BatchSampler(SequentialSampler(queries), self.cfg.TEST_SETUPS.batch_size, False)
        workers = self.cfg.TRAIN_SETUPS.num_workers
        for batch in Loader(queries, batches, num_workers=workers, collate=list):
            yield from batch

    def _queries(
        self, repeats: Sequence[int], numbers: Sequence[int], keep_pairs: bool
    ) -> EvaluationQueries:
        by_query = self.cfg.TEST.protocol == "published"
        options = {"repeats": repeats, "numbers": numbers, "keep_pairs": keep_pairs}
        return EvaluationQueries(self.episodes, self.settings, scale_by_query=by_query, **options)

    def normal_images(self, name: str, repeat: int) -> list[Path]:
        """The normal images of an object that join its supports in a repeat."""
        if name not in self.normal:
            return []
        seed, shot = self.cfg.RNG_SEED + repeat, self.cfg.DATASET.normal_shot
        return draw_normal(self.normal[name], name, shot, seed, "DATASET.normal_shot")

    def _support_panels(self, entry: Entry) -> list[Panel]:
        """Pictures of the supports of a query in the first repeat, read once more."""
        query = self._queries((0,), [entry.number], keep_pairs=True)[0]
        return support_panels(query.supports[0].pairs) if query.supports else []

    def _draw_figure(self, query: Query, answers: dict[str, Prediction]) -> None:
        """Draw the true outline and each method's mask and score of some queries, side by side."""
        visualize = self.cfg.TEST.VISUALIZE
        drawn = random.Random(derive_seed(self.cfg.RNG_SEED, query.number)).random()
        if self.validates or not visualize.save_figure or drawn >= visualize.sample_prob:
            return
        name, image = query.sample.class_name, query.image
        pictures = [(f"{name}: truth", outline(image, query.target, TRUTH))]
        for method, answer in answers.items():
            pictures.append((method, overlay(image, answer.mask)))
            pictures.append((f"{method} score", heat(answer.score)))
        file = file_name(f"{query.number:05d}_{name}_{Path(query.sample.image).stem}", ".png")
        write_image(self.folder / f"figures{self.suffix}" / file, panels(pictures))
