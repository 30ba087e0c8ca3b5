from __future__ import annotations

import os

import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from datasets.episodes import EpisodeSampler
from tools.loading import EpochBatches, Loader
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
        return Loader(data, BatchSampler(SequentialSampler(data), 3, drop_last=False), num_workers=workers)

    assert [b.tolist() for b in load(None)] == [[0, 1, 2], [3, 4, 5], [6]] and len(load(None)) == 3
    batches = iter(load(4))
    assert torch.equal(next(batches), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError) as error:
        next(batches)
    assert str(error.value) == "a.png: broken"


class Workers(Numbers):
    """The number and who loads it."""

    def __getitem__(self, number):
        return number, os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_go_on_across_epochs(workers):
    sampler = EpisodeSampler(7, seed=3)
    batches = EpochBatches(sampler, 4, range(1, 4))
    loader = Loader(Workers(None), batches, num_workers=workers)
    state = torch.get_rng_state()
    numbers, loaders = zip(*((number.tolist(), pid.tolist()) for number, pid in loader), strict=True)
    assert torch.equal(torch.get_rng_state(), state), "workers start without a draw from the global generator"
    assert len(loader) == len(batches) == 6 and batches.per_epoch == 2
    assert [len(batch) for batch in numbers] == [4, 3] * 3, "an epoch starts with a batch of its own"
    for epoch in range(1, 4):
        sampler.epoch = epoch
        assert numbers[2 * epoch - 2] + numbers[2 * epoch - 1] == list(sampler)
    pids = {pid for batch in loaders for pid in batch}
    assert len(pids) == max(1, workers) and (os.getpid() in pids) == (workers == 0)


def test_batches_of_an_epoch_that_was_cut_off():
    sampler = EpisodeSampler(7, seed=3)
    whole, rest = (list(EpochBatches(sampler, 2, range(2, 4), skip)) for skip in (0, 3))
    assert rest == whole[3:] and len(EpochBatches(sampler, 2, range(2, 4), 3)) == len(rest) == 5
