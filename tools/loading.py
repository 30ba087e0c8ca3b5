"""A DataLoader that hands on errors of the user's files as they were raised in its workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from utils.errors import DataError, UserError
from utils.signals import when_parent_ends


class Loader(DataLoader):
    """Batches of a data set: `batches` holds the numbers of each, `collate` makes one of its items.
    Iterating raises UserError as an item raised it, and DataError where a worker has died."""

    def __init__(
        self,
        data: Dataset,
        batches: Iterable[list[int]],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        super().__init__(
            _Caught(data),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=partial(_collate, collate),
            pin_memory=pin_memory,
            worker_init_fn=_end_with_the_parent,
            # in a spawned process the default is to spawn, which imports everything anew
            multiprocessing_context="fork" if num_workers else None,
            # starting workers draws from the global generator otherwise
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()
        if self.num_workers and threading.current_thread() is threading.main_thread():
            # torch's handler raises at any line of the main thread; `next` notices a death as well
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (RuntimeError, ConnectionError, EOFError) as error:
            of_program = isinstance(error, RuntimeError) and "DataLoader worker (" not in str(error)
            if of_program or not self.num_workers:
                raise
            reason = f"a loader process has died ({error or type(error).__name__}), most often"
            remedy = "lower TRAIN_SETUPS.num_workers or the batch size; with 0 you see where"
            raise DataError(f"{reason} of a full memory or /dev/shm; {remedy}") from error
        finally:
            # ends the workers now: a garbage collection, where an error keeps this frame, ends the
            # threads of their queues first, and then waits five seconds for each worker
            del batches


class _Caught(Dataset):
    """Items of a data set, with a UserError in place of an item that raised it."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, number: int) -> Any:
        try:
            return self.data[number]
        except UserError as error:
            return error


def _collate(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or collate(items)


def _end_with_the_parent(_: int) -> None:
    """A worker without its parent would wait for ever for what it hands over to be taken.

    Ctrl-C and SIGTERM may reach all processes of a job, and the parent ends its workers; where
    it exits without, it sends them SIGTERM once more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    when_parent_ends(lambda: os._exit(1))
    # only the thread that hands tensors over calls it, where the parent has left
    sys.excepthook = lambda *_: None
