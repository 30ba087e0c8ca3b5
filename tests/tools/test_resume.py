"""Killed, told to end, or with a full disk: what is trained is kept, and the same command ends where it would have."""

from __future__ import annotations

import os
import random
import signal

import pytest

from method_config import load_config
from tests.helpers import EARLY_BEST, own_logging
from tests.killing import Training, equal, kill_somewhere, kill_while_it_saves, until
from tools.trainer import run_training

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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_saves_within_the_epoch_and_says_so(surfaces, straight, tmp_path, number):
    training = Training(surfaces, tmp_path, **CHANGES)
    process = training.start()
    assert until(lambda: training.log().count("episodes/s") > 3, process)
    os.kill(process.pid, number)
    assert process.wait(60) == 128 + number
    state = training.state()
    last = training.errors.read_text().splitlines()[-1]
    step = f" and {state['within']['step']} steps of the next" if state["within"] else ""
    where = f"after epoch {state['epoch']}{step} in {training.run}/checkpoints/state.pth"
    assert last == f"interrupted by {number.name}: saved {where}; TRAIN.resume auto goes on there"
    assert training.finish() == 0 and same_end(training, straight)
