from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from utils import distributed
from utils.distributed import gather_objects, is_main, launch, rank, world_size
from utils.errors import DataError, ProcessError
from utils.signals import SIGNALS

REPO = Path(__file__).parents[2]
MESSAGE = "a.png: broken: copy it again\nand b.png: missing"


def exchange_and_fail(folder):
    """Each process writes what it gets; the last one fails while the others wait for it."""
    counts = torch.tensor([1, 10 * rank()])
    values = {"sum": distributed.sum_over_processes(counts).tolist(), "own": counts.tolist()}
    values |= {"gathered": gather_objects(rank()), "world": world_size(), "main": is_main()}
    values["largest"] = distributed.largest(3 + rank())
    values["from_main"] = distributed.from_main(f"of {rank()}")
    (folder / f"{rank()}.json").write_text(json.dumps(values))
    if rank() == world_size() - 1:
        raise DataError(MESSAGE)
    gather_objects(None)


def end_one(number):
    """One of two processes is killed, or fails where there is no signal."""
    if rank() == 1:
        os.kill(os.getpid(), number)
    gather_objects(None)


def name_process():
    return f"process {rank()} of {world_size()}"


def print_and_wait():
    print("ready\n", end="", flush=True)
    threading.Event().wait(60)


def test_processes_exchange_values_and_the_user_error_of_one_reaches_the_parent(tmp_path):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    values = []
    for processes in (1, 2):
        with pytest.raises(DataError) as error:
            launch(exchange_and_fail, processes, "nccl", tmp_path)
        assert type(error.value) is DataError and str(error.value) == MESSAGE
        values += [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(processes)]
    one = {"sum": [1, 0], "gathered": [0], "world": 1, "largest": 3, "from_main": "of 0"}
    two = {"sum": [2, 10], "gathered": [0, 1], "world": 2, "largest": 4, "from_main": "of 0"}
    first = {"own": [1, 0], "main": True}
    assert values == [one | first, two | first, two | {"own": [1, 10], "main": False}]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers, "as before"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "process 1 was killed by SIGKILL.*memory"),
        ("x", r"process 1 failed[\s\S]*end_one[\s\S]*TypeError"),
    ],
)
def test_a_killed_process_and_a_fault_of_the_program_end_the_others_and_are_named(
    number, words, capfd
):
    with pytest.raises(ProcessError, match=words):
        launch(end_one, 2, "gloo", number)
    assert "Traceback" not in capfd.readouterr().err, "it is raised, not printed"


def test_processes_end_when_their_launcher_is_killed():
    code = "from tests.utils.test_distributed import *; launch(print_and_wait, 2, 'gloo')"
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE)
    assert [launcher.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
    launcher.kill()
    launcher.communicate(timeout=50)  # returns when no process holds the pipe any more


def test_what_the_main_process_returns_comes_back():
    assert launch(name_process, 2, "gloo") == "process 0 of 2"
