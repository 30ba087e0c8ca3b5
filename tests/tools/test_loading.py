from __future__ import annotations

import fcntl
import multiprocessing
import os
import re
import signal
import socket
import stat
import sys
import termios
import time
import traceback
from contextlib import closing, suppress
from multiprocessing import active_children, resource_sharer
from multiprocessing.reduction import DupFd
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from datasets.build import build_test_index, build_training_episodes, view_settings
from datasets.episodes import EpisodeList, EpisodeSampler
from datasets.feature_bank import BankCrops, BankEpisodes, FeatureBank
from datasets.queries import EvaluationQueries
from tests.helpers import read_index, tiny_config
from tests.killing import LIMIT, Training, ended, until
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

    def describe(self, number):
        return f"{number}.png (Disk/spot)"


def load(data, workers, size=3, **options):
    return Loader(
        data,
        BatchSampler(SequentialSampler(data), size, drop_last=False),
        num_workers=workers,
        **options,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_until_the_error_as_it_was_raised(workers):
    whole = load(Numbers(None), workers)
    assert [b.tolist() for b in whole] == [[0, 1, 2], [3, 4, 5], [6]] and len(whole) == 3
    batches = iter(load(Numbers(4), workers))
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
    numbers, loaders = zip(
        *((number.tolist(), pid.tolist()) for number, pid in loader), strict=True
    )
    assert torch.equal(torch.get_rng_state(), state), (
        "workers start without a draw from the global generator"
    )
    assert len(loader) == len(batches) == 6 and batches.per_epoch == 2
    assert [len(batch) for batch in numbers] == [4, 3] * 3, (
        "an epoch starts with a batch of its own"
    )
    for epoch in range(1, 4):
        sampler.epoch = epoch
        assert numbers[2 * epoch - 2] + numbers[2 * epoch - 1] == list(sampler)
    pids = {pid for batch in loaders for pid in batch}
    assert len(pids) == max(1, workers) and (os.getpid() in pids) == (workers == 0)


def test_batches_of_an_epoch_that_was_cut_off():
    sampler = EpisodeSampler(7, seed=3)
    whole, rest = (list(EpochBatches(sampler, 2, range(2, 4), skip)) for skip in (0, 3))
    assert rest == whole[3:] and len(EpochBatches(sampler, 2, range(2, 4), 3)) == len(rest) == 5


class Deadly(Numbers):
    """Number 4 ends the process that loads it, by a call, as soon as the reader allows it."""

    def __init__(self, broken, allowed=True):
        self.broken, self.allowed = broken, multiprocessing.Event()
        if allowed:
            self.allowed.set()

    def __getitem__(self, number):
        if number == 4:
            assert self.allowed.wait(LIMIT)
            self.broken()
        return number


def end(code):
    return lambda: (
        os.kill(os.getpid(), code) if isinstance(code, signal.Signals) else os._exit(code)
    )


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    ("code", "cause", "remedy"),
    [
        (signal.SIGKILL, "was ended by SIGKILL", r"memory: lower TRAIN_SETUPS\.num_workers"),
        (signal.SIGSEGV, "was ended by SIGSEGV", "crashed on one of these files"),
        (signal.SIGBUS, "was ended by SIGBUS", "/dev/shm"),
        (signal.SIGTERM, "was ended by SIGTERM", r"TRAIN_SETUPS\.num_workers 0"),
        (3, r"ended by itself \(exit code 3\)", r"TRAIN_SETUPS\.num_workers 0"),
    ],
)
def test_a_dead_worker_is_noticed_and_its_sample_named(code, cause, remedy, busy):
    """Also while the process is at work on the batch before."""
    data = Deadly(end(code), allowed=False)
    with closing(iter(load(data, 2))) as batches:
        assert next(batches).tolist() == [0, 1, 2]
        last = time.monotonic() + LIMIT
        with pytest.raises(
            DataError, match=rf"a loader process {cause} at 4\.png \(Disk/spot\); .*{remedy}"
        ):
            data.allowed.set()
            while time.monotonic() < last:
                next(batches) if not busy else sum(range(1000))


def test_a_worker_that_leaves_without_an_error_is_noticed():
    with pytest.raises(DataError, match=r"exit code 0\) at 4\.png"):
        list(load(Deadly(end(0)), 2))


class Large(Numbers):
    """More than a pipe holds, and who loads it."""

    def __getitem__(self, number):
        return os.getpid(), np.zeros(1 << 22, np.uint8)


def pipe_is_full():
    """Whether a pipe of this process holds about all that it can."""
    for handle in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the folder's own is closed
            if stat.S_ISFIFO(os.fstat(handle).st_mode):
                held = int.from_bytes(
                    fcntl.ioctl(handle, termios.FIONREAD, bytes(4)), sys.byteorder
                )
                if held > fcntl.fcntl(handle, fcntl.F_GETPIPE_SZ) / 2:
                    return True
    return False


def test_a_worker_that_dies_while_it_hands_over_is_noticed():
    batches = iter(load(Large(None), 2, size=1, collate=list))
    ((first, _),) = next(batches)
    ((second, _),) = next(batches)
    assert first != second
    assert until(
        pipe_is_full, multiprocessing.current_process()
    )  # one of them is in the midst of a batch
    with pytest.raises(DataError, match="SIGKILL"):
        for pid in (first, second):
            os.kill(pid, signal.SIGKILL)
        list(batches)
    batches.close()
    assert not active_children()


