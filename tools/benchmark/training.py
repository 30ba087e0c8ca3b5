"""How fast a training runs: its loop beside its parts measured alone, and with a feature bank beside without one."""

from __future__ import annotations

import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from yacs.config import CfgNode

from datasets.build import build_train_index
from datasets.demo import write_demo_data
from datasets.demo.products import TEST_PRODUCTS, TRAIN_PRODUCTS
from datasets.samples import SampleIndex
from tools.benchmark.figures import AT_LEAST, AT_MOST, EXACTLY, Figure
from tools.trainer import train_epoch
from tools.training.feature_bank import filled
from tools.training.state import Training
from tools.training.steps import Batch
from utils.precision import autocast

SECTION = "training"
MOST_OVERHEAD = 1.15
EPOCHS = 3  # of a loader: the first starts it, the second is measured, the third keeps its workers at work


def measure_training(
    cfg: CfgNode, *, iterations: int, repeats: int, slack: float = 1.0
) -> list[Figure]:
    """Measure a training on procedural data in a temporary folder, on the device that there is.

    Each repeat trains an epoch as train.py does, loader and all; then runs the backbone alone on the same batches, and
    the head alone on their features; then trains an epoch from a feature bank. Seconds are medians over the repeats.

    Args:
        cfg: of a training in one process; its data and the weights that its head starts from are replaced. The bank has
            `TRAIN.feature_bank` crops, at least one.
        iterations: of an epoch, 2 or more; the fewer, the more the unsteady flow of a loader shows.
        repeats: of the measurement.
        slack: factor on the bounds of time.
    """
    with TemporaryDirectory(prefix="sofs_benchmark_") as scratch:
        online, banked = _trainers(cfg, Path(scratch), iterations)
        runs = []
        start = _now(banked)
        with filled(banked.cfg, banked.episodes, banked.model.backbone, banked.device):
            building = _now(banked) - start
            for _ in range(repeats):
                epoch = _train(online, keep=iterations)
                parts = _run_parts(online, epoch.batches)
                runs.append(_Run(epoch, *parts, _train(banked, keep=0)))
    return [*_loop_figures(runs, MOST_OVERHEAD * slack), *_bank_figures(runs, building, 1 / slack)]


@dataclass(frozen=True)
class _Epoch:
    """An epoch: seconds per iteration, images of each pass through the backbone, and the batches on the device."""

    seconds: float
    passes: list[int]
    batches: list[Batch]


@dataclass(frozen=True)
class _Run:
    """One repeat: the epoch without a bank, seconds per iteration of its parts, and the epoch with the bank."""

    online: _Epoch
    backbone: float
    head: float
    banked: _Epoch


def _trainers(cfg: CfgNode, folder: Path, iterations: int) -> tuple[Training, Training]:
    """A training without and one with a feature bank, of the same samples."""
    write_demo_data(folder / "data", products=TRAIN_PRODUCTS[:1])
    settings = [_settings(cfg, folder, crops) for crops in (0, max(1, cfg.TRAIN.feature_bank))]
    index = build_train_index(settings[0])
    own_class = next(iter(index.classes().values()))
    samples = islice(
        cycle(index.samples[i] for i in own_class), iterations * cfg.TRAIN_SETUPS.batch_size
    )
    index = SampleIndex(index.root, list(samples))
    online, banked = (Training(s, index, folder) for s in settings)
    return online, banked


def _settings(cfg: CfgNode, folder: Path, crops: int) -> CfgNode:
    own = cfg.clone()
    own.defrost()
    data, train, setups = own.DATASET, own.TRAIN, own.TRAIN_SETUPS
    data.name, data.train_objects, data.test_objects = (
        "VISION_V1_ND",
        [TRAIN_PRODUCTS[0]],
        [TEST_PRODUCTS[0]],
    )
    data.vision_data_load = data.vision_data_save = False
    train.dataset_path, train.extra_dataset_paths = str(folder / "data" / "VISION_V1"), []
    train.load_checkpoint, train.resume, train.feature_bank = False, "", crops
    setups.epochs, setups.TEST_SETUPS.train_miou = EPOCHS, EPOCHS + 1
    own.freeze()
    return own


