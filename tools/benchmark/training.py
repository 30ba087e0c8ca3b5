"""How fast a training runs: its loop beside its parts, and beside one with a feature bank."""

from __future__ import annotations

from contextlib import closing
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from yacs.config import CfgNode

from datasets.build import build_train_index
from datasets.demo import write_demo_data
from datasets.demo.products import TEST_PRODUCTS, TRAIN_PRODUCTS
from datasets.samples import SampleIndex
from tools.benchmark.figures import AT_LEAST, EXACTLY, Figure, clock, counted_passes
from tools.trainer import train_epoch
from tools.training.feature_bank import filled
from tools.training.state import Training
from tools.training.steps import Batch
from utils.precision import autocast

MOST_OVERHEAD = 1.15
EPOCHS = 3  # of a loader: the first starts it, the second is measured, the third keeps it at work


def measure_training(cfg: CfgNode, *, iterations: int, slack: float = 1.0) -> list[Figure]:
    """Measure a training on procedural data in a temporary folder, on the device that there is.

    It trains an epoch as train.py does, loader and all; then runs the backbone alone on the same
    batches, and the head alone on their features; then trains an epoch from a feature bank of
    `TRAIN.feature_bank` crops, at least one. An epoch has `iterations`, 2 or more; the fewer, the
    more the unsteady flow of a loader shows. `slack` is a factor on the bounds of time. The data
    and the first weights that `cfg` names are not used.
    """
    with TemporaryDirectory(prefix="sofs_benchmark_") as scratch:
        online, banked = _trainings(cfg, Path(scratch), iterations)
        start = clock(banked.device)
        with filled(banked.cfg, banked.episodes, banked.model.backbone, banked.device):
            building = clock(banked.device) - start
            loop, passes, batches = _train(online)
            backbone, head = _run_parts(online, batches)
            banked_loop, bank_passes, _ = _train(banked)
    images = sum(len(b["query"]) + b["supports"].shape[:2].numel() for b in batches)
    per_step, share = len(passes) / len(batches), sum(passes) / images
    overhead, faster = loop / (backbone + head), loop / banked_loop
    figures = [
        ("iteration, loader and all", loop, "s"),
        ("bare passes through the backbone", backbone, "s"),
        ("head alone: forward, backward, step", head, "s"),
        ("iteration / (backbone + head)", overhead, "", MOST_OVERHEAD * slack),
        ("passes through the backbone per iteration", per_step, "", 1, EXACTLY),
        ("images encoded / images of the episodes", share, "", 1, EXACTLY),
        ("feature bank: encoding it once", building, "s"),
        ("feature bank: iteration", banked_loop, "s"),
        ("feature bank: epoch without it / epoch with it", faster, "", 1 / slack, AT_LEAST),
        ("feature bank: passes in an epoch", len(bank_passes), "", 0, EXACTLY),
    ]
    return [Figure("training", *figure) for figure in figures]


def _trainings(cfg: CfgNode, folder: Path, iterations: int) -> tuple[Training, Training]:
    """A training without and one with a feature bank, of the same samples."""
    write_demo_data(folder / "data", products=TRAIN_PRODUCTS[:1])
    settings = []
    for crops in (0, max(1, cfg.TRAIN.feature_bank)):
        changed = cfg.clone()
        changed.defrost()
        data, train, setups = changed.DATASET, changed.TRAIN, changed.TRAIN_SETUPS
        data.name, data.vision_data_load, data.vision_data_save = "VISION_V1_ND", False, False
        data.train_objects, data.test_objects = [TRAIN_PRODUCTS[0]], [TEST_PRODUCTS[0]]
        train.dataset_path, train.extra_dataset_paths = str(folder / "data" / "VISION_V1"), []
        train.load_checkpoint, train.resume, train.feature_bank = False, "", crops
        setups.epochs, setups.TEST_SETUPS.train_miou = EPOCHS, EPOCHS + 1
        changed.freeze()
        settings.append(changed)
    index = build_train_index(settings[0])
    members = cycle(index.samples[i] for i in next(iter(index.classes().values())))
    samples = islice(members, iterations * cfg.TRAIN_SETUPS.batch_size)
    index = SampleIndex(index.root, list(samples))
    online, banked = (Training(s, index, folder) for s in settings)
    return online, banked


def _train(run: Training) -> tuple[float, list[int], list[Batch]]:
    """An epoch in the midst of others: seconds per iteration, images of each pass through the
    backbone, and the batches on the device."""
    batches: list[Batch] = []
    run.batches.epochs = range(run.epoch, run.epoch + EPOCHS)
    with closing(iter(run.loader())) as loaded:
        train_epoch(run, loaded)
        collect = run.loss.register_forward_pre_hook(lambda _, args: batches.append(args[0]))
        start = clock(run.device)
        with counted_passes(run.model.backbone) as passes:
            train_epoch(run, loaded)
        seconds = (clock(run.device) - start) / run.batches.per_epoch
        collect.remove()
    return seconds, passes, batches


def _run_parts(run: Training, batches: list[Batch]) -> tuple[float, float]:
    """Seconds per iteration of bare passes through the backbone, and of the head's forward,
    backward and step."""
    backbone = head = 0.0
    for batch in batches:
        images = torch.cat([batch["query"], batch["supports"].flatten(0, 1)])
        start = clock(run.device)
        with autocast(run.device, run.cfg.TRAIN.precision):
            maps = run.model.backbone(images)
        backbone += clock(run.device) - start
        features, count = torch.cat(maps, dim=1), len(batch["query"])
        supports = features[count:].unflatten(0, (count, -1))
        start = clock(run.device)
        run.update(batch | {"query_features": features[:count], "support_features": supports})
        head += clock(run.device) - start
    run.step, run.losses = 0, []  # these steps are of no epoch
    return backbone / len(batches), head / len(batches)
