"""A loader whose workers go on across epochs, and hand user errors on whole: PyTorch would wrap their message in a
traceback."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, default_collate

from datasets.episodes import EpisodeSampler
from utils.errors import UserError


class Loader:
    """Batches of a data set.

    Args:
        data: what is loaded.
        batches: the numbers of each batch.
        num_workers: processes that load ahead, until the iterator is used up or closed; 0: none.
        pin_memory: copy batches to page-locked memory, from where a GPU fetches them beside its work.
    """

    def __init__(
        self, data: Dataset, batches: Sampler[list[int]], *, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.loader = DataLoader(
            _Caught(data),
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # the global one would be drawn from whenever the workers start
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


class EpochBatches(Sampler[list[int]]):
    """Batches of several epochs in a row: the workers load the next epoch while this one ends or a test runs.

    Args:
        sampler: of one epoch.
        batch_size: numbers per batch; the last one of an epoch may be smaller.
        epochs: their numbers.
        skip: batches of the first epoch that are left out.
    """

    def __init__(self, sampler: EpisodeSampler, batch_size: int, epochs: range, skip: int = 0) -> None:
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
    """Items, or the error in place of the item."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __getitem__(self, number: int) -> Any:
        try:
            return self.data[number]
        except UserError as error:
            return error


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, UserError)), None) or default_collate(items)
