"""Trainings in two processes of which one is told to end."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import write_product
from tests.killing import Training, ended, equal, until

CHANGES = {
    "NUM_GPUS": 2,
    "TRAIN_SETUPS__epochs": 16,
    "TRAIN_SETUPS__batch_size": 1,
    "TRAIN_SETUPS__TEST_SETUPS__test_state": False,
}
RNG = random.Random(5)


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    """Root of a product whose epoch has six steps."""
    root = tmp_path_factory.mktemp("plates")
    write_product(root, "Plate", {"spot": 6, "line": 6})
    return root


@pytest.fixture(scope="module")
def straight(plates, tmp_path_factory):
    """The training that nothing cuts off."""
    training = Training(plates, tmp_path_factory.mktemp("straight"), **CHANGES)
    assert training.finish() == 0
    return training


def second_process(launcher):
    """Number of the process of rank 1."""
    children = map(int, Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split())
    return [
        n
        for n in sorted(children)
        if b"resource_tracker" not in Path(f"/proc/{n}/cmdline").read_bytes()
    ][1]


def told_to_end(training):
    """Start it and tell the process of rank 1 to end some epochs later; returns the exit code."""
    process, seen = training.start(), training.log().count("episodes/s")
    assert until(lambda: training.log().count("episodes/s") >= seen + 2, process)
    time.sleep(RNG.uniform(0, 0.2))  # not always at the border of two epochs
    os.kill(second_process(process.pid), signal.SIGTERM)
    return ended(process)


def test_one_told_to_end_ends_all_and_the_same_command_ends_in_the_same_weights(
    plates, straight, tmp_path
):
    """Random numbers are those of each process: of its dropout, too."""
    training = Training(plates, tmp_path, **CHANGES)
    within = False
    while not within:
        assert told_to_end(training) == 143
        assert "interrupted by SIGTERM: saved after epoch" in training.last_error()
        within = training.state()["within"]
    assert len(within["processes"]) == 2
    assert training.finish() == 0
    first, second = training.state(), straight.state()
    assert all(equal(first[key], second[key]) for key in ("head", "optimizer", "epoch", "history"))
