"""The results of a test: pixel counts of every query, and the figures made of them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import DataError
from utils.metrics.score_curves import ScoreCounts
from utils.metrics.segmentation import SegmentationMeter, intersection_union, mean_std
from utils.metrics.sizes import SizeMeter
from utils.output_files import write_json, write_text
from utils.tables import method_table

HEADER = (
    *("repeat", "query", "class", "image", "method", "share", "threshold"),
    *("intersection_background", "intersection", "union_background", "union"),
)
ClassKey = tuple[str, int]


@dataclass(frozen=True)
class QueryResult:
    """One method's answer to one query in one repeat, counted.

    Attributes:
        number: of the query, which is the same in every repeat.
        key: the class, (object, category).
        image: its path, relative to the data set's root.
        share: of the image that is defect.
        intersection, union: pixels of background and defect.
    """

    repeat: int
    number: int
    key: ClassKey
    image: str
    method: str
    share: float
    threshold: float
    intersection: tuple[int, int]
    union: tuple[int, int]

    @property
    def iou(self) -> float | None:
        """Of the defect; None where there is none and none was predicted."""
        return self.intersection[1] / self.union[1] if self.union[1] else None


class Evaluation:
    """The measurements of a test of classes, which have names for people, and methods.

    Attributes:
        results: one for each query, repeat and method.
        sizes, curves: by method, over all queries and repeats.
        faults: files that could not be read.
        failed_queries: that could not be evaluated, summed over the repeats.

    Raises:
        DataError: two classes have one name.
    """

    def __init__(
        self, class_names: dict[ClassKey, str], methods: Sequence[str], repeats: int = 1
    ) -> None:
        name, count = Counter(class_names.values()).most_common(1)[0]
        if count > 1:
            raise DataError(f"two classes have the name {name!r}, of which a table would show one; "
                            "rename one")  # fmt: skip
        self.class_names, self.methods, self.repeats = class_names, list(methods), repeats
        self.sizes = {method: SizeMeter() for method in methods}
        self.curves = {method: ScoreCounts() for method in methods}
        self.results: list[QueryResult] = []
        self.faults: list[str] = []
        self.failed_queries = 0

    def add(
        self,
        repeat: int,
        number: int,
        key: ClassKey,
        image: str,
        target: np.ndarray,
        answers: dict[str, Any],
    ) -> dict[str, float | None]:
        """Count the answers of all methods to one query; returns the IoU of each.

        Args:
            repeat, number, key, image: see `QueryResult`.
            target: (h, w) uint8 {0, 1}, the true mask.
            answers: `tools.predictor.Prediction` by method.
        """
        share, ious = float((target == 1).mean()), {}
        for method, answer in answers.items():
            pixels = (tuple(p.tolist()) for p in intersection_union(answer.label, target))
            about = (repeat, number, key, image, method, share, answer.threshold)
            self.results.append(QueryResult(*about, *pixels))
            self.sizes[method].update(answer.label, target)
            self.curves[method].update(answer.score, target)
            ious[method] = self.results[-1].iou
        return ious

    def join(self, others: Iterable[Evaluation]) -> None:
        """Add the measurements of other processes or repeats."""
        for other in others:
            self.results += other.results
            self.failed_queries += other.failed_queries
            self.faults = sorted({*self.faults, *other.faults})
            for method in self.methods:
                self.sizes[method].counts += other.sizes[method].counts
                self.curves[method].add(other.curves[method])
        keys, place = list(self.class_names), self.methods.index
        self.results.sort(key=lambda r: (r.repeat, r.number, keys.index(r.key), place(r.method)))

    def meters(self, method: str) -> list[SegmentationMeter]:
        """Pixel counts per class of one method, a meter per repeat."""
        meters = [SegmentationMeter(self.class_names) for _ in range(self.repeats)]
        for result in (r for r in self.results if r.method == method):
            meters[result.repeat].add(result.key, result.intersection, result.union)
        return meters

    def report(self) -> dict[str, Any]:
        """Figures as plain JSON: IoU as fractions, None where undefined."""
        methods: dict[str, Any] = {}
        for method in self.methods:
            meters, classes = self.meters(method), {}
            for position, (key, name) in enumerate(self.class_names.items()):
                queries = int(sum(m.queries()[position] for m in meters))
                iou = summary([m.class_iou()[key] for m in meters], "iou")
                classes[name] = iou | {"queries": queries}
            thresholds: list[list[float]] = [[] for _ in meters]
            for result in (r for r in self.results if r.method == method):
                thresholds[result.repeat].append(result.threshold)
            methods[method] = {
                "miou": summary([m.miou() for m in meters]),
                "fb_iou": summary([m.fb_iou() for m in meters]),
                "classes": classes,
                "sizes": self.sizes[method].report(),
                "threshold": summary([mean_std(values)[0] for values in thresholds]),
            }
        faults = {"unreadable": self.faults, "failed_queries": self.failed_queries}
        return {"methods": methods} | faults

    def miou(self, method: str) -> float | None:
        """Mean over repeats of the mIoU of one method."""
        return mean_std([m.miou() for m in self.meters(method)])[0]

    def table(self) -> str:
        """Class IoU, mIoU and FB-IoU in percent, a column per method."""
        return method_table(self.report()["methods"])

    def write(self, folder: Path, suffix: str = "") -> None:
        """Write the counts of every query to queries.csv, and precision, recall and IoU by
        threshold of every method to curves.json; `suffix` ends the names."""
        names = self.class_names
        rows = [(r.repeat, r.number, names[r.key], r.image, r.method, r.share, r.threshold,
                 *r.intersection, *r.union) for r in self.results]  # fmt: skip
        write_csv(folder / f"queries{suffix}.csv", HEADER, rows)
        curves = [{"name": method} | curve.report() for method, curve in self.curves.items()]
        write_json(folder / f"curves{suffix}.json", {"curves": curves})


def summary(values: list[float | None], key: str = "mean") -> dict[str, Any]:
    """Mean under `key`, standard deviation and the values of the repeats."""
    mean, std = mean_std(values)
    return {key: mean, "std": std, "repeats": values}


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(file, text.getvalue())
