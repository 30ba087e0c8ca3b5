from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from utils.distributed import (
    from_main,
    gather_objects,
    is_main,
    largest,
    rank,
    sum_over_processes,
    world_size,
)
from utils.errors import DataError, ProcessError
from utils.launch import launch
from utils.signals import Interrupted

REPO = Path(__file__).parents[2]
MESSAGE = "a.png: broken: copy it again\nand b.png: missing"


def tell_and_fail(folder):
    """Each process writes what it knows of the others; the second one fails while the first waits for it."""
    counts = torch.tensor([1, 10 * rank()])
    told = {
        "gathered": gather_objects({"rank": rank()}),
        "sum": sum_over_processes(counts).tolist(),
    }
    told |= {"world": world_size(), "main": is_main(), "own": counts.tolist()}
    told |= {"largest": largest(3 + rank()), "from_main": from_main(f"of {rank()}")}
    (folder / f"{rank()}.json").write_text(json.dumps(told))
    if rank() == 1:
        raise DataError(MESSAGE)
    gather_objects(None)


def fail_all():
    raise DataError(f"of {rank()}")


def fail_otherwise(folder):
    if rank() == 1:
        note_end(folder)
        raise ValueError("utils.errors.DataError: not one of the user's")
    gather_objects(None)


def die(folder):
    if rank() == 1:
        note_end(folder)
        os.kill(os.getpid(), signal.SIGKILL)
    gather_objects(None)


def note_end(folder):
    (folder / "end").write_text(str(time.monotonic()))


def seconds_since_end(folder):
    """From there to now; starting the processes, with all their imports, takes as long as the machine needs."""
    return time.monotonic() - float((folder / "end").read_text())


def hear_of_a_signal():
    """One process is told to end; all leave, and the main one says what was saved."""
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    gather_objects(None)
    time.sleep(60)


def die_while_the_other_saves(folder):
    if rank() == 1:
        note_end(folder)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        time.sleep(60)
    except Interrupted as error:
        raise Interrupted(error.number, "saved") from None


def name_of_the_process():
    return f"process {rank()} of {world_size()}"


def test_processes_know_each_other_and_their_user_errors_reach_the_parent(tmp_path):
    with pytest.raises(DataError) as error:
        launch(tell_and_fail, 2, "nccl", tmp_path)
    assert type(error.value) is DataError and str(error.value) == MESSAGE
    first, second = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert first["gathered"] == second["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert first["sum"] == second["sum"] == [2, 10]
    assert (
        first["largest"] == second["largest"] == 4
        and first["from_main"] == second["from_main"] == "of 0"
    )
    assert second["own"] == [1, 10], "what is summed is left as it was"
    assert (first["main"], second["main"]) == (True, False) and first["world"] == 2


def test_of_a_fault_that_all_have_the_main_process_tells():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(DataError, match=r"^of 0$"):
        launch(fail_all, 2, "gloo")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_any_other_error_keeps_its_traceback(tmp_path):
    with pytest.raises(
        ProcessError, match=r"process 1 failed[\s\S]*fail_otherwise[\s\S]*ValueError: utils"
    ):
        launch(fail_otherwise, 2, "gloo", tmp_path)


@pytest.mark.parametrize("job", [die, die_while_the_other_saves])
def test_a_killed_process_ends_the_others_within_a_minute(tmp_path, job):
    with pytest.raises(ProcessError, match=r"process 1 was killed by SIGKILL"):
        launch(job, 2, "gloo", tmp_path)
    assert seconds_since_end(tmp_path) < 60


def test_a_signal_to_one_process_ends_all():
    with pytest.raises(Interrupted) as error:
        launch(hear_of_a_signal, 2, "gloo")
    assert error.value.exit_code == 143


def test_what_the_main_process_returns_comes_back():
    assert launch(name_of_the_process, 3, "gloo") == "process 0 of 3"


def test_one_process_is_this_one(tmp_path):
    done = []
    launch(done.append, 1, "gloo", "here")
    assert done == ["here"]
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    assert gather_objects("x") == ["x"] and sum_over_processes(torch.tensor([3])).tolist() == [3]
    assert largest(2) == 2 and from_main("x") == "x"
    with pytest.raises(DataError, match=r"^of 0$"):
        launch(fail_all, 1, "gloo")


@pytest.mark.parametrize(
    "job, words", [("fail_otherwise", "ValueError: utils.errors"), ("die", "SIGKILL")]
)
def test_a_process_of_torchrun_that_fails_ends_the_others_within_a_minute(tmp_path, job, words):
    call = f"launch({job}, 1, 'gloo', Path({str(tmp_path)!r}))"
    done = torchrun(
        2, "-c", f"from tests.utils.test_launch import *\nfrom utils.launch import launch\n{call}"
    )
    assert seconds_since_end(tmp_path) < 60
    assert done.returncode == 1 and words in done.stderr


def torchrun(processes, *command):
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = [*start, "--no-python", sys.executable, *command]
    return subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
