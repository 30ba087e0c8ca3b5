"""A loader whose workers go on across epochs, hand user errors on whole (PyTorch would wrap their message in a
traceback), and whose other errors say which sample they come from."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate

from datasets.episodes import EpisodeSampler
from tools.workers import Positions, Watch, start_worker
from utils.errors import UserError

DYING = 5  # seconds that a process may take to end once its connections are closed


class Described(Protocol):
    """A data set that can say which files an item is made of."""

    def __getitem__(self, number: int) -> Any: ...

    def describe(self, number: int) -> str: ...


class Loader:
    """Batches of a data set; one pass at a time.

    Args:
        data: what is loaded.
        batches: the numbers of each batch.
        num_workers: processes that load ahead, until the iterator is used up or closed; 0: none.
        pin_memory: copy batches to page-locked memory, from where a GPU fetches them beside its work.
        collate: makes a batch of items.

    Iterating raises:
        UserError: as an item raised it; or a worker has died: with the sample that it was at.
        RuntimeError: any other error of an item, with the sample; its traceback is a note.
    """

    def __init__(
        self,
        data: Described,
        batches: Sampler[list[int]],
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        self.data, self.positions = data, Positions(num_workers)
        self.loader = DataLoader(
            _Caught(data, self.positions),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=partial(_collate, collate),
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            # in a spawned process the default is to spawn, which imports everything anew
            multiprocessing_context="fork" if num_workers else None,
            generator=torch.Generator(),  # the global one would be drawn from whenever the workers start
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        with Watch(self.positions, self.data.describe) as watch:
            batches = watch.starts(lambda: iter(self.loader))
            try:
                while (batch := _next(batches, watch)) is not None:
                    if isinstance(batch, Exception):
                        raise batch
                    yield batch
            finally:
                if self.loader.num_workers:
                    batches._shutdown_workers()  # tracebacks may hold what would end them when it is forgotten


def _next(batches: Iterator[Any], watch: Watch) -> Any:
    """The next batch, or what a worker has died of, or None at the end."""
    try:
        return next(batches, None)
    except Exception as error:
        death = watch.death(DYING if isinstance(error, (OSError, EOFError)) else 0)
        if death is None:
            raise
        return death


class EpochBatches(Sampler[list[int]]):
    """Batches of several epochs in a row: the workers load the next epoch while this one ends or a test runs.

    Args:
        sampler: of one epoch.
        batch_size: numbers per batch; the last one of an epoch may be smaller.
        epochs: their numbers.
        skip: batches of the first epoch that are left out.
    """

    def __init__(
        self, sampler: EpisodeSampler, batch_size: int, epochs: range, skip: int = 0
    ) -> None:
        self.sampler, self.batch_size, self.epochs, self.skip = sampler, batch_size, epochs, skip

    @property
    def per_epoch(self) -> int:
        """Batches of one epoch."""
        return -(-len(self.sampler) // self.batch_size)

    def __len__(self) -> int:
        return len(self.epochs) * self.per_epoch - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in self.epochs:
            self.sampler.epoch = epoch
            batches = BatchSampler(self.sampler, self.batch_size, drop_last=False)
            yield from islice(batches, self.skip if epoch == self.epochs[0] else 0, None)


class _Caught(Dataset):
    """Items, or the error in place of the item; what is loaded is noted before."""

    def __init__(self, data: Described, positions: Positions) -> None:
        self.data, self.positions = data, positions

    def __getitem__(self, number: int) -> Any:
        self.positions.note(number)
        try:
            return self.data[number]
        except UserError as error:
            return error
        except Exception as error:
            named = RuntimeError(f"{type(error).__name__} at {self.data.describe(number)}: {error}")
            named.add_note(traceback.format_exc())  # the traceback itself cannot leave a worker
            return named


def _collate(collate: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, Exception)), None) or collate(items)
