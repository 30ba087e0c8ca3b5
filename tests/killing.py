"""Trainings in processes of their own, which are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import torch

from tests.helpers import JOBS, tiny_config
from tools.checkpoint import STATE
from tools.cli import run_main
from utils.output_files import PARTIAL

LIMIT = 240  # seconds of a wait
HALF = 10_000  # bytes of a state that is never whole
FORKS = multiprocessing.get_context("forkserver")


class Training:
    """A training of a changed tiny config that resumes where it was cut off; its YAML file and its
    run are below a folder."""

    def __init__(self, data, folder, **changes):
        folder.mkdir(parents=True, exist_ok=True)
        cfg = tiny_config(data, folder / "log", TRAIN__resume="auto", **changes)
        self.yaml, self.run = folder / "my.yaml", folder / "log" / "run"
        self.errors = self.yaml.with_suffix(".stderr")
        self.yaml.write_text(cfg.dump())

    def start(self, blow=None):
        """Start the process, whose stderr `errors` keeps."""
        process = FORKS.Process(target=_train, args=(self.yaml, self.errors, blow))
        process.start()
        return process

    def finish(self, blow=None):
        """Run to the end; returns the exit code."""
        return ended(self.start(blow))

    def partial(self):
        """Whether there is a state that was not written to its end."""
        return any(self.run.glob(f"{STATE.parent}/.{STATE.name}.*{PARTIAL}"))

    def state(self):
        return torch.load(self.run / STATE, weights_only=True)

    def history(self):
        return json.loads((self.run / "history.json").read_text())


@dataclass
class Blow:
    """What kills a training when it writes its state for the `time`-th time, counted from 1: a
    signal some seconds after it has begun to write; None: the kernel ends it in the midst."""

    time: int
    seconds: float | None = None

    def note(self, event, arguments):
        """For `sys.addaudithook`."""
        state = rf"/\.{STATE.name}\..*{PARTIAL}$"
        if event != "open" or not re.search(state, str(arguments[0])):
            return
        self.time -= 1
        if self.time == 0 and self.seconds is None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (HALF, resource.RLIM_INFINITY))
        elif self.time == 0:
            subprocess.Popen(["sh", "-c", f"sleep {self.seconds}; kill -9 {os.getpid()}"])


def _train(yaml, errors, blow):
    """What `train.py --cfg FILE` does, in a session of its own."""
    os.setsid()
    for stream, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    if blow:
        sys.addaudithook(blow.note)
    sys.argv = ["train.py", "--cfg", str(yaml)]
    sys.exit(run_main("", JOBS["train"]))


def ended(process):
    """Wait for its end; returns the exit code."""
    process.join(LIMIT)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


def until(condition, process):
    """Wait for a condition while the process runs."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.01)


def kill_somewhere(training, rng):
    """Start it and kill it a few epochs later, at any moment, as a full memory does."""
    blow = Blow(rng.randrange(2, 5), seconds=rng.uniform(0, 0.1))
    assert training.finish(blow) == -signal.SIGKILL


def kill_while_it_saves(training):
    """Start it and have it end with the state half written."""
    assert training.finish(Blow(2)) == -signal.SIGXFSZ and training.partial()


def equal(first, second):
    """Whether two trees of tensors and plain values are equal, bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        same = first.keys() == second.keys()
        return same and all(equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second