class CutOff(Numbers):
    """Number 2 cuts off what its worker has handed over before, a while before that ends, as dying processes do."""

    def __init__(self, cut):
        self.cut = cut

    def __getitem__(self, number):
        if number == 2:
            time.sleep(0.3)  # batch 0 is handed over; if not, it arrives, and the test proves less
            resource_sharer.stop()
            self.cut.set()
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.tensor(number)


def test_a_batch_whose_worker_is_about_to_end_is_no_other_error():
    cut = multiprocessing.Event()

    def numbers():
        yield from ([0], [1], [2])
        assert cut.wait(LIMIT)
        yield [3]  # only now are batches fetched

    with pytest.raises(DataError, match=r"was ended by SIGKILL at 2\.png") as held:
        list(Loader(CutOff(cut), numbers(), num_workers=2))
    assert held.value and not active_children()


class Resource(Numbers):
    """What a worker shares as it shares tensors."""

    def __getitem__(self, number):
        return DupFd(0)


def test_a_worker_is_silent_where_the_main_process_hangs_up(capfd):
    with closing(iter(load(Resource(None), 1, collate=list))) as batches:
        shared, *_ = next(batches)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(shared._id[0])
        os.close(shared.detach())  # by the same thread, after it has noticed
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("killed", [0, 1])
def test_a_job_whose_worker_is_killed_says_so_in_one_line(surfaces, tmp_path, killed):
    """While the main process fetches a batch of worker 0, in most cases."""
    training = Training(surfaces, tmp_path, TRAIN_SETUPS__num_workers=2, TRAIN_SETUPS__epochs=10000)
    process = training.start()
    assert until(lambda: training.log().count("episodes/s") > 1, process)
    workers = [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(workers[killed], signal.SIGKILL)
    if killed != 0:
        time.sleep(0.2)
        os.kill(workers[0], signal.SIGCONT)
    assert ended(process) == 2
    told = r"error: a loader process was ended by SIGKILL at \S+\.png \(Plate/\w+\) with supports \S+\.png; that is how"
    assert re.match(told, training.last_error()) and "Traceback" not in training.errors.read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_program_names_the_sample_and_where_it_was(workers):
    def broken():
        return {}["missing"]

    with pytest.raises(RuntimeError, match=r"KeyError at 4\.png \(Disk/spot\): 'missing'") as error:
        list(load(Deadly(broken), workers))
    text = "".join(traceback.format_exception(error.value))
    assert "test_loading.py" in text and 'return {}["missing"]' in text


@pytest.mark.parametrize("fault", [DataError("x"), KeyError("x"), end(signal.SIGKILL), None])
def test_no_worker_outlives_its_loader(fault):
    """Neither where the reader stops early, nor where an error is held on to."""

    def fail():
        raise fault

    data = Deadly(fail if isinstance(fault, Exception) else fault, allowed=False)
    batches = iter(load(data, 2, size=1))
    assert len(active_children()) == 0
    next(batches)
    assert len(active_children()) == 2
    held = None
    try:
        data.allowed.set()
        for _ in range(2 if fault is None else 9):
            next(batches)
    except Exception as error:
        held = error
    batches.close()
    assert (held is None) == (fault is None) and not active_children()


class Signals(Numbers):
    def __getitem__(self, number):
        return signal.getsignal(signal.SIGINT) == signal.SIG_IGN, signal.getsignal(
            signal.SIGTERM
        ) == signal.SIG_IGN


def test_workers_leave_ctrl_c_to_the_process_that_has_them():
    (interrupt, terminate), *_ = load(Signals(None), 1)
    assert interrupt.all() and not terminate.any()
    assert signal.getsignal(signal.SIGINT) != signal.SIG_IGN


@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_made_into_batches_as_asked(workers):
    assert list(load(Numbers(None), workers, collate=tuple)) == [(0, 1, 2), (3, 4, 5), (6,)]
    with pytest.raises(DataError, match=r"a\.png: broken"):
        list(load(Numbers(4), workers, collate=tuple))


def test_every_data_set_says_which_files_an_item_is_made_of(surfaces, tmp_path):
    cfg = tiny_config(surfaces, tmp_path, DATASET__shot=2)
    training = build_training_episodes(cfg, read_index(surfaces, "Plate"))
    number = len(training) + 3  # of the second epoch
    episode = training.episodes.episode(3, epoch=1)
    query, *supports = (
        training.episodes.index.image_path(s) for s in (episode.query, *episode.candidates[:2])
    )
    text = f"{query} ({episode.query.class_name}) with supports {supports[0]}, {supports[1]}"
    assert training.describe(number) == text
    crops = BankCrops(training, 1)
    assert BankEpisodes(crops, FeatureBank(tmp_path / "bank", 1, 1, (1, 1), 8)).describe(
        number
    ) == (f"{tmp_path / 'bank'}: {text}")
    sample = training.episodes.index.samples[crops.positions[2]]
    assert (
        crops.describe(2) == f"{training.episodes.index.image_path(sample)} ({sample.class_name})"
    )
    queries = EvaluationQueries(
        EpisodeList(build_test_index(cfg), 1, 5), view_settings(cfg), repeats=(0, 1, 2), numbers=[6]
    )
    drawn = [e.episode(6) for e in queries.episodes.values()]
    said = queries.describe(0)
    assert drawn[0].query.image in said.split(" with ")[0] and drawn[0].query.class_name in said
    assert all(said.count(e.candidates[0].image) == 1 for e in drawn)