def _now(trainer: Training) -> float:
    """Seconds on a clock, when the device has done what it was given."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter()


def _train(trainer: Training, keep: int) -> _Epoch:
    """An epoch in the midst of others; its last `keep` batches are kept."""
    passes: list[int] = []
    batches: deque[Batch] = deque(maxlen=keep)
    hooks = (
        trainer.model.backbone.register_forward_pre_hook(
            lambda _, args: passes.append(len(args[0]))
        ),
        trainer.loss.register_forward_pre_hook(lambda _, args: batches.append(args[0])),
    )
    trainer.batches.epochs = range(trainer.epoch, trainer.epoch + EPOCHS)
    with closing(iter(trainer.loader())) as loaded:
        train_epoch(trainer, loaded)
        passes.clear()
        start = _now(trainer)
        train_epoch(trainer, loaded)
        seconds = (_now(trainer) - start) / trainer.batches.per_epoch
    for hook in hooks:
        hook.remove()
    return _Epoch(seconds, passes, list(batches))


def _run_parts(trainer: Training, batches: list[Batch]) -> tuple[float, float]:
    """Seconds per iteration of bare passes through the backbone, and of the head's forward, backward and step."""
    backbone = head = 0.0
    for batch in batches:
        images = torch.cat([batch["query"], batch["supports"].flatten(0, 1)])
        start = _now(trainer)
        with autocast(trainer.device, trainer.cfg.TRAIN.precision):
            maps = trainer.model.backbone(images)
        encoded = _now(trainer)
        features, count = torch.cat(maps, dim=1), len(batch["query"])
        masks = {key: batch[key] for key in ("query_mask", "support_masks")}
        supports = features[count:].unflatten(0, (count, -1))
        ready = _now(trainer)
        trainer.update(
            masks | {"query_features": features[:count], "support_features": supports}
        )
        head += _now(trainer) - ready
        backbone += encoded - start
    trainer.step, trainer.losses = 0, []  # these steps are of no epoch
    return backbone / len(batches), head / len(batches)


def _loop_figures(runs: list[_Run], most: float) -> list[Figure]:
    batches, passes = runs[-1].online.batches, runs[-1].online.passes
    wanted = sum(len(b["query"]) + b["supports"].shape[0] * b["supports"].shape[1] for b in batches)
    overhead = median(r.online.seconds / (r.backbone + r.head) for r in runs)
    return [
        Figure(SECTION, "iteration, loader and all", median(r.online.seconds for r in runs), "s"),
        Figure(SECTION, "bare passes through the backbone", median(r.backbone for r in runs), "s"),
        Figure(SECTION, "head alone: forward, backward, step", median(r.head for r in runs), "s"),
        Figure(SECTION, "iteration / (backbone + head)", overhead, "", most, AT_MOST),
        Figure(
            SECTION,
            "passes through the backbone per iteration",
            len(passes) / len(batches),
            "",
            1,
            EXACTLY,
        ),
        Figure(
            SECTION, "images encoded / images of the episodes", sum(passes) / wanted, "", 1, EXACTLY
        ),
    ]


def _bank_figures(runs: list[_Run], building: float, least: float) -> list[Figure]:
    faster = median(r.online.seconds / r.banked.seconds for r in runs)
    passes = sum(len(r.banked.passes) for r in runs)
    return [
        Figure(SECTION, "feature bank: encoding it once", building, "s"),
        Figure(SECTION, "feature bank: iteration", median(r.banked.seconds for r in runs), "s"),
        Figure(
            SECTION, "feature bank: epoch without it / epoch with it", faster, "", least, AT_LEAST
        ),
        Figure(
            SECTION, "feature bank: passes through the backbone in an epoch", passes, "", 0, EXACTLY
        ),
    ]
