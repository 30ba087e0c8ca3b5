"""Trainings in processes of their own, which are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
import time

import torch

from tests.helpers import JOBS, tiny_config
from tools.cli import run_main
from tools.training.state import STATE
from utils.files import PARTIAL

LIMIT = 240  # seconds, of a wait
FORKS = multiprocessing.get_context("forkserver")  # of a process that has imported PyTorch, which takes seconds, once
FORKS.set_forkserver_preload(["tools.trainer"])


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

    def start(self, largest_file=resource.RLIM_INFINITY):
        """The process, whose files may have so many bytes; its errors are kept in a file."""
        self.errors = self.yaml.with_suffix(".stderr")
        process = FORKS.Process(target=_train, args=(self.yaml, self.errors, largest_file))
        process.start()
        return process

    def finish(self, **limits):
        """Run to the end; returns the code."""
        return ended(self.start(**limits))

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


def _train(yaml, errors, largest_file):
    """What `train.py --cfg FILE` does, as a process that shares nothing with the others."""
    os.setsid()
    for stream, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    torch.set_num_threads(1)
    sys.argv = ["train.py", "--cfg", str(yaml)]
    sys.exit(run_main("", JOBS["train"]))


def ended(process):
    """Wait for its end; returns the code."""
    process.join(LIMIT)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


def until(condition, process, pause=0.001):
    """Wait for something; False if the process ends before."""
    end = time.monotonic() + LIMIT
    while not condition():
        if not process.is_alive():
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
    ended(process)


def kill_while_it_saves(training):
    """Start it and kill it with the state half written."""
    process = training.start()
    while until(training.partial, process, 0):
        os.kill(process.pid, signal.SIGSTOP)
        if training.partial():
            break
        os.kill(process.pid, signal.SIGCONT)
    process.kill()
    ended(process)


def equal(first, second):
    """Whether two trees of tensors and plain values are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second
