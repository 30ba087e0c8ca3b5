"""A gallery of a test: the worst, median and best query of every class, with truth and answers.

The evaluation hands every query to `GalleryWriter.add` while it runs; the pictures are written at
once, small, and those of the queries that are not chosen are deleted in the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from utils.output_files import file_name, write_json
from utils.visualize import TRUTH, heat, outline, overlay, write_image

if TYPE_CHECKING:
    from tools.predictor import Prediction

SIDE = 480  # pixels, longer side of a picture
DETAIL = 256  # pixels, least side of a detail
SMALL = 0.25  # a detail that is a larger share of the image shows nothing that the image does not
FRAME = (255, 176, 0)
LEAST = 0.1  # range of scores that is spread over all colours at the least
LEVELS = 65535 / 2  # grey levels of a score of 1 in a map that is coloured in the end

Box = tuple[slice, slice]  # rows and columns, pixels
Panel = tuple[str, np.ndarray]


@dataclass(frozen=True)
class Entry:
    """A query whose pictures are written; `panels` are (caption, name of the file)."""

    number: int  # orders queries of equal value
    class_key: Hashable
    class_name: str
    value: float | None  # IoU or, of anomaly detection, the highest score; None where undefined
    caption: str
    scores: dict[str, float | None]
    panels: list[tuple[str, str]]
    normal: bool = False  # an image without defect, in anomaly detection


Ranked = list[tuple[str, Entry]]


def all_ranked(entries: Sequence[Entry]) -> Ranked:
    """All of a class by (value, number), those without a value last; the first and the last with
    one are worst and best where they differ."""
    ordered = sorted(entries, key=lambda e: (inf if e.value is None else e.value, e.number))
    values = [entry.value for entry in ordered if entry.value is not None]
    ranks = {0: "worst", len(values) - 1: "best"} if values and values[0] < values[-1] else {}
    return [(ranks.get(place, ""), entry) for place, entry in enumerate(ordered)]


def extremes(entries: Sequence[Entry]) -> Ranked:
    """Worst, median and best of a class by (value, number), each query once, those without a value
    left out; of the normal ones the one with the highest score is added."""
    ordered = [entry for _, entry in all_ranked(entries) if entry.value is not None]
    normal = [("highest of the normal ones", entry) for entry in ordered if entry.normal]
    ordered = [entry for entry in ordered if not entry.normal]
    places = {"worst": 0, "median": len(ordered) // 2, "best": len(ordered) - 1}
    if len(ordered) < 3:
        places = dict(zip(("worst", "best"), range(len(ordered)), strict=False))
    return [(rank, ordered[place]) for rank, place in places.items()] + normal[-1:]


class GalleryWriter:
    """Writes the pictures of queries into a folder that several processes may share; `entries` are
    those of this process, small enough to send to another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[Entry] = []

    def add(
        self,
        number: int,
        class_key: Hashable,
        class_name: str,
        value: float | None,
        caption: str,
        scores: dict[str, float | None],
        panels: Iterable[Panel],
        normal: bool = False,
    ) -> None:
        """Write the pictures of a query; no two of a class have the same number.

        A panel is (h, w, 3) uint8 RGB or a score map, (h, w) float in [0, 2], that `finish`
        colours with the highest value of its class as 1. The rest is as in `Entry`.

        Raises:
            OutputError: a file cannot be written.
        """
        about = (number, class_key, class_name, value, caption, scores)
        files = self._write(class_name, f"{number:05d}", panels)
        self.entries.append(Entry(*about, files, normal))

    def finish(
        self,
        entries: Iterable[Entry] | None = None,
        classes: Iterable[Hashable] = (),
        choose: Callable[[Sequence[Entry]], Ranked] = extremes,
        before: Callable[[Entry], Iterable[Panel]] = lambda entry: (),
    ) -> None:
        """Write index.json of the chosen queries and delete all other files; one process calls it.

        `entries` are those of all processes (None: of this one), `classes` the keys in the order
        in which they are shown (others follow). Of the queries of a class, `choose` takes those
        that are shown, with their ranks; `before` has panels to stand before those of a query.

        Raises:
            OutputError: a file cannot be written.
        """
        grouped: dict[Hashable, list[Entry]] = {key: [] for key in classes}
        for entry in self.entries if entries is None else entries:
            grouped.setdefault(entry.class_key, []).append(entry)
        index: list[dict[str, Any]] = []
        for group in grouped.values():
            most = max((entry.value for entry in group if entry.value is not None), default=1.0)
            for rank, entry in choose(group):
                files = self._write(entry.class_name, f"{entry.number:05d}_0", before(entry))
                files += [(caption, self._coloured(file, most)) for caption, file in entry.panels]
                panels = [{"caption": caption, "file": file} for caption, file in files]
                about = {"class": entry.class_name, "rank": rank, "caption": entry.caption}
                index.append(about | {"scores": entry.scores, "panels": panels})
        if not index:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        kept = {panel["file"] for item in index for panel in item["panels"]}
        for file in self.folder.iterdir():
            if file.name not in kept:
                file.unlink()
        write_json(self.folder / "index.json", index)

    def _write(self, name: str, number: str, panels: Iterable[Panel]) -> list[tuple[str, str]]:
        """Write pictures as JPEG, score maps as PNG of 16 bits; returns (caption, file) of each."""
        files = []
        for place, (caption, picture) in enumerate(panels):
            picture, suffix = shrunk(picture), "jpg"
            if picture.ndim == 2:
                picture, suffix = np.rint(picture.clip(0, 2) * LEVELS).astype(np.uint16), "png"
            files.append((caption, file_name(name, f"_{number}_{place}.{suffix}")))
            write_image(self.folder / files[-1][1], picture)
        return files

    def _coloured(self, file: str, most: float) -> str:
        """The name of a picture; of a score map that of its picture, with `most` as the highest."""
        if not file.endswith(".png"):
            return file
        content = np.fromfile(self.folder / file, np.uint8)
        score = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) / (LEVELS * max(most, 1e-6))
        file = f"{file.removesuffix('.png')}.jpg"
        write_image(self.folder / file, heat(score))
        return file


