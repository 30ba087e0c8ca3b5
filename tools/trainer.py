"""The training job. One process: `python train.py --cfg FILE`; many: the same with `--opts NUM_GPUS N`, or
`torchrun --nproc_per_node=N train.py --cfg FILE`."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, closing, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from yacs.config import CfgNode

from datasets.build import build_test_index, build_train_index, build_training_episodes
from datasets.episodes import EpisodeSampler, derive_seed
from datasets.feature_bank import BankEpisodes
from datasets.samples import SampleIndex
from models.build import build_model
from tools.checkpoint import load_head
from tools.evaluator import NoQueryError
from tools.job import begin, run_job
from tools.loading import EpochBatches, Loader
from models.build import with_baseline
from tools.predictor import Predictor
from tools.evaluator import SplitTest
from tools.training.checkpoints import Checkpoints
from tools.training.feature_bank import bank_episodes, filled
from tools.training.learner import Learner
from tools.training.log import TrainingLog
from tools.training.state import (
    Progress,
    as_state,
    read_state,
    set_random_state,
    state_to_resume,
    where_it_stands,
)
from tools.training.steps import Batch, add_to_meter, to_device
from tools.training.validation import Validation
from utils.distributed import is_main, largest, rank, sum_over_processes, world_size
from utils.errors import ConfigError, DataError
from utils.logging import progress_bar
from utils.metrics.segmentation import SegmentationMeter
from utils.precision import half_type, pick_device
from utils.signals import Interrupted, Pending, postponed

LOG = logging.getLogger(__name__)


def run_training(cfg: CfgNode, config_file: str) -> Path:
    """Run train.py's job in NUM_GPUS processes; returns the run's folder."""
    return run_job(train, cfg, config_file, cfg.NUM_GPUS)


def train(cfg: CfgNode, folder: Path) -> list[str]:
    """Train, test every `epoch_test` epochs and at the end, keep head and state. Returns a line for each test set that
    could not be tested."""
    if not (cfg.TRAIN_SETUPS.epochs or cfg.TRAIN_SETUPS.TEST_SETUPS.test_state):
        raise ConfigError("TRAIN_SETUPS.epochs is 0 and TRAIN_SETUPS.TEST_SETUPS.test_state is False: nothing is left "
                          "to do; change one of them")  # fmt: skip
    index = build_train_index(cfg)
    missing = index.missing_images()
    if missing:
        raise DataError(f"{len(missing)} training images are missing, the first {missing[0]}; mend the annotations "
                        "or TRAIN.dataset_path")  # fmt: skip
    names = cfg.DATASET.sub_datasets if cfg.TRAIN_SETUPS.TEST_SETUPS.test_state else []
    tests = [SplitTest(cfg, build_test_index(cfg, name), folder, name) for name in names]
    trainer = Trainer(cfg, index, folder)
    begin(folder, cfg, "train.log", reads=trainer.reads, goes_on=trainer.goes_on)
    if is_main():
        trainer.log.open(folder / "events")
    for note in index.notes:
        LOG.info("%s", note)
    own = trainer.index
    LOG.info(
        "training on %d samples of %d classes: %s",
        len(own),
        len(own.classes()),
        ", ".join(own.objects()),
    )
    trainer.run(tests)
    return list(dict.fromkeys(trainer.failed))


class Trainer:
    """State of a training: model, optimizer, schedule, epoch.

    Args:
        cfg: the config.
        index: the training samples.
        folder: of the run.

    Attributes:
        reads: files that it has taken weights or a state from.
        goes_on: it resumes the run that is in the folder.
        failed: what kept test sets from being tested.
    """

    def __init__(self, cfg: CfgNode, index: SampleIndex, folder: Path) -> None:
        self.cfg, self.files = cfg, Checkpoints(cfg, folder)
        self.device = pick_device(cfg.DEVICE)
        torch.manual_seed(cfg.RNG_SEED)
        self.model = build_model(cfg).to(self.device)
        if half := half_type(self.device, cfg.TRAIN.precision):
            self.model.backbone.hold_weights(half)
        self.reads = [cfg.TRAIN.backbone_checkpoint] if cfg.TRAIN.backbone_checkpoint else []
        if cfg.TRAIN.load_checkpoint:
            load_head(cfg.TRAIN.load_model_path, self.model, "TRAIN.load_model_path", cfg)
            self.reads.append(cfg.TRAIN.load_model_path)
        setups = cfg.TRAIN_SETUPS
        self.validation = Validation(cfg, index, folder) if setups.TEST_SETUPS.val_state else None
        self.index = index = self.validation.rest if self.validation else index
        drawn = build_training_episodes(cfg, index)
        banked = cfg.TRAIN.feature_bank > 0
        self.episodes = bank_episodes(cfg, drawn, self.model.backbone, folder) if banked else drawn
        sampler = EpisodeSampler(len(self.episodes), cfg.RNG_SEED, rank(), world_size())
        self.numbers = EpochBatches(sampler, setups.batch_size, range(setups.epochs))
        self.learner = Learner(cfg, self.model, self.device, len(self.numbers))
        self.log = TrainingLog()
        self.epoch = 0
        self.failed: list[str] = []
        self.history: list[dict[str, Any]] = []
        self.progress: Progress | None = None  # None: between epochs
        file = state_to_resume(cfg, folder) if cfg.TRAIN.resume else None
        self.goes_on = file is not None and file.resolve() == self.files.state.resolve()
        if file is not None:
            self.reads.append(str(file))
            with as_state(file):
                self._resume(read_state(cfg, file), file)
        pin = self.device.type == "cuda"
        self.loader = Loader(
            self.episodes, self.numbers, num_workers=setups.num_workers, pin_memory=pin
        )
        self.batches = iter(self.loader)

    def run(self, tests: list[SplitTest]) -> None:
        """All that is left: each epoch trained, kept, and every so often validated and tested; at the end the test of
        the head that validation found best, or of the last.

        Raises:
            Interrupted: the process was told to end; it says what is kept.
        """
        try:
            if self.epoch and not self.goes_on:  # of another run, whose weights this one hands on
                self._save()
            self._epochs(tests)
            if self.validation is not None and self.validation.best is not None:
                self.model.head.load_state_dict(self.validation.best.head)
                self._save_best()  # it may be of the run that this one has resumed
            self._test(tests, final=True)
        except Interrupted as error:
            raise error if error.told else self.files.interrupted(error.number) from None

    def _epochs(self, tests: list[SplitTest]) -> None:
        setups = self.cfg.TRAIN_SETUPS
        with (
            self.features_ready() if self.epoch < setups.epochs else nullcontext(),
            closing(self.batches),
        ):
            while self.epoch < setups.epochs or self._validation_due():
                if not self._validation_due():
                    self.train_epoch()
                if self._validation_due():
                    self._validate(self.validation)
                    self._save()
                if self._due() and self.epoch < setups.epochs:
                    self._test(tests)

    def _due(self) -> bool:
        """Whether validation and test follow the epochs so far."""
        last, every = self.cfg.TRAIN_SETUPS.epochs, self.cfg.TRAIN_SETUPS.TEST_SETUPS.epoch_test
        return (
            self.progress is None
            and self.epoch > 0
            and (self.epoch % every == 0 or self.epoch == last)
        )

    def _validation_due(self) -> bool:
        """Whether the epochs so far are to be validated, and are not yet."""
        return self.validation is not None and self._due() and "validation" not in self.history[-1]

    def features_ready(self) -> AbstractContextManager[None]:
        """A block in which epochs can be trained: with `TRAIN.feature_bank` the bank is on disk meanwhile."""
        if isinstance(self.episodes, BankEpisodes):
            return filled(self.cfg, self.episodes, self.model.backbone, self.device)
        return nullcontext()

    def train_epoch(self) -> None:
        """The loader's epoch, or what is left of it. It is saved at its end, or after the step at which the process is
        told to end.

        Raises:
            Interrupted: the process was told to end.
        """
        with postponed(alone=world_size() == 1) as pending:
            try:
                self._steps(self._begin(), pending)
            except DataError:  # told, too, the loader's workers may have ended
                if not pending.number or world_size() > 1:
                    raise
                self._save()
                raise self.files.interrupted(pending.number) from None
            self.epoch, self.progress = self.epoch + 1, None
            self._save()
            if told := largest(pending.number):
                raise self.files.interrupted(told)

    def _steps(self, progress: Progress, pending: Pending) -> None:
        """1. draw  2. update  3. tell."""
        cfg, every = self.cfg, self.cfg.TRAIN_SETUPS.TEST_SETUPS.train_miou
        self.model.train()
        measures = (self.epoch + 1) % every == 0
        start, first, episodes = time.perf_counter(), progress.step, 0
        shown = torch.zeros((), pin_memory=self.device.type == "cuda")
        name, steps = f"epoch {self.epoch + 1}/{cfg.TRAIN_SETUPS.epochs}", self.numbers.per_epoch
        batches = islice(self.batches, steps - first)
        bar = progress_bar(batches, desc=name, total=steps, initial=first)
        for batch in bar:
            batch = to_device(batch, self.device)
            loss, probability = self.learner.update(batch)
            progress.losses.append(loss)
            shown.copy_(
                loss, non_blocking=True
            )  # what has arrived is shown: to ask the GPU itself is to wait for it
            episodes += len(batch["query_mask"])
            rate = self._rate(episodes, start)
            bar.set_postfix(refresh=False, loss=f"{shown.item():.3f}", episodes_per_s=f"{rate:.2f}")
            if measures:
                add_to_meter(progress.meter, batch, probability)
            if progress.step == 0:
                self._picture(batch, probability)
            progress.step += 1
            if progress.step < steps and (told := largest(pending.number)):
                self._save()
                raise self.files.interrupted(told)
        loss = sum_over_processes(torch.stack(progress.losses).mean().cpu()) / world_size()
        self._tell(float(loss), self._rate(episodes, start), progress.meter if measures else None)

    def _begin(self) -> Progress:
        """The progress of the epoch that comes now; a new one draws its random numbers from its seed."""
        torch.manual_seed(derive_seed(self.cfg.RNG_SEED, self.epoch, rank()))
        self.progress = self.progress or Progress.of(self.index)
        if self.progress.random:
            set_random_state(self.progress.random, self.device)
        return self.progress

    def _rate(self, episodes: int, start: float) -> float:
        """Episodes per second of all processes, of this one's."""
        return episodes * world_size() / (time.perf_counter() - start)

    def _tell(self, loss: float, rate: float, meter: SegmentationMeter | None) -> None:
        scalars = {
            "train/loss": loss,
            "train/learning_rate": self.learner.learning_rate,
            "train/episodes_per_second": rate,
        }
        LOG.info("epoch %d: loss %.4f, %.2f episodes/s", self.epoch + 1, loss, rate)
        if meter is not None:
            meter.counts = sum_over_processes(meter.counts)
            known = {k: v for k, v in meter.class_iou().items() if v is not None}
            LOG.info("training IoU: %s", ", ".join(f"{k} {100 * v:.1f}" for k, v in known.items()))
            scalars["train/miou"] = meter.miou() or 0.0
        entry = {
            "epoch": self.epoch + 1,
            "loss": loss,
            "learning_rate": scalars["train/learning_rate"],
        }
        self.history.append(
            entry | ({"train_miou": scalars["train/miou"]} if meter is not None else {})
        )
        self.log.scalars(scalars, self.epoch)

    def _picture(self, batch: Batch, probability: Tensor) -> None:
        if is_main() and isinstance(self.episodes, BankEpisodes):
            batch = default_collate([self.episodes.images(int(batch["number"][0]))])
        self.log.episode(batch, probability, self.cfg.TEST.threshold, self.epoch)

    def _predictor(self) -> Predictor:
        """Of the head as it is, beside the prior."""
        return Predictor.from_config(self.cfg, with_baseline(self.cfg, self.model), self.device)

    def _validate(self, validation: Validation) -> None:
        """Test on the images that were held out, and keep the head where it is the best so far."""
        mious = validation.run(self._predictor(), self.epoch, self.model.head)
        self.history[-1]["validation"] = mious
        self.log.scalars(
            {f"validation/miou_{method}": miou or 0.0 for method, miou in mious.items()}, self.epoch
        )
        if validation.best is not None and validation.best.epoch == self.epoch:
            self._save_best()

    def _test(self, tests: list[SplitTest], *, final: bool = False) -> None:
        """Test the head beside the prior on the test objects."""
        predictor = self._predictor()
        best = self.validation.best if final and self.validation is not None else None
        tested = self.epoch if best is None else best.epoch
        for test in tests:
            try:
                evaluation = test.run(predictor, f"{test.name} after {tested} epochs", gallery=final, epochs=tested)
            except (
                NoQueryError
            ) as error:  # what is trained, and what the other sets give, is not lost
                LOG.warning("%s could not be tested: %s", test.name, error)
                self.failed.append(f"{test.name} could not be tested: {error}")
                continue
            scalars = {
                f"{test.name}/miou_{m}": evaluation.miou(m) or 0.0 for m in predictor.methods
            }
            self.log.scalars(scalars, self.epoch)

    def _save_best(self) -> None:
        if is_main():
            self.files.save_best(self.model)

    def _save(self) -> None:
        """All processes call it."""
        progress = self.progress
        within = (
            None
            if progress is None
            else progress.gathered(self.device, self.cfg.TRAIN_SETUPS.batch_size)
        )
        if is_main():
            self.files.save(self._state(within), self.model)
        self.files.stand = where_it_stands(self.epoch, progress)

    def _state(self, within: dict[str, Any] | None) -> dict[str, Any]:
        return self.learner.state() | {
            "epoch": self.epoch,
            "within": within,
            "config": self.cfg.dump(),
            "history": self.history,
            "best": None if self.validation is None else self.validation.state(),
        }

    def _resume(self, state: dict[str, Any], file: Path) -> None:
        self.epoch, self.history = state["epoch"], list(state["history"])
        if state["within"] is not None:
            self.progress = Progress.of(self.index)
            self.progress.restore(state["within"], self.device, self.cfg.TRAIN_SETUPS.batch_size)
            self.numbers.skip = self.progress.step = min(
                self.progress.step, self.numbers.per_epoch - 1
            )
        done = self.epoch * self.numbers.per_epoch + self.numbers.skip
        self.learner.restore(state, done, f"TRAIN.resume: {file}")
        if self.validation is not None and state["best"] is not None:
            self.validation.restore(state["best"], self.model.head)
        self.numbers.epochs = range(self.epoch, self.cfg.TRAIN_SETUPS.epochs)
        stand = where_it_stands(self.epoch, self.progress)
        self.files.stand = stand if file == self.files.state else ""
        LOG.info("going on %s", stand)
