"""Killed, told to end, or with a full disk: what is trained is kept, and the same command ends where it would have."""

from __future__ import annotations

import random
import re
import signal

import pytest

from method_config import load_config
from tests.helpers import EARLY_BEST, own_logging
from tests.killing import Blow, Training, ended, equal, kill_somewhere, kill_while_it_saves
from tools.trainer import run_training
from tools.training.state import STATE

CHANGES = EARLY_BEST | {
    "TRAIN_SETUPS__epochs": 30,
    "TRAIN_SETUPS__batch_size": 2,
    "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 12,
    "TRAIN_SETUPS__TEST_SETUPS__train_miou": 5,
    "TRAIN_SETUPS__TEST_SETUPS__val_state": True,
    "TRAIN_SETUPS__TEST_SETUPS__test_state": False,
}
KEPT = ("head", "optimizer", "scaler", "epoch", "history", "best")


@pytest.fixture(scope="module")
def straight(surfaces, tmp_path_factory):
    """The training that nothing cuts off."""
    training = Training(surfaces, tmp_path_factory.mktemp("straight"), **CHANGES)
    with own_logging():
        run_training(load_config(training.yaml), "")
    return training


def same_end(training, straight):
    first, second = training.state(), straight.state()
    return (
        all(equal(first[key], second[key]) for key in KEPT)
        and training.history() == straight.history()
    )


def test_killed_at_any_moment_the_same_command_ends_in_the_same_weights(
    surfaces, straight, tmp_path
):
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
    told = f"error: {training.run}/checkpoints/state.pth cannot be written (File too large); the earlier file is unchanged"
    assert training.last_error().startswith(told) and "Traceback" not in training.errors.read_text()
    assert equal(training.state(), before) and not training.partial()
    assert training.finish() == 0 and same_end(training, straight)


def told_to_end(training, number):
    """Start it, tell it to end a few epochs later, and check what it says; returns the state."""
    assert ended(training.start(blow=Blow(4, number, seconds=0.02))) == 128 + number
    state = training.state()
    step = f" and {state['within']['step']} steps of the next" if state["within"] else ""
    where = f"after epoch {state['epoch']}{step} in {training.run}/checkpoints/state.pth"
    assert (
        training.last_error()
        == f"interrupted by {number.name}: saved {where}; TRAIN.resume auto goes on there"
    )
    return state


def test_told_to_end_it_saves_within_the_epoch_and_goes_on_there(surfaces, straight, tmp_path):
    """Also by Ctrl-C."""
    training = Training(surfaces, tmp_path, **CHANGES)
    first, second = (told_to_end(training, number) for number in (signal.SIGTERM, signal.SIGINT))
    assert first["epoch"] < second["epoch"] < 30
    assert training.finish() == 0 and same_end(training, straight)


def test_told_to_end_while_it_validates_it_says_what_is_kept(surfaces, tmp_path):
    training = Training(
        surfaces, tmp_path, **CHANGES | {"TRAIN_SETUPS__TEST_SETUPS__epoch_test": 2}
    )
    blow = Blow(1, signal.SIGTERM, seconds=0, file="metrics_validation.json")
    assert ended(training.start(blow=blow)) == 143
    where = f"after epoch 2 in {training.run}/checkpoints/state.pth"
    assert (
        training.last_error()
        == f"interrupted by SIGTERM: saved {where}; TRAIN.resume auto goes on there"
    )
    assert training.state()["epoch"] == 2 and "validation" not in training.state()["history"][-1]


@pytest.mark.parametrize("size", [6000, 20000])
def test_a_disk_too_full_for_events_is_told_in_one_line(surfaces, tmp_path, size):
    training = Training(surfaces, tmp_path, **CHANGES)
    assert training.finish(largest_file=size) == 2
    told = rf"error: {training.run}/events/events\.out\.tfevents\.\S+ cannot be written \(File too large\); free space"
    assert re.match(told, training.last_error())
    assert "Traceback" not in training.errors.read_text()
