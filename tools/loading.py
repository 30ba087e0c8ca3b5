"""A loader whose workers stay from epoch to epoch, and hand user errors on whole: PyTorch would wrap their message in a
traceback."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from utils.errors import UserError


class Loader:
    """Batches of a data set, each time in the order of its sampler.

    Args:
        data: what is loaded.
        sampler: the numbers to load.
        batch_size: items per batch; the last one may be smaller.
        num_workers: processes that load ahead and stay until the loader goes; 0: none.
        pin_memory: copy batches to page-locked memory, from where a GPU fetches them beside its work.
    """

    def __init__(
        self, data: Dataset, sampler: Sampler, *, batch_size: int, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        self.loader = DataLoader(
            _Caught(data),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            if isinstance(batch, UserError):
                raise batch
            yield batch


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
