"""The training job.

One process: `python train.py --cfg FILE`; many: the same with `--opts NUM_GPUS N`, or
`torchrun --nproc_per_node=N train.py --cfg FILE`.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate
from torch.utils.tensorboard import SummaryWriter
from yacs.config import CfgNode

from datasets.build import build_test_index, build_train_index
from datasets.feature_bank import BankEpisodes
from datasets.views import denormalise
from models.build import with_baseline
from models.priors import upsample
from tools.evaluator import NoQueryError, SplitTest
from tools.predictor import Predictor
from tools.running import begin, run_job
from tools.training.feature_bank import filled
from tools.training.state import Training
from tools.training.steps import Batch, add_to_meter
from utils.distributed import is_main, largest, sum_over_processes, world_size
from utils.errors import ConfigError, DataError
from utils.logging import progress_bar
from utils.output_files import not_written
from utils.signals import Interrupted, postponed
from utils.visualize import TRUTH, outline, overlay, panels

LOG = logging.getLogger(__name__)
SAVE_EVERY = 500  # steps within an epoch


def run_training(cfg: CfgNode, config_file: str) -> Path:
    """Run train.py's job in NUM_GPUS processes; returns the run's folder."""
    return run_job(train, cfg, config_file, cfg.NUM_GPUS)


def train(cfg: CfgNode, folder: Path) -> list[str]:
    """Build or resume a training in the run's folder and carry it out; returns a line for each test
    set that could not be tested."""
    testing = cfg.TRAIN_SETUPS.TEST_SETUPS
    if not (cfg.TRAIN_SETUPS.epochs or testing.test_state):
        raise ConfigError("TRAIN_SETUPS.epochs is 0 and TRAIN_SETUPS.TEST_SETUPS.test_state is "
                          "False: nothing is left to do; change one of them")  # fmt: skip
    index = build_train_index(cfg)
    if missing := index.missing_images():
        raise DataError(f"{len(missing)} training images are missing, the first {missing[0]}; mend "
                        "the annotations or TRAIN.dataset_path")  # fmt: skip
    names = cfg.DATASET.sub_datasets if testing.test_state else []
    tests = [SplitTest(cfg, build_test_index(cfg, name), folder, name) for name in names]
    run = Training(cfg, index, folder)
    begin(folder, cfg, "train.log", reads=run.reads, goes_on=run.goes_on)
    for note in index.notes:
        LOG.info("%s", note)
    if cfg.TRAIN.load_checkpoint:
        LOG.info("the head starts from %s", cfg.TRAIN.load_model_path)
    facts = len(run.index), len(run.index.classes()), ", ".join(run.index.objects())
    LOG.info("training on %d samples of %d classes: %s", *facts)
    run.writer = SummaryWriter(str(folder / "events")) if is_main() else None
    failed = train_epochs(run, tests)
    if run.writer is not None:
        run.writer.close()
    return failed


def train_epochs(run: Training, tests: Sequence[SplitTest] = ()) -> list[str]:
    """Train all epochs that are left; validate and test every `epoch_test` of them; in the end test
    the head that validated best, or the last one. Returns a line for each test set that could not
    be tested. Interrupted: a signal asked the process to end; it says what is saved."""
    epochs, every = run.cfg.TRAIN_SETUPS.epochs, run.cfg.TRAIN_SETUPS.TEST_SETUPS.epoch_test
    failed: list[str] = []
    bank = filled(run.cfg, run.episodes, run.model.backbone, run.device)
    try:
        if run.epoch and not run.goes_on:  # the weights of another run are this one's from here on
            run.save()
        with bank if run.epoch < epochs else nullcontext(), closing(iter(run.loader())) as batches:
            validate(run)  # after an epoch at whose end the run was cut off
            while run.epoch < epochs:
                train_epoch(run, batches)
                validate(run)
                if run.epoch % every == 0 and run.epoch < epochs:
                    failed += test(run, tests)
        failed += test(run, tests, final=True)
    except Interrupted as error:
        raise error if error.saved else run.interrupted(error.number) from None
    return list(dict.fromkeys(failed))


def train_epoch(run: Training, batches: Iterator[Batch]) -> None:
    """Train the epoch, or what is left of it: saved at its end, every 500 steps, and after the step
    at which a signal arrives, which raises Interrupted."""
    run.begin_epoch()
    setups, steps, first = run.cfg.TRAIN_SETUPS, run.batches.per_epoch, run.step
    measures = (run.epoch + 1) % setups.TEST_SETUPS.train_miou == 0
    name, start, episodes = f"epoch {run.epoch + 1}/{setups.epochs}", time.perf_counter(), 0
    # to ask the GPU for the loss is to wait for it: what has arrived is shown
    shown = torch.zeros((), pin_memory=run.device.type == "cuda")
    left = islice(batches, steps - first)
    with postponed(alone=world_size() == 1) as pending:
        for batch in (bar := progress_bar(left, desc=name, total=steps, initial=first)):
            for key, value in batch.items():
                if isinstance(value, Tensor):
                    batch[key] = value.to(run.device, non_blocking=True)
            loss, probability = run.update(batch)
            shown.copy_(loss, non_blocking=True)
            episodes += len(batch["query_mask"])
            speed = episodes * world_size() / (time.perf_counter() - start)
            bar.set_postfix(None, False, loss=f"{shown:.3f}", episodes_per_s=f"{speed:.2f}")
            if measures:
                add_to_meter(run.meter, batch, probability)
            if run.step == 1 and run.writer is not None:
                write_events(run, {}, run.epoch, episode_picture(run, batch, probability))
            if run.step < steps:
                number = largest(pending.number)
                if number or run.step % SAVE_EVERY == 0:
                    run.save()
                if number:
                    raise run.interrupted(number)
        _finish_epoch(run, speed, measures)
        if number := largest(pending.number):
            raise run.interrupted(number)


def _finish_epoch(run: Training, speed: float, measures: bool) -> None:
    """Log the figures of an epoch, of all processes, and save."""
    loss = sum_over_processes(torch.stack(run.losses).mean().cpu()) / world_size()
    figures = {"loss": float(loss), "learning_rate": run.optimizer.param_groups[0]["lr"]}
    LOG.info("epoch %d: loss %.4f, %.2f episodes/s", run.epoch + 1, loss, speed)
    if measures:
        run.meter.counts = sum_over_processes(run.meter.counts)
        ious = [(k, 100 * v) for k, v in run.meter.class_iou().items() if v is not None]
        LOG.info("training IoU: %s", ", ".join(f"{name} {iou:.1f}" for name, iou in ious))
        figures["train_miou"] = run.meter.miou() or 0.0
    scalars = {f"train/{name.removeprefix('train_')}": value for name, value in figures.items()}
    write_events(run, scalars | {"train/episodes_per_second": speed}, run.epoch)
    run.end_epoch(figures)


def validate(run: Training) -> None:
    """Where it is due and not done yet, test on the held-out images, and keep the head if it is the
    best so far: an equal one does not replace it."""
    setups = run.cfg.TRAIN_SETUPS
    due = run.epoch % setups.TEST_SETUPS.epoch_test == 0 or run.epoch == setups.epochs
    between_epochs = run.epoch and not run.step
    if run.validation is None or not (due and between_epochs) or "validation" in run.history[-1]:
        return
    predictor, title = predictor_of(run), f"validation after {run.epoch} epochs"
    evaluation = run.validation.run(predictor, title, epochs=run.epoch)
    mious = {method: evaluation.miou(method) for method in evaluation.methods}
    run.history[-1]["validation"] = mious
    scalars = {f"validation/miou_{method}": miou or 0.0 for method, miou in mious.items()}
    write_events(run, scalars, run.epoch)
    miou = mious[predictor.main] or 0.0
    if run.best is None or miou > run.best["miou"]:
        head = copy.deepcopy(run.model.head.state_dict())
        run.best = {"epoch": run.epoch, "miou": miou, "head": head}
        run.save_best()
    run.save()


def test(run: Training, tests: Sequence[SplitTest], *, final: bool = False) -> list[str]:
    """Test the head on the test objects; in the end the one that validated best, with a gallery.
    Returns a line for each set that could not be tested."""
    epochs, failed = run.epoch, []
    if final and run.best is not None:
        epochs = run.best["epoch"]
        run.model.head.load_state_dict(run.best["head"])
        run.save_best()  # which may be of the run that this one has resumed
    predictor = predictor_of(run)
    for item in tests:
        try:
            title = f"{item.name} after {epochs} epochs"
            evaluation = item.run(predictor, title, gallery=final, epochs=epochs)
        except NoQueryError as error:
            failed.append(f"{item.name} could not be tested: {error}")
            LOG.warning("%s", failed[-1])
            continue
        mious = {m: evaluation.miou(m) or 0.0 for m in predictor.methods}
        write_events(run, {f"{item.name}/miou_{m}": v for m, v in mious.items()}, run.epoch)
    return failed


def predictor_of(run: Training) -> Predictor:
    """A predictor of the head as it is, beside the prior."""
    return Predictor.from_config(run.cfg, with_baseline(run.cfg, run.model), run.device)


def write_events(
    run: Training, scalars: dict[str, float], step: int, episode: np.ndarray | None = None
) -> None:
    """Write scalars and the picture of an episode for TensorBoard, in the main process of a job."""
    if run.writer is None:
        return
    try:
        for name, value in scalars.items():
            run.writer.add_scalar(name, value, step)
        if episode is not None:
            run.writer.add_image("train/episode", episode, step, dataformats="HWC")
        run.writer.flush()
    except OSError as error:
        raise not_written(run.folder / "events", error) from error


def episode_picture(run: Training, batch: Batch, probability: Tensor) -> np.ndarray:
    """First support, first query and its answer of a batch side by side, (H, W, 3) uint8 RGB."""
    if isinstance(run.episodes, BankEpisodes):
        batch = default_collate([run.episodes.images(int(batch["number"][0]))])
    threshold = run.cfg.TEST.threshold if isinstance(run.cfg.TEST.threshold, float) else 0.5
    answer = upsample(probability[:1], batch["query"].shape[-2:])[0].cpu().numpy() > threshold
    support = denormalise(batch["supports"][0, 0].cpu())
    query, truth = denormalise(batch["query"][0].cpu()), batch["query_mask"][0].cpu().numpy()
    marked = outline(support, batch["support_masks"][0, 0].cpu().numpy(), TRUTH)
    pictures = [(f"support {batch['class'][0]}", marked)]
    pictures.append(("query: truth", outline(query, truth, TRUTH)))
    return panels([*pictures, ("query: prediction", overlay(query, answer))])
