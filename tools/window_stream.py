"""Windows of many images, opened and cut by threads ahead of the model, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from datasets.images import Picture, read_image
from datasets.large_images import ImageStrips
from datasets.views import prepare_image
from datasets.windows import Box, tile
from models.memory import Memory
from utils.errors import DataError

THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2  # images that are opened before their turn
T = TypeVar("T")


@dataclass
class PendingQuery:
    """An image whose windows are being answered.

    Attributes:
        opening: the image, opened by a thread.
        error: why the image, or the rest of it, cannot be read.
        boxes, left: by `Memory.window`, of its windows and how many are not encoded yet.
        encoded: windows that are not answered yet, each with the features of its pass and its
            place in them.
        mergers: for each of `scales`, by method, what joins the answers to the windows.
        complete: all windows were cut.
    """

    memories: Sequence[Memory]
    opening: Future
    image: ImageStrips | None = None
    error: DataError | None = None
    boxes: dict[int, list[Box]] = field(default_factory=dict)
    left: dict[int, int] = field(default_factory=dict)
    encoded: list[tuple[Window, list[Tensor], int]] = field(default_factory=list)
    mergers: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = False

    @property
    def scales(self) -> list[Memory]:
        """Each memory, followed by its coarse one where it has one."""
        return [scale for memory in self.memories for scale in memory.scales]

    @property
    def is_answered(self) -> bool:
        """Whether no window is left to cut or to answer, or none can be."""
        return self.complete and (self.error is not None or not any(self.left.values()))


@dataclass(frozen=True)
class Window:
    """A window of a query: the side by which it is cut (0: it is the whole), its box in native
    pixels, its network input to come."""

    query: PendingQuery
    side: int
    box: Box
    pixels: Future


def windows(
    queries: Iterable[tuple[Picture | ImageStrips, Sequence[Memory]]],
    waiting: deque[PendingQuery],
    pool: ThreadPoolExecutor,
    *,
    size: int,
    overlap: float,
) -> Iterator[Window]:
    """The windows of images, row by row; `waiting` takes each query before its first window comes,
    and the threads of `pool` open images and prepare windows.

    Args:
        queries: images with the memories that answer them.
        size: side of the network input, pixels.
        overlap: share of a window's side in common with the next.
    """

    def opened() -> Iterator[PendingQuery]:
        for number, (picture, memories) in enumerate(queries):
            waiting.append(PendingQuery(memories, _opening(picture, number, pool)))
            yield waiting[-1]

    for query in ahead(opened(), AHEAD):
        try:
            query.image = image = query.opening.result()
            for number, side in enumerate({m.window: None for m in query.scales}):
                if number and image.pixels is None:  # strips are read once, from top to bottom
                    image = ImageStrips(image.path)
                boxes = tile(*image.size, side, overlap)
                query.boxes[side], query.left[side] = boxes, len(boxes)
                for (top, bottom), row in groupby(boxes, lambda box: box[:2]):
                    strip = image.strip(top, bottom)
                    for box in row:
                        pixels = pool.submit(prepare_image, strip[:, box[2] : box[3]], size)
                        yield Window(query, side, box, pixels)
        except DataError as error:  # a large file may turn out to be broken half-way
            query.error = error
        query.complete = True


def joined_features(encoded: Sequence[tuple[Window, list[Tensor], int]]) -> list[Tensor]:
    """Per layer the features (B, C_l, h, w) of windows out of their passes, without a copy where
    they lie side by side in one."""
    _, first, start = encoded[0]
    if all(f is first and place == start + i for i, (_, f, place) in enumerate(encoded)):
        return [layer[start : start + len(encoded)] for layer in first]
    joined = []
    for number in range(len(first)):
        parts = [features[number][place : place + 1] for _, features, place in encoded]
        if first[number].is_contiguous():
            joined.append(torch.cat(parts))
        else:  # of a transformer: the channels of a token stay side by side in memory
            joined.append(torch.cat([part.movedim(1, -1) for part in parts]).movedim(-1, 1))
    return joined


def ahead(items: Iterable[T], count: int) -> Iterator[T]:
    """The same items, each made `count` items before its turn, so that threads work on them."""
    waiting: deque[T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _opening(picture: Picture | ImageStrips, number: int, pool: ThreadPoolExecutor) -> Future:
    """The image, opened by a thread where it is a file; others are copied at once, as a caller may
    fill one array with one image after the other, or close each."""
    if isinstance(picture, str | os.PathLike):
        return pool.submit(ImageStrips, picture)
    ready: Future = Future()
    try:
        if not isinstance(picture, ImageStrips):
            picture = ImageStrips(read_image(picture, f"image {number}").copy())
        ready.set_result(picture)
    except DataError as error:
        ready.set_exception(error)
    return ready
