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
from utils.signals import SIGNALS, Interrupted

REPO = Path(__file__).parents[2]
MESSAGE = "a.png: broken: copy it again\nand b.png: missing"


def exchange_and_fail(folder):
    """Each process writes what it gets; the second one fails while the first waits for it."""
    counts = torch.tensor([1, 10 * rank()])
    values = {"sum": distributed.sum_over_processes(counts).tolist(), "own": counts.tolist()}
    values |= {"gathered": gather_objects(rank()), "world": world_size(), "main": is_main()}
    values |= {
        "largest": distributed.largest(3 + rank()),
        "from_main": distributed.from_main(f"of {rank()}"),
    }
    (folder / f"{rank()}.json").write_text(json.dumps(values))
    if rank() == 1:
        raise DataError(MESSAGE)
    gather_objects(None)


def fail_in_all():
    raise DataError(f"of {rank()}")


def fail_otherwise():
    if rank() == 1:
        raise ValueError("a fault of the program")
    gather_objects(None)


def kill_one(number):
    """One process gets a signal while the other saves, which takes until it is told to end."""
    if rank() == 1:
        os.kill(os.getpid(), number)
    try:
        threading.Event().wait(60)
    except Interrupted as error:
        raise Interrupted(error.number, "saved" if rank() == 0 else "") from None


def name_process():
    return f"process {rank()} of {world_size()}"


def print_and_wait():
    print("ready\n", end="", flush=True)
    threading.Event().wait(60)


def test_processes_exchange_values_and_the_user_error_of_one_reaches_the_parent(tmp_path):
    with pytest.raises(DataError) as error:
        launch(exchange_and_fail, 2, "nccl", tmp_path)
    assert type(error.value) is DataError and str(error.value) == MESSAGE
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    same = {"sum": [2, 10], "gathered": [0, 1], "world": 2, "largest": 4, "from_main": "of 0"}
    assert first == same | {"own": [1, 0], "main": True}
    assert second == same | {"own": [1, 10], "main": False}


def test_a_user_error_is_raised_once_and_signals_are_handled_as_before():
    handlers = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(DataError, match=r"^of [01]$"):
        launch(fail_in_all, 2, "gloo")
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_any_other_error_keeps_its_traceback(capfd):
    words = r"process 1 failed[\s\S]*fail_otherwise[\s\S]*ValueError: a fault of the program"
    with pytest.raises(ProcessError, match=words):
        launch(fail_otherwise, 2, "gloo")
    assert "Traceback" not in capfd.readouterr().err, "it is raised, not printed"


def test_a_killed_process_ends_the_others_and_is_named():
    with pytest.raises(ProcessError, match=r"process 1 was killed by SIGKILL.*memory"):
        launch(kill_one, 2, "gloo", signal.SIGKILL)


def test_a_signal_to_one_process_ends_all():
    with pytest.raises(Interrupted, match="saved") as error:
        launch(kill_one, 2, "gloo", signal.SIGTERM)
    assert error.value.exit_code == 143


def test_processes_end_when_their_launcher_is_killed():
    code = "from tests.utils.test_distributed import *; launch(print_and_wait, 2, 'gloo')"
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE)
    assert [launcher.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
    launcher.kill()
    launcher.communicate(timeout=50)  # returns when no process holds the pipe any more


def test_one_process_is_this_one_and_what_the_main_one_returns_comes_back():
    assert launch(name_process, 2, "gloo") == "process 0 of 2"
    here = []
    launch(here.append, 1, "gloo", "here")
    assert here == ["here"] and (rank(), world_size(), is_main()) == (0, 1, True)
    assert (
        gather_objects("x") == ["x"]
        and distributed.largest(2) == 2
        and distributed.from_main("x") == "x"
    )
    assert distributed.sum_over_processes(torch.tensor([3])).tolist() == [3]
    with pytest.raises(DataError, match=r"^of 0$"):
        launch(fail_in_all, 1, "gloo")
