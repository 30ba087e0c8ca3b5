"""Measure methods on the queries of a test set: class IoU, mIoU and FB-IoU over repeats with new supports."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler, SequentialSampler

from datasets.episodes import EpisodeList, derive_seed
from datasets.images import read_image
from datasets.queries import EvaluationQueries, FailedQuery, Query
from datasets.readers.anomaly import draw_normal
from datasets.samples import SampleIndex
from datasets.views import SupportSet, ViewSettings
from models.sofs import SupportMemory
from models.support_tokens import LabelledTokens
from tools.loading import Loader
from tools.prediction.answers import Prediction
from tools.predictor import Predictor
from tools.results import Evaluation
from utils.distributed import gather_objects, rank, world_size
from utils.errors import DataError
from utils.logging import progress_bar
from utils.output_files import file_name
from utils.visualize import TRUTH, heat, outline, overlay, panels, write_image

LOG = logging.getLogger(__name__)
REPEATS_AT_ONCE = 5  # share the encoded queries; more would hold too many supports at a time


class NoQueryError(DataError):
    """No query of a test could be evaluated."""


@dataclass(frozen=True)
class Protocol:
    """How a test is run.

    Attributes:
        shot: supports per query.
        seed: of the first repeat; each further one adds 1.
        repeats: of the whole test.
        multiple: how often each query comes within a repeat.
        scale_by: `support` or `query`, see `EvaluationQueries`.
        query_images: see `EpisodeList`.
        normal_shot: further support images without defect per object and repeat.
        normal: where they are drawn from, by object.
        num_workers, batch_size: of the loader.
        figures: folder for figures; None: none.
        figure_probability: share of the queries of the first repeat with a figure.
    """

    shot: int
    seed: int
    repeats: int = 1
    multiple: int = 1
    scale_by: str = "support"
    query_images: frozenset[str] = frozenset()
    normal_shot: int = 0
    normal: dict[str, list[Path]] = field(default_factory=dict)
    num_workers: int = 0
    batch_size: int = 1
    figures: Path | None = None
    figure_probability: float = 0.0


def evaluate(
    predictor: Predictor, index: SampleIndex, settings: ViewSettings, protocol: Protocol
) -> Evaluation:
    """Run a test; with several processes each takes its share of the queries and all get the whole result.

    A query is encoded once for several repeats. An image that cannot be read is reported and counted, and the rest goes
    on.

    Raises:
        NoQueryError: no query at all could be evaluated; all processes raise it.
        DataError: a normal image cannot be read.
    """
    episodes = test_episodes(index, protocol)
    queries = (index.samples[i] for i in episodes.queries)
    names = {sample.class_key: sample.class_name for sample in queries}
    for name, repeat in product(protocol.normal, range(protocol.repeats)):
        for path in _drawn_normal(protocol, name, repeat):
            read_image(path)  # one that is broken ends the test before it has taken hours
    result, start = (
        Evaluation(names, list(predictor.methods), protocol.repeats),
        time.perf_counter(),
    )
    for first in range(0, protocol.repeats, REPEATS_AT_ONCE):
        repeats = range(first, min(first + REPEATS_AT_ONCE, protocol.repeats))
        own = _some_repeats(predictor, episodes, settings, protocol, repeats, names)
        result.join(gather_objects(own))
        answered = len({query.number for query in result.results})
        LOG.info(
            "%d queries, %d repeats in %.1f s", answered, repeats.stop, time.perf_counter() - start
        )
    for fault in result.faults:
        LOG.warning("left out: %s", fault)
    if not result.results:
        raise NoQueryError(f"no query could be evaluated: {'; '.join(result.faults[:3])}")
    return result


def _some_repeats(
    predictor: Predictor,
    episodes: EpisodeList,
    settings: ViewSettings,
    protocol: Protocol,
    repeats: Sequence[int],
    names: dict[tuple[str, int], str],
) -> Evaluation:
    """This process's part of some repeats."""
    numbers = range(rank(), len(episodes), world_size())
    queries = episode_queries(
        episodes, settings, protocol, repeats, numbers, keep_pairs=predictor.auto_threshold
    )
    found = Evaluation(names, list(predictor.methods), protocol.repeats)
    teacher = Teacher(predictor, protocol)
    draw = _figure_writer(protocol)
    for query in _load(queries, protocol):
        found.faults += [fault for fault in query.faults if fault not in found.faults]
        if isinstance(query, FailedQuery):
            found.failed_queries += len(repeats)
            continue
        found.failed_queries += len(repeats) - len(query.supports)
        for repeat, answers in teacher.answers(query).items():
            sample = query.sample
            found.add((repeat, query.number), sample.class_key, sample.image, query.target, answers)
            if repeat == 0:
                draw(query, answers)
    return found


