"""Killed, told to end, or with a full disk: what is trained is kept, and the same command ends where it would have."""

from __future__ import annotations

import os
import random
import signal

import pytest
import torch

from method_config import load_config
from tests.helpers import EARLY_BEST, own_logging, read_index
from tests.killing import Training, ended, equal, kill_somewhere, kill_while_it_saves, until
from tools.trainer import run_training
from tools.training.state import STATE, Progress

CHANGES = EARLY_BEST | {
    "TRAIN_SETUPS__epochs": 30,
    "TRAIN_SETUPS__batch_size": 2,
    "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 12,
    "TRAIN_SETUPS__TEST_SETUPS__train_miou": 5,
    "TRAIN_SETUPS__TEST_SETUPS__val_state": True,
    "TRAIN_SETUPS__TEST_SETUPS__test_state": False,
}
KEPT = ("head", "optimizer", "schedule", "scaler", "epoch", "history", "best")


@pytest.fixture(scope="module")
def straight(surfaces, tmp_path_factory):
    """The training that nothing cuts off."""
    training = Training(surfaces, tmp_path_factory.mktemp("straight"), **CHANGES)
    with own_logging():
        run_training(load_config(training.yaml), "")
    return training


def same_end(training, straight):
    first, second = training.state(), straight.state()
    return all(equal(first[key], second[key]) for key in KEPT) and training.history() == straight.history()


def test_killed_at_any_moment_the_same_command_ends_in_the_same_weights(surfaces, straight, tmp_path):
    """Twice somewhere, then while the state is being written, of which a rest is left."""
    training, rng = Training(surfaces, tmp_path, **CHANGES), random.Random(17)
    for _ in range(2):
        kill_somewhere(training, rng)
    kill_while_it_saves(training)
    assert training.partial() and training.state()["epoch"] < 30
    assert training.finish() == 0
    assert same_end(training, straight) and not training.partial()
    assert training.log().count("going on after epoch") == 3


def test_a_full_disk_leaves_the_last_state_and_is_told(surfaces, straight, tmp_path):
    training = Training(surfaces, tmp_path, **CHANGES)
    kill_somewhere(training, random.Random(3))
    before, size = training.state(), (training.run / STATE).stat().st_size
    assert training.finish(largest_file=size - 1000) == 2
    told = (
        f"error: {training.run}/checkpoints/state.pth cannot be written (File too large); the earlier file is unchanged"
    )
    assert training.last_error().startswith(told) and "Traceback" not in training.errors.read_text()
    assert equal(training.state(), before) and not training.partial()
    assert training.finish() == 0 and same_end(training, straight)


@pytest.mark.parametrize("batch_size, step", [(4, 5), (3, 6), (40, 0)])
def test_other_processes_go_on_after_the_same_episodes(surfaces, caplog, batch_size, step):
    """What two processes have begun with batches of 2, one ends with other batches."""
    progress, device = Progress.of(read_index(surfaces, "Plate")), torch.device("cpu")
    progress.losses = [torch.tensor(1.0)] * 5
    own = progress.gathered(device, batch_size)["processes"]
    progress = Progress.of(read_index(surfaces, "Plate"))
    progress.restore({"step": 5, "batch_size": 2, "processes": own * 2}, device, batch_size)
    assert progress.step == step and not progress.losses and "may come twice" in caplog.text


def told_to_end(training, number):
    """Start it, tell it to end a few epochs later, and check what it says; returns the state."""
    process, seen = training.start(), training.log().count("episodes/s")
    assert until(lambda: training.log().count("episodes/s") > seen + 3, process)
    os.kill(process.pid, number)
    assert ended(process) == 128 + number
    state = training.state()
    step = f" and {state['within']['step']} steps of the next" if state["within"] else ""
    where = f"after epoch {state['epoch']}{step} in {training.run}/checkpoints/state.pth"
    assert training.last_error() == f"interrupted by {number.name}: saved {where}; TRAIN.resume auto goes on there"
    return state


def test_told_to_end_it_saves_within_the_epoch_and_goes_on_there(surfaces, straight, tmp_path):
    """Also by Ctrl-C."""
    training = Training(surfaces, tmp_path, **CHANGES)
    first, second = (told_to_end(training, number) for number in (signal.SIGTERM, signal.SIGINT))
    assert first["epoch"] < second["epoch"] < 30
    assert training.finish() == 0 and same_end(training, straight)
