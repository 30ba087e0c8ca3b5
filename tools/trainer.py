"""The training job. One process: `python train.py --cfg FILE`; many: the same with `--opts NUM_GPUS N`."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import default_collate
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from yacs.config import CfgNode

from datasets.build import build_test_index, build_train_index, build_training_episodes
from datasets.episodes import EpisodeSampler, derive_seed
from datasets.feature_bank import BankEpisodes
from datasets.samples import SampleIndex
from datasets.transforms import denormalise
from models.build import build_model
from models.losses import MixedNormalDiceLoss
from models.priors import upsample
from models.weights import load_checked
from tools.checkpoint import load_head, load_state, save_head, save_state
from tools.feature_bank import bank_episodes, filled
from tools.loading import EpochBatches, Loader
from tools.methods import with_baseline
from tools.predictor import AUTO, DEFAULT_THRESHOLD, Predictor
from tools.report import write_report
from tools.schedule import build_optimizer, build_schedule
from tools.steps import Batch, EpisodeLoss, add_to_meter, to_device
from tools.tester import SplitTest
from tools.validation import Validation
from utils.distributed import is_main, launch, rank, sum_over_processes, world_size
from utils.errors import DataError
from utils.files import write_json
from utils.logging import setup_logging
from utils.metrics import SegmentationMeter
from utils.precision import autocast, half_type, pick_device
from utils.run import create_run_folder, discard_on_error, recorded, run_folder
from utils.visualize import TRUTH, outline, overlay, panels

LOG = logging.getLogger(__name__)


def run_training(cfg: CfgNode, config_file: str) -> Path:
    """Run train.py's job in NUM_GPUS processes; returns the run's folder."""
    folder = run_folder(cfg, config_file)
    with discard_on_error(folder), recorded(cfg, folder, cfg.NUM_GPUS):
        launch(train, cfg.NUM_GPUS, cfg.DIST_BACKEND, cfg, folder)
    write_report(folder)
    return folder


def train(cfg: CfgNode, folder: Path) -> None:
    """Train, test every `epoch_test` epochs and at the end, keep head and state."""
    setup_logging()
    index = build_train_index(cfg)
    missing = index.missing_images()
    if missing:
        raise DataError(f"{len(missing)} training images are missing, the first {missing[0]}; mend the annotations "
                        "or TRAIN.dataset_path")  # fmt: skip
    names = cfg.DATASET.sub_datasets if cfg.TRAIN_SETUPS.TEST_SETUPS.test_state else []
    tests = [SplitTest(cfg, build_test_index(cfg, name), folder, name) for name in names]
    trainer = Trainer(cfg, index, folder)
    if is_main():
        create_run_folder(folder, cfg)
        setup_logging(folder / "train.log")
        trainer.writer = SummaryWriter(folder / "events")
    for note in index.notes:
        LOG.info("%s", note)
    own = trainer.index
    LOG.info("training on %d samples of %d classes: %s", len(own), len(own.classes()), ", ".join(own.objects()))
    trainer.run(tests)


class Trainer:
    """State of a training: model, optimizer, schedule, epoch.

    Args:
        cfg: the config.
        index: the training samples.
        folder: of the run.
    """

    def __init__(self, cfg: CfgNode, index: SampleIndex, folder: Path) -> None:
        self.cfg, self.folder = cfg, folder
        self.device = pick_device(cfg.DEVICE)
        torch.manual_seed(cfg.RNG_SEED)
        self.model = build_model(cfg).to(self.device)
        if half := half_type(self.device, cfg.TRAIN.precision):
            self.model.backbone.hold_weights(half)
        if cfg.TRAIN.load_checkpoint:
            load_head(cfg.TRAIN.load_model_path, self.model, "TRAIN.load_model_path")
        own, setups = cfg.TRAIN.LOSS, cfg.TRAIN_SETUPS
        validates = setups.TEST_SETUPS.val_state
        self.validation = Validation(cfg, index, folder) if validates else None
        self.index = index = self.validation.rest if self.validation else index
        drawn = build_training_episodes(cfg, index)
        banked = cfg.TRAIN.feature_bank > 0
        self.episodes = bank_episodes(cfg, drawn, self.model.backbone, folder) if banked else drawn
        step = EpisodeLoss(self.model, MixedNormalDiceLoss(cfg.TRAIN.SOFS.smooth_r, own.dice_weight, own.ce_weight),
                           per_pixel=own.resolution == "pixel")  # fmt: skip
        self.step = DistributedDataParallel(step) if world_size() > 1 else step
        self.optimizer = build_optimizer(self.model.head, setups.learning_rate, setups.lr_multiple, setups.weight_decay)
        sampler = EpisodeSampler(len(self.episodes), cfg.RNG_SEED, rank(), world_size())
        self.numbers = EpochBatches(sampler, setups.batch_size, range(setups.epochs))
        self.schedule = build_schedule(self.optimizer, max(1, len(self.numbers)), setups.poly_training)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=half_type(self.device, cfg.TRAIN.precision) == torch.float16
        )
        self.writer: SummaryWriter | None = None
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        if cfg.TRAIN.resume:
            self._resume(load_state(cfg.TRAIN.resume))
        pin = self.device.type == "cuda"
        self.loader = Loader(self.episodes, self.numbers, num_workers=setups.num_workers, pin_memory=pin)
        self.batches = iter(self.loader)

    def run(self, tests: list[SplitTest]) -> None:
        """All epochs that are left: each trained, kept, and every so often validated and tested; at the end the test of
        the head that validation found best, or of the last."""
        setups = self.cfg.TRAIN_SETUPS
        with self.features_ready() if self.epoch < setups.epochs else nullcontext(), closing(self.batches):
            while self.epoch < setups.epochs:
                self.train_epoch()
                self.epoch += 1
                last = self.epoch == setups.epochs
                due = last or self.epoch % setups.TEST_SETUPS.epoch_test == 0
                if due and self.validation is not None:
                    self._validate(self.validation)
                self._save()
                if due and not last:
                    self._test(tests)
        if self.validation is not None and self.validation.best is not None:
            self.model.head.load_state_dict(self.validation.best.head)
            self._save_best()  # it may be of the run that this one has resumed
        self._test(tests, final=True)
        if self.writer is not None:
            self.writer.close()

    def features_ready(self) -> AbstractContextManager[None]:
        """A block in which epochs can be trained: with `TRAIN.feature_bank` the bank is on disk meanwhile."""
        if isinstance(self.episodes, BankEpisodes):
            return filled(self.cfg, self.episodes, self.model.backbone, self.device)
        return nullcontext()

    def train_epoch(self) -> None:
        """The next epoch of the loader: 1. draw  2. update  3. tell."""
        cfg, every = self.cfg, self.cfg.TRAIN_SETUPS.TEST_SETUPS.train_miou
        torch.manual_seed(derive_seed(cfg.RNG_SEED, self.epoch, rank()))
        self.model.train()
        meter = SegmentationMeter(dict.fromkeys(s.class_name for s in self.index.samples))
        measures = (self.epoch + 1) % every == 0
        losses, start = [], time.perf_counter()
        shown = torch.zeros((), pin_memory=self.device.type == "cuda")
        name, steps = f"epoch {self.epoch + 1}/{cfg.TRAIN_SETUPS.epochs}", self.numbers.per_epoch
        bar = tqdm(islice(self.batches, steps), desc=name, total=steps, disable=not is_main())
        for number, batch in enumerate(bar):
            batch = to_device(batch, self.device)
            loss, probability = self.update(batch)
            losses.append(loss)
            shown.copy_(loss, non_blocking=True)  # what has arrived is shown: to ask the GPU itself is to wait for it
            bar.set_postfix(loss=f"{shown.item():.3f}", episodes_per_s=f"{self._rate(len(losses), start):.2f}")
            if measures:
                add_to_meter(meter, batch, probability)
            if number == 0:
                self._picture(batch, probability)
        mean = float(torch.stack(losses).mean())
        self._tell(mean, self._rate(len(losses), start), meter if measures else None)

    def update(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step on a batch that is on the device: loss (scalar) and token probabilities (B, h, w), without graph."""
        with autocast(self.device, self.cfg.TRAIN.precision):
            loss, probability = self.step(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach(), probability.detach()

    def _rate(self, steps: int, start: float) -> float:
        """Episodes per second of all processes."""
        return steps * self.cfg.TRAIN_SETUPS.batch_size * world_size() / (time.perf_counter() - start)

    def _tell(self, loss: float, rate: float, meter: SegmentationMeter | None) -> None:
        scalars = {
            "train/loss": loss,
            "train/learning_rate": self.schedule.get_last_lr()[0],
            "train/episodes_per_second": rate,
        }
        LOG.info("epoch %d: loss %.4f, %.2f episodes/s", self.epoch + 1, loss, rate)
        if meter is not None:
            meter.counts = sum_over_processes(meter.counts, self.device)
            known = {k: v for k, v in meter.class_iou().items() if v is not None}
            LOG.info("training IoU: %s", ", ".join(f"{k} {100 * v:.1f}" for k, v in known.items()))
            scalars["train/miou"] = meter.miou() or 0.0
        entry = {"epoch": self.epoch + 1, "loss": loss, "learning_rate": scalars["train/learning_rate"]}
        self.history.append(entry | ({"train_miou": scalars["train/miou"]} if meter is not None else {}))
        self._scalars(scalars)

    def _scalars(self, scalars: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, self.epoch)

    def _picture(self, batch: Batch, probability: Tensor) -> None:
        if self.writer is None:
            return
        if isinstance(self.episodes, BankEpisodes):
            batch = default_collate([self.episodes.images(int(batch["number"][0]))])
        size = batch["query"].shape[-2:]
        threshold = DEFAULT_THRESHOLD if self.cfg.TEST.threshold == AUTO else self.cfg.TEST.threshold
        mask = upsample(probability[:1], size)[0].cpu().numpy() > threshold
        support, query = denormalise(batch["supports"][0, 0].cpu()), denormalise(batch["query"][0].cpu())
        truth, known = batch["query_mask"][0].cpu().numpy(), batch["support_masks"][0, 0].cpu().numpy()
        picture = panels(
            [
                (f"support {batch['class'][0]}", outline(support, known, TRUTH)),
                ("query: truth", outline(query, truth, TRUTH)),
                ("query: prediction", overlay(query, mask)),
            ]
        )
        self.writer.add_image("train/episode", picture, self.epoch, dataformats="HWC")

    def _predictor(self) -> Predictor:
        """Of the head as it is, beside the prior."""
        return Predictor.from_config(self.cfg, with_baseline(self.cfg, self.model), self.device)

    def _validate(self, validation: Validation) -> None:
        """Test on the images that were held out, and keep the head where it is the best so far."""
        mious = validation.run(self._predictor(), self.epoch, self.model.head)
        self.history[-1]["validation"] = mious
        self._scalars({f"validation/miou_{method}": miou or 0.0 for method, miou in mious.items()})
        if validation.best is not None and validation.best.epoch == self.epoch:
            self._save_best()

    def _test(self, tests: list[SplitTest], *, final: bool = False) -> None:
        """Test the head beside the prior on the test objects."""
        predictor = self._predictor()
        best = self.validation.best if final and self.validation is not None else None
        tested = self.epoch if best is None else best.epoch
        for test in tests:
            evaluation = test.run(predictor)
            if is_main():
                test.record(evaluation, f"{test.name} after {tested} epochs", epochs=tested)
                if final:
                    test.write_gallery(predictor, evaluation)
            self._scalars({f"{test.name}/miou_{m}": evaluation.miou(m) or 0.0 for m in predictor.methods})

    def _save_best(self) -> None:
        if is_main() and self.cfg.TRAIN.save_model:
            save_head(self.folder / "checkpoints" / "best.safetensors", self.model, self.cfg.dump())

    def _save(self) -> None:
        if not is_main():
            return
        if self.cfg.TRAIN.save_model:
            self._save_checkpoints()
        write_json(self.folder / "history.json", self.history)

    def _save_checkpoints(self) -> None:
        checkpoints = self.folder / "checkpoints"
        save_head(checkpoints / "head.safetensors", self.model, self.cfg.dump())
        state = {
            "head": self.model.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "config": self.cfg.dump(),
            "history": self.history,
            "best": None if self.validation is None else self.validation.state(),
        }
        save_state(checkpoints / "state.pth", state)

    def _resume(self, state: dict) -> None:
        load_checked(self.model.head, state["head"], f"TRAIN.resume: {self.cfg.TRAIN.resume}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.history = state["epoch"], list(state["history"])
        if self.validation is not None and state["best"] is not None:
            self.validation.restore(state["best"])
        self.numbers.epochs = range(self.epoch, self.cfg.TRAIN_SETUPS.epochs)
        LOG.info("going on after epoch %d", self.epoch)
