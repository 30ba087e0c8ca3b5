"""What is said of an image while its windows come in, and in the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from datasets.large_images import ImageStrips
from datasets.windows import Blender, Box, merge_reference
from tools.prediction.pipeline import ImageStart
from utils.errors import DataError


@dataclass(frozen=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: (h, w) uint8 {0, 1}; with `reference` merging float32 votes, defect where 1.
        score: (h, w) float32 in [0, 1], where normal images are all that is known in [0, 2]; like `label` in a
            temporary file for a very large image.
        windows: how many windows the image took.
        threshold: the score above which a pixel is defect.
    """

    label: np.ndarray
    score: np.ndarray
    windows: int
    threshold: float

    @property
    def mask(self) -> np.ndarray:
        """(h, w) bool."""
        return self.label == 1


@dataclass(frozen=True)
class Outcome:
    """What became of one image: an answer per method, or the reason why there is none."""

    image: ImageStrips | None
    answers: dict[str, Prediction]
    error: DataError | None = None


class Answering:
    """An image whose windows are being answered.

    Args:
        start: the image and its windows.
        thresholds: for each set of supports, by the methods that answer, the probability above which a pixel is defect.
        merge: `probability` or `reference`.

    Attributes:
        taken: windows that were taken from the feed.
        error: why no more of them will come.
    """

    def __init__(
        self, start: ImageStart, thresholds: list[dict[str, float]], *, merge: str
    ) -> None:
        self.start, self.error, self.taken, self.added = start, start.error, 0, 0
        merger = _ReferenceMerger if merge == "reference" else Blender
        self.mergers = [
            {}
            if self.error
            else {name: merger(*start.image.size, at) for name, at in methods.items()}
            for methods in thresholds
        ]

    @property
    def all_taken(self) -> bool:
        """No window of it is to come."""
        return self.taken == len(self.start.boxes)

    @property
    def finished(self) -> bool:
        """All windows are answered, or there is an error."""
        return self.error is not None or self.added == len(self.start.boxes)

    def add(self, box: Box, maps: list[dict[str, Tensor]]) -> None:
        """Add for each set of supports the (S, S) float answers of all methods for the next window."""
        self.added += 1
        for mergers, answers in zip(self.mergers, maps, strict=True):
            for name, answer in answers.items():
                mergers[name].add(answer, box)

    def outcomes(self) -> list[Outcome]:
        """The result for each set of supports, once it is finished."""
        if self.error is not None:
            return [Outcome(None, {}, self.error) for _ in self.mergers]
        count = len(self.start.boxes)
        return [
            Outcome(
                self.start.image,
                {name: Prediction(*m.finish(), count, m.threshold) for name, m in mergers.items()},
            )
            for mergers in self.mergers
        ]


class _ReferenceMerger:
    """Keeps all maps of an image for the published stitching."""

    def __init__(self, height: int, width: int, threshold: float) -> None:
        self.size, self.threshold = (height, width), threshold
        self.maps: list[Tensor] = []
        self.boxes: list[Box] = []

    def add(self, window_map: Tensor, box: Box) -> None:
        self.maps.append(window_map)
        self.boxes.append(box)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        return merge_reference(self.maps, self.boxes, *self.size, threshold=self.threshold)
