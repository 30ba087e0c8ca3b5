from __future__ import annotations

import os

import pytest
import torch
from torch.utils.data import Dataset, SequentialSampler

from tools.loading import Loader
from utils.errors import DataError


class Numbers(Dataset):
    """0 to 6, of which one cannot be read."""

    def __init__(self, broken):
        self.broken = broken

    def __len__(self):
        return 7

    def __getitem__(self, number):
        if number == self.broken:
            raise DataError("a.png: broken")
        return number


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_until_the_error_as_it_was_raised(workers):
    def load(broken):
        data = Numbers(broken)
        return Loader(data, SequentialSampler(data), batch_size=3, num_workers=workers)

    assert [b.tolist() for b in load(None)] == [[0, 1, 2], [3, 4, 5], [6]] and len(load(None)) == 3
    batches = iter(load(4))
    assert torch.equal(next(batches), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError) as error:
        next(batches)
    assert str(error.value) == "a.png: broken"


class Workers(Numbers):
    """Who loads it."""

    def __getitem__(self, number):
        return os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_stay_from_epoch_to_epoch(workers):
    data = Workers(None)
    loader = Loader(data, SequentialSampler(data), batch_size=1, num_workers=workers)
    first, second = ({int(pid) for pid in loader} for _ in range(2))
    assert first == second and len(first) == max(1, workers)
    assert (os.getpid() in first) == (workers == 0)
