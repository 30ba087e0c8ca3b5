"""Long jobs of a process of its own, which prints what it held along the way as a line of JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path

import torch

from datasets.build import build_test_index
from datasets.views import SupportSet
from tests.helpers import picture, tiny_config, training_of, untrained_predictor
from tests.tools.open_domain_data import config
from tools.evaluator import SplitTest, run_test
from tools.trainer import train_epochs
from utils.logging import setup_logging

PAGE = os.sysconf("SC_PAGE_SIZE")
SMALL = {f"DATASET__{name}": 32 for name in ("image_size", "mask_size", "crop_size")}
SMALL |= {"DATASET__area_resize_ratio": 0.0}  # nothing in windows: a pass per image
SMALL |= {"TRAIN__SOFS__transformer_num_stages": 1}


def held() -> dict[str, float]:
    """Resident memory of the process and of its workers (MB), open files and threads of it."""
    workers = [f"/proc/{child.pid}/statm" for child in active_children()]
    texts = [Path(file).read_text() for file in ("/proc/self/statm", *workers)]
    resident = [int(text.split()[1]) * PAGE / 1e6 for text in texts]
    files, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
    return {"memory": resident[0], "workers": sum(resident[1:]), "files": files, "threads": threads}


class Samples:
    """What is held after each `every` steps."""

    def __init__(self, every: int) -> None:
        self.every, self.steps = every, 0
        self.found: list[dict[str, float]] = []

    def step(self, *_: object) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            self.found.append(held())


def evaluated(root: Path, folder: Path, workers: int, samples: Samples) -> None:
    """2,000 queries of a test."""
    changes = {"DATASET__test_sample_repeated_multiple": 40, "TRAIN_SETUPS__num_workers": workers}
    cfg = tiny_config(root, folder, **SMALL, **changes)
    predictor = untrained_predictor(cfg)
    predictor.backbone.register_forward_pre_hook(samples.step)
    SplitTest(cfg, build_test_index(cfg), folder, "original").run(predictor, "long")


def trained(root: Path, folder: Path, workers: int, samples: Samples) -> None:
    """2,000 iterations in 40 epochs of 50, a checkpoint after each."""
    changes = {"epochs": 40, "batch_size": 1, "num_workers": workers}
    changes = {f"TRAIN_SETUPS__{name}": value for name, value in changes.items()}
    run = training_of(root, folder, **SMALL, **changes)
    run.loss.register_forward_hook(samples.step)
    train_epochs(run)


def predicted(root: Path, folder: Path, workers: int, samples: Samples) -> None:
    """2,000 images of ever other sizes, half of them in a row, half one by one."""
    predictor = untrained_predictor(tiny_config(root, folder, **SMALL))
    masks = torch.zeros(2, 32, 32, dtype=torch.uint8)
    masks[:, 4:12, 4:12] = 1
    predictor.memory = predictor.remember(SupportSet(torch.randn(2, 3, 32, 32), masks))
    images = [picture(40 + i, 60 - i, seed=i) for i in range(20)]
    for _ in predictor.predict_many(images[i % 20] for i in range(1000)):
        samples.step()
    for i in range(1000):
        predictor.predict(images[i % 20])
        samples.step()


def open_domained(root: Path, folder: Path, workers: int, samples: Samples) -> None:
    """500 queries of an open domain object."""
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, _: samples.step() if type(module).__name__ == "Backbone" else None
    )
    run_test(config(root, folder, **SMALL), "")
    hook.remove()


JOBS: dict[str, tuple[Callable[[Path, Path, int, Samples], None], int]] = {
    "evaluated": (evaluated, 100),
    "trained": (trained, 100),
    "predicted": (predicted, 100),
    "open_domain": (open_domained, 4),  # a pass for several queries
}

if __name__ == "__main__":
    name, root, folder, workers = sys.argv[1:]
    job, every = JOBS[name]
    samples = Samples(every)
    torch.set_num_threads(1)
    setup_logging()
    job(Path(root), Path(folder), int(workers), samples)
    print(json.dumps(samples.found))
