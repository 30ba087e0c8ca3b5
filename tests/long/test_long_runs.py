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
from tools.evaluator import SplitTest
from tools.trainer import train_epochs
from utils.logging import setup_logging

ROOT = Path(__file__).parents[2]
PAGE = os.sysconf("SC_PAGE_SIZE")
GROWTH = 20  # MB, within which allocators settle
EVERY = 100  # steps between two looks
SMALL = {f"DATASET__{name}": 32 for name in ("image_size", "mask_size", "crop_size")}
SMALL |= {"DATASET__area_resize_ratio": 0.0}  # nothing in windows: a pass per image
SMALL |= {"TRAIN__SOFS__transformer_num_stages": 1}


class Samples(list):
    """What is held after every so many steps: resident memory of the process and of its workers
    (MB), its open files and threads."""

    steps = 0

    def step(self, *_):
        self.steps += 1
        if self.steps % EVERY == 0:
            workers = [f"/proc/{child.pid}/statm" for child in active_children()]
            texts = [Path(file).read_text() for file in ("/proc/self/statm", *workers)]
            memory, *others = [int(text.split()[1]) * PAGE / 1e6 for text in texts]
            files, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
            self.append([memory, sum(others), files, threads])


def evaluated(root, folder, workers, step):
    """2,000 queries of a test."""
    changes = {"DATASET__test_sample_repeated_multiple": 40, "TRAIN_SETUPS__num_workers": workers}
    cfg = tiny_config(root, folder, **SMALL, **changes)
    predictor = untrained_predictor(cfg)
    predictor.backbone.register_forward_pre_hook(step)
    SplitTest(cfg, build_test_index(cfg), folder, "original").run(predictor, "long")


def trained(root, folder, workers, step):
    """2,000 iterations in 40 epochs of 50, a checkpoint after each."""
    changes = {"epochs": 40, "batch_size": 1, "num_workers": workers}
    changes = {f"TRAIN_SETUPS__{name}": value for name, value in changes.items()}
    run = training_of(root, folder, **SMALL, **changes)
    run.loss.register_forward_hook(step)
    train_epochs(run)


@pytest.mark.parametrize("job", ["evaluated", "trained"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_long_run_does_not_grow(tmp_path, job, workers):
    for name in ("Plate", "Disk"):
        write_product(tmp_path, name, {"spot": 25, "line": 25}, size=(48, 64))
    words = [job, str(tmp_path), str(tmp_path / "run"), str(workers)]
    command = [sys.executable, "-m", "tests.long.test_long_runs", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout.splitlines()[-1])
    # the last passes may come after the workers have ended
    samples = [sample for sample in samples if (sample[1] > 0) == (workers > 0)]
    assert len(samples) >= 16
    more = [b - a for a, b in zip(samples[len(samples) // 4], samples[-1], strict=True)]
    bounds = [GROWTH, GROWTH, 0, 2]  # threads come and go
    assert all(value <= most for value, most in zip(more, bounds, strict=True)), samples


if __name__ == "__main__":
    name, root, folder, workers = sys.argv[1:]
    samples = Samples()
    torch.set_num_threads(1)
    setup_logging()
    job = {"evaluated": evaluated, "trained": trained}[name]
    job(Path(root), Path(folder), int(workers), samples.step)
    print(json.dumps(samples))
