"""The results of a test: pixel counts of every query, and the figures made of them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import DataError
from utils.metrics import CLASS_IOU, NORMAL, SECONDS, TOLERANT
from utils.metrics.normal import normal_figures
from utils.metrics.score_curves import ScoreCounts
from utils.metrics.segmentation import SegmentationMeter, intersection_union, mean_std, product_mean
from utils.metrics.sizes import SizeMeter
from utils.metrics.tolerance import matched_pixels, tolerant_iou
from utils.output_files import write_json, write_text
from utils.tables import method_table

HEADER = (
    *("repeat", "query", "class", "image", "method", "share", "threshold"),
    *("intersection_background", "intersection", "union_background", "union"),
    *(f"matched_{tolerance}px" for tolerance in TOLERANT),
    "score",
)
NORMAL_HEADER = ("repeat", "query", "class", "image", "method", "marked", "pixels", "score")
ClassKey = tuple[str, int]


@dataclass(frozen=True)
class Result:
    """One method's answer to one image in one repeat.

    Attributes:
        number: of the image as a query, which is the same in every repeat.
        key: the class that is looked for, (object, category).
        image: its path, relative to the data set's root.
    """

    repeat: int
    number: int
    key: ClassKey
    image: str
    method: str


@dataclass(frozen=True)
class QueryResult(Result):
    """An answer to a query, counted.

    Attributes:
        share: of the image that is defect.
        intersection, union: pixels of background and defect.
        matched: `matched_pixels` with each tolerance of TOLERANT.
        score: the highest of a pixel.
    """

    share: float
    threshold: float
    intersection: tuple[int, int]
    union: tuple[int, int]
    matched: tuple[int, ...]
    score: float

    @property
    def iou(self) -> float | None:
        """Of the defect; None where there is none and none was predicted."""
        return self.intersection[1] / self.union[1] if self.union[1] else None


@dataclass(frozen=True)
class NormalResult(Result):
    """An answer to a normal image.

    Attributes:
        marked, pixels: how many pixels are marked, all of them falsely, and how many there are.
        score: the highest of a pixel.
    """

    marked: int
    pixels: int
    score: float


class Evaluation:
    """The measurements of a test of classes, which have names for people, and methods.

    Attributes:
        results: one for each query, repeat and method.
        normal: one for each normal image that was segmented, class, repeat and method.
        sizes, curves: by method, over all queries and repeats.
        faults: files that could not be read.
        failed_queries: that could not be evaluated, summed over the repeats.
        seconds: on the clock, for the queries of all repeats, without drawing pictures of them.

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
        self.normal: list[NormalResult] = []
        self.faults: list[str] = []
        self.failed_queries, self.seconds = 0, 0.0

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
            matched = tuple(matched_pixels(answer.label, target, t) for t in TOLERANT)
            score = float(answer.score.max())
            self.results.append(QueryResult(*about, *pixels, matched, score))
            self.sizes[method].update(answer.label, target)
            self.curves[method].update(answer.score, target)
            ious[method] = self.results[-1].iou
        return ious

    def add_normal(
        self, repeat: int, number: int, key: ClassKey, image: str, answers: dict[str, Any]
    ) -> None:
        """Count the answers of all methods to one normal image, see `NormalResult`."""
        for method, answer in answers.items():
            pixels = (int(np.count_nonzero(answer.mask)), answer.mask.size)
            about = (repeat, number, key, image, method)
            self.normal.append(NormalResult(*about, *pixels, float(answer.score.max())))

    def join(self, others: Sequence[Evaluation]) -> None:
        """Add the measurements of others, as of several processes at the same time."""
        self.seconds += max((other.seconds for other in others), default=0.0)
        for other in others:
            self.results += other.results
            self.normal += other.normal
            self.failed_queries += other.failed_queries
            self.faults = sorted({*self.faults, *other.faults})
            for method in self.methods:
                self.sizes[method].counts += other.sizes[method].counts
                self.curves[method].add(other.curves[method])
        keys, place = list(self.class_names), self.methods.index
        for results in (self.results, self.normal):
            results.sort(key=lambda r: (r.repeat, r.number, keys.index(r.key), place(r.method)))

    def meters(self, method: str) -> list[SegmentationMeter]:
        """Pixel counts per class of one method, a meter per repeat."""
        meters = [SegmentationMeter(self.class_names) for _ in range(self.repeats)]
        for result in (r for r in self.results if r.method == method):
            meters[result.repeat].add(result.key, result.intersection, result.union)
        return meters

    def tolerant(self, method: str) -> dict[str, list[dict[ClassKey, float | None]]]:
        """By measure of TOLERANT, for each repeat the figure of every class, of one method."""
        counts = np.zeros((self.repeats, len(self.class_names), len(TOLERANT) + 1), np.int64)
        keys = list(self.class_names)
        for result in (r for r in self.results if r.method == method):
            areas = result.intersection[1] + result.union[1]  # predicted and true pixels
            counts[result.repeat, keys.index(result.key)] += [*result.matched, areas]
        figures = {}
        for place, measure in enumerate(TOLERANT.values()):
            pairs = counts[..., [place, -1]].tolist()
            figures[measure.name] = [
                {key: tolerant_iou(*pair) for key, pair in zip(keys, repeat, strict=True)}
                for repeat in pairs
            ]
        return figures

    def report(self) -> dict[str, Any]:
        """Figures as plain JSON: IoU as fractions, None where undefined."""
        methods = {method: self._method_report(method) for method in self.methods}
        if self.normal:
            for method, entry in methods.items():
                entry["normal"] = self._normal_report(method)
        faults = {"unreadable": self.faults, "failed_queries": self.failed_queries}
        return {"methods": methods} | faults

    def _method_report(self, method: str) -> dict[str, Any]:
        meters, tolerant, classes = self.meters(method), self.tolerant(method), {}
        for position, (key, name) in enumerate(self.class_names.items()):
            queries = int(sum(m.queries()[position] for m in meters))
            iou = summary([m.class_iou()[key] for m in meters], CLASS_IOU.name)
            others = {n: summary([r[key] for r in repeats]) for n, repeats in tolerant.items()}
            classes[name] = iou | {"queries": queries} | others
        thresholds: list[list[float]] = [[] for _ in meters]
        for result in (r for r in self.results if r.method == method):
            thresholds[result.repeat].append(result.threshold)
        return {
            "miou": summary([m.miou() for m in meters]),
            "product_miou": summary([product_mean(m.class_iou()) for m in meters]),
            "fb_iou": summary([m.fb_iou() for m in meters]),
            **{n: summary([*map(product_mean, repeats)]) for n, repeats in tolerant.items()},
            "classes": classes,
            "sizes": self.sizes[method].report(),
            "threshold": summary([mean_std(values)[0] for values in thresholds]),
        }

    def _normal_report(self, method: str) -> dict[str, Any]:
        """The measures NORMAL of the classes that have normal images, and their means over the
        classes of each product, then products."""
        repeats: list[dict[ClassKey, dict[str, float | None]]] = [{} for _ in range(self.repeats)]
        keys = {result.key for result in self.normal}
        for key, repeat in product((k for k in self.class_names if k in keys), range(self.repeats)):
            at = (method, repeat, key)
            normal = [r for r in self.normal if (r.method, r.repeat, r.key) == at]
            queries = [r for r in self.results if (r.method, r.repeat, r.key) == at]
            areas = [r.marked / r.pixels for r in normal]
            scores = ([r.score for r in results] for results in (normal, queries))
            repeats[repeat][key] = normal_figures(areas, *scores)
        classes = {}
        for key in repeats[0]:
            images = len({r.number for r in self.normal if r.key == key})
            figures = {m.name: summary([r[key][m.name] for r in repeats]) for m in NORMAL}
            classes[self.class_names[key]] = {"images": images} | figures
        means = {
            m.name: summary([product_mean({k: f[m.name] for k, f in r.items()}) for r in repeats])
            for m in NORMAL
        }
        return means | {"classes": classes}

    def miou(self, method: str) -> float | None:
        """Mean over repeats of the mIoU of one method."""
        return mean_std([m.miou() for m in self.meters(method)])[0]

    def table(self) -> str:
        """Class IoU and figures over all classes in percent, a column per method."""
        return method_table(self.report()["methods"])

    def timing(self) -> dict[str, float]:
        """`seconds`, the number of queries of all repeats as `images`, and the seconds of one."""
        images = len({(r.repeat, r.number) for r in self.results})
        return {"images": images, "seconds": self.seconds, SECONDS.name: self.seconds / images}

    def write(self, folder: Path, suffix: str = "") -> None:
        """Write the counts of every query to queries.csv, those of normal images to normal.csv, and
        precision, recall and IoU by threshold of every method to curves.json; `suffix` ends the
        names."""
        names = self.class_names
        rows = [(r.repeat, r.number, names[r.key], r.image, r.method, r.share, r.threshold,
                 *r.intersection, *r.union, *r.matched, r.score) for r in self.results]  # fmt: skip
        write_csv(folder / f"queries{suffix}.csv", HEADER, rows)
        if self.normal:
            rows = [(r.repeat, r.number, names[r.key], r.image, r.method, r.marked, r.pixels,
                     r.score) for r in self.normal]  # fmt: skip
            write_csv(folder / f"normal{suffix}.csv", NORMAL_HEADER, rows)
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