def support_panels(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Panel]:
    """The first two supports (image, mask) with their defects outlined, small ones as a detail."""
    panels = []
    for image, mask in pairs[:2]:
        box = detail(mask)
        picture = outline(shrunk(image, box), marks(mask, box), TRUTH)
        panels.append(("support" if box is None else "support, detail", picture))
    return panels


def query_panels(
    image: np.ndarray, target: np.ndarray | None, answers: dict[str, Prediction]
) -> list[Panel]:
    """A query, (h, w, 3) uint8 RGB, its true mask if there is one, (h, w) uint8 {0, 1}, and each
    method's mask and score at its size; a small defect as a detail."""
    box = None if target is None else detail(target)
    note, whole, part = "" if box is None else ", detail", shrunk(image), shrunk(image, box)
    panels = [("query", whole)]
    if box is not None:
        main, answer = next(iter(answers.items()))
        panels.append((f"{main}, whole", overlay(whole, marks(answer.mask))))
        scale = max(whole.shape[:2]) / max(image.shape[:2])
        rows, columns = box
        ends = scale * np.array([[columns.start, rows.start], [columns.stop, rows.stop]])
        first, last = np.rint(ends).astype(int).tolist()
        panels = [
            (c, cv2.rectangle(picture.copy(), first, last, FRAME, 2)) for c, picture in panels
        ]
    if target is not None:
        panels.append((f"truth{note}", outline(part, marks(target, box), TRUTH)))
    for method, answer in answers.items():
        panels.append((f"{method}{note}", overlay(part, marks(answer.mask, box))))
        panels.append((f"{method} score{note}", heat(around(answer.score, answer.threshold, box))))
    return panels


def around(score: np.ndarray, threshold: float, box: Box | None = None) -> np.ndarray:
    """A part of a score map, small, brought to [0, 1]: the threshold in the middle, the score of
    the map that is furthest from it at an end, as those of some methods keep near to it."""
    low, high = cv2.minMaxLoc(score)[:2]
    widest = max(abs(low - threshold), abs(high - threshold))
    return 0.5 + (shrunk(score, box) - threshold) / max(2 * widest, LEAST)


def detail(mask: np.ndarray) -> Box | None:
    """A box around all that is marked with as much again around it; None where it would be most of
    the image, or nothing is marked."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    box, area = [], 1
    for first, marked, length in ((top, height, mask.shape[0]), (left, width, mask.shape[1])):
        side = min(length, max(DETAIL, 2 * marked))
        start = min(max(0, (2 * first + marked - 1) // 2 - side // 2), length - side)
        box.append(slice(start, start + side))
        area *= side
    return (box[0], box[1]) if width and area < SMALL * mask.size else None


def shrunk(picture: np.ndarray, box: Box | None = None) -> np.ndarray:
    """A picture or map, or a part of it, with its longer side at most SIDE pixels; of large ones
    about four pixels make one, which is ten times as fast."""
    part = picture if box is None else picture[box]
    rows, columns = _small(part.shape)
    if min(part.shape[0] / rows, part.shape[1] / columns) > 2:
        part = cv2.resize(part, (2 * columns, 2 * rows), interpolation=cv2.INTER_NEAREST)
    if part.shape[:2] == (rows, columns):
        return part
    return cv2.resize(part, (columns, rows), interpolation=cv2.INTER_AREA)


def marks(mask: np.ndarray, box: Box | None = None) -> np.ndarray:
    """A mask, (h, w) bool or uint8, or a part of it, as small as `shrunk` makes the picture; a
    pixel is marked where any of its pixels is, so that small defects do not vanish."""
    part = mask if box is None else mask[box]
    rows, columns = _small(part.shape)
    if part.shape == (rows, columns):
        return part > 0
    kernel = np.ones(-(-np.array(part.shape) // (rows, columns)) + 1, np.uint8)
    grown = cv2.dilate(part.view(np.uint8), kernel, anchor=(0, 0))
    return cv2.resize(grown, (columns, rows), interpolation=cv2.INTER_NEAREST) > 0


def _small(shape: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1, SIDE / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
