"""Long runs hold no more memory, files or threads at their end than after their first quarter.

Run as a program, `job root folder workers`, it does one of the jobs and prints what the process
held along the way as a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from datasets.build import build_test_index
from tests.helpers import tiny_config, training_of, untrained_predictor, write_product
from tests.tools.open_domain_data import config, write_object
from tools.evaluator import SplitTest, run_test
from tools.trainer import train_epochs
from utils.logging import setup_logging

ROOT = Path(__file__).parents[2]
PAGE = os.sysconf("SC_PAGE_SIZE")
GROWTH = 20  # MB, within which allocators settle
COMING_AND_GOING = 2  # threads that live for a query
QUERIES = 500
SMALL = {f"DATASET__{name}": 32 for name in ("image_size", "mask_size", "crop_size")}
SMALL |= {"DATASET__area_resize_ratio": 0.0}  # nothing in windows: a pass per image
SMALL |= {"TRAIN__SOFS__transformer_num_stages": 1}


class Samples:
    """What is held after each `every` steps: resident memory of the process and of its workers
    (MB), open files and threads of it."""

    def __init__(self, every):
        self.every, self.steps, self.found = every, 0, []

    def step(self, *_):
        self.steps += 1
        if self.steps % self.every:
            return
        workers = [f"/proc/{child.pid}/statm" for child in active_children()]
        texts = [Path(file).read_text() for file in ("/proc/self/statm", *workers)]
        memory, *others = [int(text.split()[1]) * PAGE / 1e6 for text in texts]
        files, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
        sample = {"memory": memory, "workers": sum(others), "files": files, "threads": threads}
        self.found.append(sample)


def evaluated(root, folder, workers, samples):
    """2,000 queries of a test."""
    changes = {"DATASET__test_sample_repeated_multiple": 40, "TRAIN_SETUPS__num_workers": workers}
    cfg = tiny_config(root, folder, **SMALL, **changes)
    predictor = untrained_predictor(cfg)
    predictor.backbone.register_forward_pre_hook(samples.step)
    SplitTest(cfg, build_test_index(cfg), folder, "original").run(predictor, "long")


def trained(root, folder, workers, samples):
    """2,000 iterations in 40 epochs of 50, a checkpoint after each."""
    changes = {"epochs": 40, "batch_size": 1, "num_workers": workers}
    changes = {f"TRAIN_SETUPS__{name}": value for name, value in changes.items()}
    run = training_of(root, folder, **SMALL, **changes)
    run.loss.register_forward_hook(samples.step)
    train_epochs(run)


def open_domained(root, folder, workers, samples):
    """500 queries of an open domain object."""
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: samples.step() if type(module).__name__ == "Backbone" else None
    )
    run_test(config(root, folder, **SMALL), "")
    hook.remove()


# and after how many steps to look; in the open domain a pass is for several queries
JOBS = {"evaluated": (evaluated, 100), "trained": (trained, 100), "open_domain": (open_domained, 4)}


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Root of Plate and Disk with 50 images each, and of the open domain object steel."""
    root = tmp_path_factory.mktemp("products")
    for name in ("Plate", "Disk"):
        write_product(root, name, {"spot": 25, "line": 25}, size=(48, 64))
    queries = {f"{number:03}.png": (48, 64) for number in range(QUERIES)}
    write_object(root, "steel", queries, labels=["003.png"])
    return root


@pytest.mark.parametrize(
    ("job", "workers"),
    [("evaluated", 0), ("evaluated", 2), ("trained", 0), ("trained", 2), ("open_domain", 0)],
)  # fmt: skip
def test_a_long_run_does_not_grow(products, tmp_path, job, workers):
    words = ["-m", "tests.long.test_long_runs", job, str(products), str(tmp_path), str(workers)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout.splitlines()[-1])
    # the last passes may come after the workers have ended
    samples = [sample for sample in samples if (sample["workers"] > 0) == (workers > 0)]
    assert len(samples) >= 16
    quarter, end = samples[len(samples) // 4], samples[-1]
    message = f"{samples[0]} at the start, {quarter} after a quarter, {end} at the end"
    assert end["memory"] - quarter["memory"] < GROWTH, message
    assert end["workers"] - quarter["workers"] < GROWTH, message
    assert end["files"] <= quarter["files"], message
    assert end["threads"] <= quarter["threads"] + COMING_AND_GOING, message


if __name__ == "__main__":
    name, root, folder, workers = sys.argv[1:]
    job, every = JOBS[name]
    samples = Samples(every)
    torch.set_num_threads(1)
    setup_logging()
    job(Path(root), Path(folder), int(workers), samples)
    print(json.dumps(samples.found))