def test_episodes(index: SampleIndex, protocol: Protocol) -> EpisodeList:
    """The episodes of the first repeat."""
    return EpisodeList(
        index, protocol.shot, protocol.seed, protocol.multiple, protocol.query_images
    )


def episode_queries(
    episodes: EpisodeList,
    settings: ViewSettings,
    protocol: Protocol,
    repeats: Sequence[int],
    numbers: Sequence[int],
    keep_pairs: bool = False,
) -> EvaluationQueries:
    """Some queries of a test by its protocol."""
    return EvaluationQueries(
        episodes,
        settings,
        repeats=repeats,
        scale_by=protocol.scale_by,
        keep_pairs=keep_pairs,
        numbers=numbers,
    )


class Teacher:
    """Has a predictor answer queries by the supports that they come with.

    Args:
        predictor: who answers.
        protocol: of the test.
    """

    def __init__(self, predictor: Predictor, protocol: Protocol) -> None:
        self.predictor, self.protocol = predictor, protocol
        self.object = ""
        self.normality: dict[tuple[int, bool], list[LabelledTokens]] = {}

    def answers(self, query: Query) -> dict[int, dict[str, Prediction]]:
        """By repeat, the answers of all methods."""
        memories = {
            repeat: self._memory(query, repeat, supports)
            for repeat, supports in query.supports.items()
        }
        if not memories:
            return {}
        (outcomes,) = self.predictor.segment_all([query.image], list(memories.values()))
        return {repeat: outcome.answers for repeat, outcome in zip(memories, outcomes, strict=True)}

    def _memory(self, query: Query, repeat: int, supports: SupportSet) -> SupportMemory:
        wanted = self.protocol.normal_shot > 0
        normal = self._normal(query.sample.object, repeat, supports.windowed) if wanted else []
        return self.predictor.remember(supports, normal)

    def _normal(self, name: str, repeat: int, windowed: bool) -> list[LabelledTokens]:
        """What the object's normal images of a repeat look like; kept until the next object."""
        if name != self.object:
            self.object, self.normality = name, {}
        if (repeat, windowed) not in self.normality:
            images = (read_image(path) for path in _drawn_normal(self.protocol, name, repeat))
            self.normality[repeat, windowed] = self.predictor.normality(images, windowed=windowed)
        return self.normality[repeat, windowed]


def _drawn_normal(protocol: Protocol, name: str, repeat: int) -> list[Path]:
    """The normal images of an object that join its supports in a repeat."""
    seed = protocol.seed + repeat
    return draw_normal(
        protocol.normal[name], name, protocol.normal_shot, seed, "DATASET.normal_shot"
    )


def _load(queries: EvaluationQueries, protocol: Protocol) -> Iterable[Query | FailedQuery]:
    batches = BatchSampler(SequentialSampler(queries), protocol.batch_size, drop_last=False)
    loader = Loader(queries, batches, num_workers=protocol.num_workers, collate=list)
    with progress_bar(total=len(queries), desc="test", unit="query") as bar:
        for batch in loader:
            for query in batch:
                yield query
                bar.update()


def _figure_writer(protocol: Protocol) -> Callable[[Query, dict[str, Prediction]], None]:
    def draw(query: Query, answers: dict[str, Prediction]) -> None:
        if protocol.figures is None:
            return
        if (
            random.Random(derive_seed(protocol.seed, query.number)).random()
            < protocol.figure_probability
        ):
            stem = f"{query.number:05d}_{query.sample.class_name}_{Path(query.sample.image).stem}"
            write_image(protocol.figures / file_name(stem, ".png"), query_figure(query, answers))

    return draw


def query_figure(query: Query, answers: dict[str, Prediction]) -> Any:
    """The query with its true outline, and each method's mask and score, side by side: (H, W, 3) uint8 RGB."""
    pictures = [(f"{query.sample.class_name}: truth", outline(query.image, query.target, TRUTH))]
    for method, answer in answers.items():
        pictures.append((method, overlay(query.image, answer.mask)))
        pictures.append((f"{method} score", heat(answer.score)))
    return panels(pictures)
