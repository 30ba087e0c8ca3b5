"""Windows of many images, decoded and prepared by threads ahead of the model, in order."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, tee
from typing import Any

import numpy as np
from torch import Tensor

from datasets.images import Picture, read_image
from datasets.large_images import ImageStrips
from datasets.views import prepare_image
from datasets.windows import Box, tile
from utils.errors import DataError

THREADS = min(4, os.cpu_count() or 1)
AHEAD = 2  # images that are decoded before their turn
_END = object()


@dataclass(frozen=True)
class ImageStart:
    """An image of which windows follow, or the reason why none do.

    Attributes:
        image: the opened image; None where it cannot be read.
        boxes: of its windows, row by row.
        error: why it cannot be read.
    """

    image: ImageStrips | None
    boxes: list[Box]
    error: DataError | None = None


@dataclass(frozen=True)
class Window:
    """The next window of the image that came last: its box and network input (3, S, S) float32."""

    box: Box
    pixels: Tensor


class WindowFeed:
    """How images become windows.

    Args:
        image_size: side of the network input, pixels.
        crop_size: side of a window, native pixels; None: the whole image, resized.
        overlap: share of a window's side in common with the next.
    """

    def __init__(self, image_size: int, crop_size: int | None, overlap: float = 0.0) -> None:
        self.image_size, self.crop_size, self.overlap = image_size, crop_size, overlap

    def stream(self, images: Iterable[Picture], window_batch: int) -> Iterator[ImageStart | Window]:
        """For each image its start and then its windows, in order; about one batch is prepared ahead."""
        with (
            ThreadPoolExecutor(THREADS) as pool,
            _in_thread(self._parts(images, pool), window_batch) as parts,
        ):
            for part in parts:
                yield part if isinstance(part, ImageStart) else Window(part[0], part[1].result())

    def _parts(
        self, images: Iterable[Picture], pool: ThreadPoolExecutor
    ) -> Iterator[ImageStart | tuple[Box, Future]]:
        for start in _ahead(pool, self._start, _kept(images)):
            yield start
            try:
                yield from self._windows(start, pool)
            except DataError as error:  # a large file turns out to be broken half-way
                yield ImageStart(None, [], error)

    def _windows(self, start: ImageStart, pool: ThreadPoolExecutor) -> Iterator[tuple[Box, Future]]:
        for (top, bottom), row in groupby(start.boxes, lambda box: box[:2]):
            strip = start.image.strip(top, bottom)
            for box in row:
                yield box, pool.submit(prepare_image, strip[:, box[2] : box[3]], self.image_size)

    def _start(self, image: str | os.PathLike | np.ndarray | DataError) -> ImageStart:
        if isinstance(image, DataError):
            return ImageStart(None, [], image)
        try:
            opened = ImageStrips(image)
        except DataError as error:
            return ImageStart(None, [], error)
        if self.crop_size is None:
            return ImageStart(opened, [(0, opened.size[0], 0, opened.size[1])])
        return ImageStart(opened, tile(*opened.size, self.crop_size, self.overlap))


def _kept(images: Iterable[Picture]) -> Iterator[str | os.PathLike | np.ndarray | DataError]:
    """Files by their paths; the pixels of all else, or why there are none, at once and as a copy: who gives them one
    after the other may use one buffer for all, or close each."""
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            yield image
            continue
        try:
            yield read_image(image, f"image {number}").copy()
        except DataError as error:
            yield error


def shared(items: Iterable[Any], count: int) -> list[Iterator[Any]]:
    """Iterators over the same items, each made once, for a thread each (`tee` alone is for one thread)."""
    lock = threading.Lock()

    def one_by_one(copy: Iterator[Any]) -> Iterator[Any]:
        while True:
            with lock:
                item = next(copy, _END)
            if item is _END:
                return
            yield item

    return [one_by_one(copy) for copy in tee(items, count)]


def _ahead(
    pool: ThreadPoolExecutor, call: Callable[[Any], Any], items: Iterable[Any]
) -> Iterator[Any]:
    """Results of a call in order, at most AHEAD of them computed before their turn."""
    waiting: list[Future] = []
    for item in items:
        waiting.append(pool.submit(call, item))
        if len(waiting) > AHEAD:
            yield waiting.pop(0).result()
    while waiting:
        yield waiting.pop(0).result()


@contextmanager
def _in_thread(items: Iterator[Any], size: int) -> Iterator[Iterator[Any]]:
    """The same items, made by a thread at most `size` ahead; its exceptions are raised where the items are taken."""
    ready: queue.Queue = queue.Queue(size)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # handed on, to be raised by the consumer
            put(error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        yield _taken(ready)
    finally:
        stopped.set()
        thread.join()


def _taken(ready: queue.Queue) -> Iterator[Any]:
    while (item := ready.get()) is not _END:
        if isinstance(item, BaseException):
            raise item
        yield item
