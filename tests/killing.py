"""Trainings in processes of their own, which are killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.helpers import tiny_config
from tools.training_state import STATE
from utils.files import PARTIAL

REPO = Path(__file__).parents[1]
LIMIT = 240  # seconds, of a wait


class Training:
    """The settings of a training that goes on where it was cut off, and its folder.

    Args:
        data: root of the products.
        folder: for the YAML file and the run.
        changes: of the tiny config.
    """

    def __init__(self, data, folder, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        cfg = tiny_config(data, folder / "log", TRAIN__resume="auto", **changes)
        self.yaml, self.run = folder / "my.yaml", folder / "log" / "run"
        self.yaml.write_text(cfg.dump())

    def start(self, *opts, largest_file=resource.RLIM_INFINITY):
        """The process, whose files may have so many bytes; its errors are kept in a file."""
        command = [sys.executable, str(REPO / "train.py"), "--cfg", str(self.yaml), "--opts", *opts]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
        self.errors = self.yaml.with_suffix(".stderr")
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self.errors.open("w"),
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        )

    def finish(self, *opts, **limits):
        """Run to the end; returns the code."""
        return self.start(*opts, **limits).wait(LIMIT)

    def last_error(self):
        return self.errors.read_text().splitlines()[-1]

    def log(self):
        file = self.run / "train.log"
        return file.read_text() if file.exists() else ""

    def partial(self):
        """Whether the state is being written."""
        return any(self.run.glob(f"{STATE.parent}/.{STATE.name}.*{PARTIAL}"))

    def state(self):
        return torch.load(self.run / STATE, weights_only=True)

    def history(self):
        return json.loads((self.run / "history.json").read_text())


def until(condition, process, pause=0.001):
    """Wait for something; False if the process ends before."""
    end = time.monotonic() + LIMIT
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end, "in vain"
        time.sleep(pause)
    return True


def kill_somewhere(training, rng):
    """Start it and kill it a few epochs later, at any moment, as the system does when the memory is full."""
    seen = training.log().count("episodes/s") + rng.randrange(1, 5)
    process = training.start()
    if until(lambda: training.log().count("episodes/s") > seen, process):
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
    process.wait()


def kill_while_it_saves(training):
    """Start it and kill it with the state half written."""
    process = training.start()
    while until(training.partial, process, 0):
        os.kill(process.pid, signal.SIGSTOP)
        if training.partial():
            break
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.wait()


def equal(first, second):
    """Whether two trees of tensors and plain values are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second
