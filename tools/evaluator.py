"""Measure methods on the queries of a test set: class IoU, mIoU and FB-IoU over repeats with new supports."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.episodes import EpisodeList, ViewSettings, derive_seed
from datasets.queries import EvaluationQueries, FailedQuery, Query
from datasets.samples import SampleIndex
from tools.answers import Prediction
from tools.predictor import Predictor
from utils.distributed import gather_objects, is_main, rank, sum_over_processes, world_size
from utils.errors import DataError
from utils.metrics import SegmentationMeter, mean_std
from utils.tables import method_table
from utils.visualize import TRUTH, heat, outline, overlay, panels, write_image

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Protocol:
    """How a test is run.

    Attributes:
        shot: supports per query.
        seed: of the first repeat; each further one adds 1.
        repeats: of the whole test.
        multiple: how often each query comes within a repeat.
        scale_by: `support` or `query`, see `EvaluationQueries`.
        num_workers, batch_size: of the loader.
        figures: folder for figures; None: none.
        figure_probability: share of the queries of the first repeat with a figure.
    """

    shot: int
    seed: int
    repeats: int = 1
    multiple: int = 1
    scale_by: str = "support"
    num_workers: int = 0
    batch_size: int = 1
    figures: Path | None = None
    figure_probability: float = 0.0


@dataclass
class Evaluation:
    """What a test found: one meter per method and repeat, and the files that could not be read."""

    class_names: dict[tuple[str, int], str]
    meters: dict[str, list[SegmentationMeter]]
    faults: list[str] = field(default_factory=list)
    failed_queries: int = 0

    def report(self) -> dict[str, Any]:
        """Figures as plain JSON: IoU as fractions, None where undefined."""
        methods = {name: self._method(meters) for name, meters in self.meters.items()}
        return {"methods": methods, "unreadable": self.faults, "failed_queries": self.failed_queries}

    def _method(self, meters: list[SegmentationMeter]) -> dict[str, Any]:
        classes = {}
        for position, (key, name) in enumerate(self.class_names.items()):
            classes[name] = _summary([m.class_iou()[key] for m in meters], "iou")
            classes[name]["queries"] = int(sum(m.queries()[position] for m in meters))
        return {"miou": _summary([m.miou() for m in meters]), "fb_iou": _summary([m.fb_iou() for m in meters]),
                "classes": classes}  # fmt: skip

    def miou(self, method: str) -> float | None:
        """Mean over repeats of the mIoU of one method."""
        return mean_std([m.miou() for m in self.meters[method]])[0]

    def table(self) -> str:
        """Class IoU, mIoU and FB-IoU in percent, a column per method."""
        return method_table(self.report()["methods"])


def evaluate(predictor: Predictor, index: SampleIndex, settings: ViewSettings, protocol: Protocol) -> Evaluation:
    """Run a test; with several processes each takes its share of the queries and all get the whole result.

    An image that cannot be read is reported and counted, and the rest goes on.

    Raises:
        DataError: no query at all could be evaluated.
    """
    names = {key: index.samples[members[0]].class_name for key, members in index.classes().items() if len(members) > 1}
    result = Evaluation(names, {method: [] for method in predictor.methods})
    episodes = EpisodeList(index, protocol.shot, protocol.seed, protocol.multiple)
    for repeat in range(protocol.repeats):
        drawn = episodes.with_seed(protocol.seed + repeat)
        draw = _figure_writer(protocol) if repeat == 0 else None
        meters, faults, failed = _one_repeat(predictor, drawn, settings, protocol, names, draw)
        for method, meter in meters.items():
            result.meters[method].append(meter)
        result.faults += [f for f in faults if f not in result.faults]
        result.failed_queries += failed
    if not any(int(m.queries().sum()) for m in next(iter(result.meters.values()))):
        raise DataError(f"no query could be evaluated: {'; '.join(result.faults[:3])}")
    return result


def _one_repeat(
    predictor: Predictor,
    episodes: EpisodeList,
    settings: ViewSettings,
    protocol: Protocol,
    names: dict[tuple[str, int], str],
    draw: Callable[[int, Query, dict[str, Prediction]], None] | None,
) -> tuple[dict[str, SegmentationMeter], list[str], int]:
    queries = EvaluationQueries(episodes, settings, scale_by=protocol.scale_by, rank=rank(), world=world_size())
    meters = {method: SegmentationMeter(names) for method in predictor.methods}
    faults: list[str] = []
    failed = 0
    start = time.perf_counter()
    for number, query in enumerate(_load(queries, protocol)):
        faults += query.faults
        if isinstance(query, FailedQuery):
            failed += 1
            continue
        memory = predictor.remember(query.supports, query.support_masks, windowed=query.windowed)
        answers = next(predictor.segment([query.image], memory)).answers
        for method, answer in answers.items():
            meters[method].update(query.sample.class_key, answer.label, query.target)
        if draw is not None:
            draw(queries.numbers[number], query, answers)
    for meter in meters.values():
        meter.counts = sum_over_processes(meter.counts, predictor.device)
    faults = list(dict.fromkeys(f for part in gather_objects(faults) for f in part))
    for fault in faults:
        LOG.warning("left out: %s", fault)
    LOG.info("%d queries in %.1f s", len(queries), time.perf_counter() - start)
    return meters, faults, sum(gather_objects(failed))


def _load(queries: EvaluationQueries, protocol: Protocol) -> Iterable[Query | FailedQuery]:
    loader = DataLoader(queries, batch_size=protocol.batch_size, num_workers=protocol.num_workers, collate_fn=list)
    with tqdm(total=len(queries), desc="test", unit="query", disable=not is_main()) as bar:
        for batch in loader:
            for query in batch:
                yield query
                bar.update()


def _figure_writer(protocol: Protocol) -> Callable[[int, Query, dict[str, Prediction]], None] | None:
    if protocol.figures is None:
        return None

    def draw(number: int, query: Query, answers: dict[str, Prediction]) -> None:
        if random.Random(derive_seed(protocol.seed, number)).random() < protocol.figure_probability:
            name = f"{number:05d}_{query.sample.class_name.replace('/', '_')}_{Path(query.sample.image).stem}.png"
            write_image(protocol.figures / name, query_figure(query, answers))

    return draw


def query_figure(query: Query, answers: dict[str, Prediction]) -> Any:
    """The query with its true outline, and each method's mask and score, side by side: (H, W, 3) uint8 RGB."""
    pictures = [(f"{query.sample.class_name}: truth", outline(query.image, query.target, TRUTH))]
    for method, answer in answers.items():
        pictures.append((method, overlay(query.image, answer.mask)))
        pictures.append((f"{method} score", heat(answer.score)))
    return panels(pictures)


def _summary(values: list[float | None], key: str = "mean") -> dict[str, Any]:
    mean, std = mean_std(values)
    return {key: mean, "std": std, "repeats": values}
