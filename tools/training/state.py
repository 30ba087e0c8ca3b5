"""A training at one moment: all that its next step depends on, saved and resumed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from yacs.config import CfgNode

from datasets.build import build_training_episodes
from datasets.episodes import EpisodeBatches, derive_seed
from datasets.samples import SampleIndex
from models.build import build_model
from models.losses import MixedNormalDiceLoss
from models.weights import load_checked
from tools import checkpoint
from tools.checkpoint import AUTO, BEST, HEAD, STATE
from tools.loading import Loader
from tools.training.feature_bank import bank_episodes
from tools.training.steps import Batch, EpisodeLoss, build_optimizer, polynomial_factor
from tools.training.validation import validation_split
from utils.distributed import gather_objects, is_main, rank, world_size
from utils.errors import WeightsError
from utils.metrics.segmentation import SegmentationMeter
from utils.output_files import write_json
from utils.precision import autocast, half_type, pick_device
from utils.signals import Interrupted

LOG = logging.getLogger(__name__)


class Training:
    """A training: its model, optimizer and episodes, and how far it is; resumed where TRAIN.resume
    asks for it. `index` holds the samples of the training objects, `folder` is the run's.

    Attributes:
        index: the samples to train on; `validation` is the test of those that are held out, if any.
        epoch, step: whole epochs done, and steps of the one that is going on.
        losses, meter: of these steps, in this process.
        random: generator states of an epoch that was cut off, until it goes on.
        best: `epoch`, `miou` and `head` of the best validation so far.
        reads: files that it has taken weights or a state from.
        goes_on: it resumes the run that is in the folder.
        saved: how far the saved training is, in words; empty: nothing is saved.
    """

    def __init__(self, cfg: CfgNode, index: SampleIndex, folder: Path) -> None:
        self.cfg, self.folder, self.device = cfg, folder, pick_device(cfg.DEVICE)
        setups, train = cfg.TRAIN_SETUPS, cfg.TRAIN
        torch.manual_seed(cfg.RNG_SEED)
        self.model = build_model(cfg).to(self.device)
        if half := half_type(self.device, train.precision):
            self.model.backbone.hold_weights(half)
        self.reads = [train.backbone_checkpoint] if train.backbone_checkpoint else []
        if train.load_checkpoint:
            checkpoint.load_head(train.load_model_path, self.model, "TRAIN.load_model_path", cfg)
            self.reads.append(train.load_model_path)
        self.index, self.validation = index, None
        if setups.TEST_SETUPS.val_state:
            self.index, self.validation = validation_split(cfg, index, folder)
        self.episodes = build_training_episodes(cfg, self.index)
        if train.feature_bank:
            self.episodes = bank_episodes(cfg, self.episodes, self.model.backbone, folder)
        self.batches = EpisodeBatches(len(self.episodes), setups.batch_size, cfg.RNG_SEED,
                                      range(setups.epochs), rank(), world_size())  # fmt: skip
        weights = train.LOSS.dice_weight, train.LOSS.ce_weight
        dice = MixedNormalDiceLoss(train.SOFS.smooth_r, *weights)
        self.loss = EpisodeLoss(self.model, dice, per_pixel=train.LOSS.resolution == "pixel")
        if world_size() > 1:
            self.loss = DistributedDataParallel(self.loss)
        rates = setups.learning_rate, setups.lr_multiple, setups.weight_decay
        self.optimizer = build_optimizer(self.model.head, *rates)
        scaled = half_type(self.device, train.precision) == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scaled)
        self.epoch = self.step = 0
        self.losses: list[Tensor] = []
        self.meter = SegmentationMeter(dict.fromkeys(s.class_name for s in self.index.samples))
        self.random: list[Tensor] = []
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.goes_on, self.saved = False, ""
        self.writer: SummaryWriter | None = None
        file = folder / STATE if train.resume == AUTO else Path(train.resume)
        if train.resume == AUTO and not file.exists():
            LOG.info("TRAIN.resume auto: %s is not there, a new training begins", file)
        elif train.resume:
            self._resume(file)
        self._set_rates()

    def loader(self) -> Loader:
        """The batches of all epochs that are left."""
        workers, pin = self.cfg.TRAIN_SETUPS.num_workers, self.device.type == "cuda"
        return Loader(self.episodes, self.batches, num_workers=workers, pin_memory=pin)

    def begin_epoch(self) -> None:
        """Set the random numbers, of dropout for instance: from the seed, or as they were when the
        epoch was cut off."""
        self.model.train()
        torch.manual_seed(derive_seed(self.cfg.RNG_SEED, self.epoch, rank()))
        if self.random:
            torch.set_rng_state(self.random[0])
        if self.random[1:] and self.device.type == "cuda":
            torch.cuda.set_rng_state(self.random[1], self.device)
        self.random = []

    def update(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Forward, backward and step on a batch: loss (scalar) and probabilities (B, h', w'), both
        without their graph."""
        with autocast(self.device, self.cfg.TRAIN.precision):
            loss, probability = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses.append(loss.detach())
        self.step += 1
        self._set_rates()
        return loss.detach(), probability.detach()

    def end_epoch(self, figures: dict[str, Any]) -> None:
        """Count the epoch as done, with its figures for the history, and save."""
        self.history.append({"epoch": self.epoch + 1} | figures)
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []
        self.meter = SegmentationMeter(self.meter.classes)
        self.save()

    def _set_rates(self) -> None:
        """Learning rates of the next step: polynomial decay per iteration, or constant."""
        steps = max(1, self.cfg.TRAIN_SETUPS.epochs * self.batches.per_epoch)
        factor = polynomial_factor(self.epoch * self.batches.per_epoch + self.step, steps)
        for group in self.optimizer.param_groups:
            decays = self.cfg.TRAIN_SETUPS.poly_training
            group["lr"] = group["initial_lr"] * (factor if decays else 1.0)

    def save(self) -> None:
        """Keep the state and, between epochs, head and history. All processes call it."""
        within = None
        if self.step:
            losses = torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)
            cuda = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
            own = {"losses": losses, "counts": self.meter.counts,
                   "random": [torch.get_rng_state(), *cuda]}  # fmt: skip
            within = {"step": self.step, "batch_size": self.batches.batch_size,
                      "classes": self.meter.classes, "processes": gather_objects(own)}  # fmt: skip
        config, keep = self.cfg.dump(), self.cfg.TRAIN.save_model
        if is_main() and keep:
            state = {"head": self.model.head.state_dict(), "epoch": self.epoch, "within": within,
                     "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
                     "config": config, "history": self.history, "best": self.best}  # fmt: skip
            checkpoint.save_state(self.folder / STATE, state)
        if is_main() and not self.step:
            if keep:
                checkpoint.save_head(self.folder / HEAD, self.model, config)
            write_json(self.folder / "history.json", self.history)
        self.saved = self._position()

    def save_best(self) -> None:
        """Keep the head as the one that validated best."""
        if is_main() and self.cfg.TRAIN.save_model:
            checkpoint.save_head(self.folder / BEST, self.model, self.cfg.dump())

    def interrupted(self, number: int) -> Interrupted:
        """What the training ends with after a signal; it names what is saved."""
        if not (self.saved and self.cfg.TRAIN.save_model):
            return Interrupted(number, "nothing is saved")
        file = self.folder / STATE
        hint = f"TRAIN.resume {AUTO if self.cfg.RUN_NAME else file} goes on there"
        return Interrupted(number, f"saved {self.saved} in {file}; {hint}")

    def _position(self) -> str:
        within = f" and {self.step} steps of the next" if self.step else ""
        return f"after epoch {self.epoch}{within}"

    def _resume(self, file: Path) -> None:
        state = checkpoint.load_state(file)
        self.reads.append(str(file))
        self.goes_on = file.resolve() == (self.folder / STATE).resolve()
        try:
            checkpoint.compare_settings(self.cfg, state["config"], file)
            load_checked(self.model.head, state["head"], f"TRAIN.resume: {file}")
            groups = self.optimizer.state_dict()["param_groups"]  # rates and decay are the config's
            self.optimizer.load_state_dict(state["optimizer"] | {"param_groups": groups})
            self.scaler.load_state_dict(state["scaler"])
            self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
            if state["within"] is not None:
                self._resume_within(state["within"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(
                f"TRAIN.resume: {file} does not hold what a training state does ({error!s:.200}); "
                "take another copy, or remove it to train anew"
            ) from error
        self.batches.epochs = range(self.epoch, self.cfg.TRAIN_SETUPS.epochs)
        self.saved = self._position() if self.goes_on else ""
        LOG.info("going on %s", self._position())

    def _resume_within(self, within: dict[str, Any]) -> None:
        """Take up an epoch that was cut off; with other processes, batches or classes after as many
        episodes."""
        processes, size, classes = within["processes"], within["batch_size"], within["classes"]
        now = (world_size(), self.batches.batch_size, self.meter.classes)
        if (len(processes), size, classes) == now:
            own, self.step = processes[rank()], within["step"]
            self.losses = list(own["losses"].to(self.device))
            self.meter.counts, self.random = own["counts"], own["random"]
        else:
            self.step = within["step"] * len(processes) * size // (now[0] * now[1])
            LOG.warning("other processes, batches or classes began this epoch: its loss and IoU "
                        "are those of its rest, and some episodes may come twice")  # fmt: skip
        self.step = self.batches.skip = min(self.step, self.batches.per_epoch - 1)
