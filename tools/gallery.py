"""A gallery of a test: the worst, median and best query of every class, with what was known and what was said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from datasets.views import cut
from datasets.windows import Box
from tools.prediction.answers import Prediction
from tools.results import Evaluation, QueryResult
from utils.output_files import write_json
from utils.visualize import TRUTH, heat, outline, overlay, write_image

SIDE = 480  # pixels, longer side of a picture
DETAIL = 256  # pixels, least side of a detail
SMALL = 0.25  # a detail that is a larger share of the image than this shows nothing that the image does not
FRAME = (255, 176, 0)
LEAST = 0.1  # range of scores that is spread over all colours at the least

Panel = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A query to be shown: what it is called, its rank in its class, a caption, scores by name, its pictures."""

    name: str
    rank: str
    caption: str
    scores: dict[str, float | None]
    panels: list[Panel]


def chosen(evaluation: Evaluation, method: str) -> list[tuple[str, QueryResult]]:
    """Worst, median and best query of each class by a method's IoU in the first repeat, each query once, classes in the
    order of the test."""
    found: list[tuple[str, QueryResult]] = []
    for key in evaluation.class_names:
        own = [
            r
            for r in evaluation.results
            if (r.key, r.method, r.repeat) == (key, method, 0) and r.iou is not None
        ]
        own.sort(key=lambda r: (r.iou, r.number))
        found += [(rank, own[place]) for rank, place in ranks(len(own)).items()]
    return found


def ranks(count: int) -> dict[str, int]:
    """The places of the worst, the median and the best of `count` sorted ones, as many as differ."""
    places = (
        {"worst": 0, "median": count // 2, "best": count - 1}
        if count > 2
        else {"worst": 0, "best": 1}
    )
    return {rank: place for rank, place in places.items() if place < count}


def write_gallery(folder: Path, entries: Iterator[Entry]) -> None:
    """Write the pictures, and index.json which lists them.

    Raises:
        OutputError: a file cannot be written.
    """
    listed = []
    for number, entry in enumerate(entries):
        panels = []
        for place, (caption, picture) in enumerate(entry.panels):
            file = f"{number:04d}_{place}.jpg"
            write_image(folder / file, shrunk(picture))
            panels.append({"caption": caption, "file": file})
        about = {
            "class": entry.name,
            "rank": entry.rank,
            "caption": entry.caption,
            "scores": entry.scores,
        }
        listed.append(about | {"panels": panels})
    if listed:
        write_json(folder / "index.json", listed)


def support_panels(pairs: Sequence[tuple[np.ndarray, np.ndarray]], most: int = 2) -> list[Panel]:
    """The first supports with their outlined defects, a detail of them where they are small."""
    panels = []
    for image, mask in pairs[:most]:
        box = detail(mask)
        panels.append(
            (
                "support" if box is None else "support, detail",
                _part(outline(image, mask, TRUTH), box),
            )
        )
    return panels


def query_panels(
    image: np.ndarray, target: np.ndarray | None, answers: dict[str, Prediction]
) -> list[Panel]:
    """The query, its truth where it is known, mask and score of each method; a small defect as a detail, too."""
    box = None if target is None else detail(target)
    shown = image if box is None else _framed(image, box)
    panels = [("query", shown)]
    note = "" if box is None else ", detail"
    if box is not None:
        main, answer = next(iter(answers.items()))
        panels.append((f"{main}, whole", _framed(overlay(image, answer.mask), box)))
    if target is not None:
        panels.append((f"truth{note}", _part(outline(image, target, TRUTH), box)))
    for method, answer in answers.items():
        panels.append((f"{method}{note}", _part(overlay(image, answer.mask), box)))
        panels.append((f"{method} score{note}", _part(heat(around(answer)), box)))
    return panels


def around(answer: Prediction) -> np.ndarray:
    """Scores (h, w) float32 brought to [0, 1] so that the threshold lies in the middle and the score furthest from it
    at an end: those of some methods keep to a narrow range around it."""
    offset = answer.score - answer.threshold
    return 0.5 + offset / max(2 * float(np.abs(offset).max()), LEAST)


def detail(mask: np.ndarray) -> Box | None:
    """A box around what is marked, as much again around it; None where it would be most of the image, or nothing is
    marked."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    box: list[int] = []
    for marked, length in ((rows, mask.shape[0]), (columns, mask.shape[1])):
        side = min(length, max(DETAIL, 2 * int(marked[-1] - marked[0] + 1)))
        start = min(max(0, int(marked[0] + marked[-1]) // 2 - side // 2), length - side)
        box += [start, start + side]
    small = (box[1] - box[0]) * (box[3] - box[2]) < SMALL * mask.size
    return (box[0], box[1], box[2], box[3]) if small else None


def shrunk(picture: np.ndarray) -> np.ndarray:
    """An RGB picture with its longer side at most SIDE pixels."""
    scale = SIDE / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = [max(1, round(n * scale)) for n in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _part(picture: np.ndarray, box: Box | None) -> np.ndarray:
    return picture if box is None else cut(picture, box)


def _framed(picture: np.ndarray, box: Box) -> np.ndarray:
    width = max(2, max(picture.shape[:2]) // SIDE * 2)
    return cv2.rectangle(picture.copy(), (box[2], box[0]), (box[3], box[1]), FRAME, width)
