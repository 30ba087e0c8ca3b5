from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import closing
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from datasets.episodes import EpisodeBatches
from tools.loading import Loader
from utils.errors import DataError

REPO = Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("workers", [0, 2])


class Numbers(Dataset):
    """0 to 6; number 4 calls what is given."""

    def __init__(self, at_four=lambda: 4):
        self.at_four = at_four

    def __len__(self):
        return 7

    def __getitem__(self, number):
        return self.at_four() if number == 4 else number


def load(data, workers, size=3, **options):
    batches = BatchSampler(SequentialSampler(data), size, drop_last=False)
    return Loader(data, batches, num_workers=workers, **options)


def unreadable():
    raise DataError("a.png: broken")


def interrupt():
    """Both signals, as they reach all processes of a job."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    return 4


@BOTH
def test_batches_come_until_the_error_as_it_was_raised(workers):
    assert list(load(Numbers(), workers, collate=tuple)) == [(0, 1, 2), (3, 4, 5), (6,)]
    batches = iter(load(Numbers(unreadable), workers))
    assert torch.equal(next(batches), torch.tensor([0, 1, 2]))
    with pytest.raises(DataError, match=r"^a\.png: broken$"):
        next(batches)
    with pytest.raises(KeyError, match="missing") as error:
        list(load(Numbers(lambda: {}["missing"]), workers))
    traceback.clear_frames(error.tb)  # of PyTorch: they hold the workers


def test_workers_end_with_the_error_though_it_is_kept():
    earlier = set(active_children())
    with pytest.raises(DataError) as error:
        list(load(Numbers(unreadable), 2))
    left = set(active_children()) - earlier
    for worker in left:
        worker.kill()  # they would keep this process from ending
    assert error.tb is not None and not left


class Loaders(Numbers):
    """The number and the process that loads it."""

    def __getitem__(self, number):
        return number, os.getpid()


@BOTH
def test_workers_go_on_across_epochs_and_draw_no_global_random_number(workers):
    batches, state = EpisodeBatches(7, 4, seed=3, epochs=range(1, 4)), torch.get_rng_state()
    loaded = list(Loader(Loaders(), batches, num_workers=workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert [numbers.tolist() for numbers, _ in loaded] == list(batches)
    pids = {pid for _, loaders in loaded for pid in loaders.tolist()}
    assert len(pids) == max(1, workers) and (os.getpid() in pids) == (workers == 0)


def test_a_dead_worker_is_an_error_that_names_the_remedy():
    with pytest.raises(DataError, match=r"a loader process has died .*TRAIN_SETUPS\.num_workers"):
        list(load(Numbers(lambda: os.kill(os.getpid(), signal.SIGKILL)), 2))


def test_workers_end_with_their_loader_and_leave_signals_to_the_process_that_has_them():
    earlier = set(active_children())
    with closing(iter(load(Numbers(interrupt), 2, size=1))) as batches:
        assert [next(batches).tolist() for _ in range(6)] == [[n] for n in range(6)]
        assert len(set(active_children()) - earlier) == 2
    assert set(active_children()) <= earlier


class Large(Numbers):
    """Items that no pipe between processes takes whole."""

    def __getitem__(self, number):
        return np.zeros(1 << 20, np.uint8)


def print_workers():
    """Print the loaders of large items, when these wait to be taken."""
    batches = iter(load(Large(), 2, size=1, collate=tuple))
    next(batches)
    time.sleep(1)
    print(*(child.pid for child in active_children()), flush=True)
    time.sleep(60)


def test_workers_end_when_their_loader_is_killed():
    code = "from tests.tools.test_loading import *; print_workers()"
    loader = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE)
    workers = loader.stdout.readline().split()
    loader.kill()
    loader.communicate(timeout=30)  # returns when no process holds the pipe any more
    assert len(workers) == 2
