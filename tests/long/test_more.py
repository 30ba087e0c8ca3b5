"""More kills and invented inputs than `make test` has time for: `make test-long`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from method_config import load_config
from tests.helpers import own_logging
from tests.killing import Training, kill_somewhere, kill_while_it_saves
from tests.tools.training.test_resume import CHANGES, same_end
from tools.trainer import run_training

REPO = Path(__file__).parents[2]
KILLS = 30
TIMES = 20  # SOFS_FUZZ may ask for more
MOST = 3 * 3600  # seconds


@pytest.mark.parametrize(
    "changes", [{}, {"TRAIN_SETUPS__num_workers": 2}, {"TRAIN__feature_bank": 2}]
)
def test_the_weights_are_those_of_an_uninterrupted_training(surfaces, tmp_path, changes):
    """Every third kill comes while the state is being written."""
    settings = CHANGES | {"TRAIN_SETUPS__epochs": 150} | changes
    straight, training = (
        Training(surfaces, tmp_path / name, **settings) for name in ("straight", "killed")
    )
    with own_logging():
        run_training(load_config(straight.yaml), "")
    rng = random.Random(len(changes))
    for number in range(KILLS):
        kill_while_it_saves(training) if number % 3 == 2 else kill_somewhere(training, rng)
    assert training.state()["epoch"] < 150, "all kills came before the end"
    assert training.finish() == 0 and same_end(training, straight)


def test_twenty_times_as_many_invented_inputs_new_ones_each_time():
    times = max(TIMES, int(os.environ.get("SOFS_FUZZ", TIMES)))
    env = os.environ | {"SOFS_FUZZ": str(times), "OMP_NUM_THREADS": "1"}
    options = {"cwd": REPO, "env": env, "capture_output": True, "text": True}
    command = [sys.executable, "-m", "pytest", "-q", "tests/fuzz"]
    done = subprocess.run(command, timeout=MOST * times // TIMES, **options)
    assert done.returncode == 0, done.stdout[-5000:]
