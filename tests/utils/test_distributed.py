from __future__ import annotations

import json

import pytest
import torch

from utils.distributed import gather_objects, is_main, launch, rank, sum_over_processes, world_size
from utils.errors import DataError

CPU = torch.device("cpu")
MESSAGE = "a.png: broken: copy it again\nand b.png: missing"


def tell_and_fail(folder):
    """Each process writes what it knows of the others; the second one fails while the first waits for it."""
    counts = torch.tensor([1, 10 * rank()])
    told = {"gathered": gather_objects({"rank": rank()}), "sum": sum_over_processes(counts, CPU).tolist()}
    told |= {"world": world_size(), "main": is_main(), "own": counts.tolist()}
    (folder / f"{rank()}.json").write_text(json.dumps(told))
    if rank() == 1:
        raise DataError(MESSAGE)
    gather_objects(None)


def fail_otherwise():
    raise ValueError("utils.errors.DataError: not one of the user's")


def test_processes_know_each_other_and_their_user_errors_reach_the_parent(tmp_path):
    with pytest.raises(DataError) as error:
        launch(tell_and_fail, 2, "nccl", tmp_path)
    assert type(error.value) is DataError and str(error.value) == MESSAGE
    first, second = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert first["gathered"] == second["gathered"] == [{"rank": 0}, {"rank": 1}]
    assert first["sum"] == second["sum"] == [2, 10]
    assert second["own"] == [1, 10], "what is summed is left as it was"
    assert (first["main"], second["main"]) == (True, False) and first["world"] == 2


def test_any_other_error_keeps_its_traceback():
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match=r"fail_otherwise[\s\S]*ValueError"):
        launch(fail_otherwise, 2, "gloo")


def test_one_process_is_this_one(tmp_path):
    done = []
    launch(done.append, 1, "gloo", "here")
    assert done == ["here"]
    assert (rank(), world_size(), is_main()) == (0, 1, True)
    assert gather_objects("x") == ["x"] and sum_over_processes(torch.tensor([3]), CPU).tolist() == [3]
    with pytest.raises(DataError, match=r"^gone$"):
        launch(_fail, 1, "gloo")


def _fail():
    raise DataError("gone")
