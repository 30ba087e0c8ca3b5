"""From where a training goes on: the file that it keeps, and how far each process is within an epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from yacs.config import CfgNode

from datasets.samples import SampleIndex
from method_config.values import leaves
from tools.checkpoint import load_state
from utils.distributed import gather_objects, rank, world_size
from utils.errors import ConfigError, WeightsError
from utils.metrics.segmentation import SegmentationMeter

LOG = logging.getLogger(__name__)
AUTO = "auto"
STATE = Path("checkpoints", "state.pth")
# settings that say which images are held out, and with them whether the best score so far holds
FIXED = ("RNG_SEED", "TRAIN_SETUPS.TEST_SETUPS.val_state", "TRAIN_SETUPS.TEST_SETUPS.val_share")
# of no effect on what is learnt
FREE = ("DEVICE", "DIST_BACKEND", "OUTPUT_DIR", "RUN_NAME", "TEST", "TEST_SETUPS")
FREE += tuple(f"DATASET.vision_data_{name}" for name in ("save", "load", "save_path"))
FREE += tuple(f"TRAIN.{name}" for name in ("enable", "resume", "save_model"))
FREE += tuple(f"TRAIN_SETUPS.{name}" for name in ("num_workers", "TEST_SETUPS"))


@dataclass
class Progress:
    """How far this process is within an epoch.

    Attributes:
        meter: of the episodes so far.
        step: steps done.
        losses: of these, scalars.
        random: where the random numbers go on; empty: where the epoch began.
    """

    meter: SegmentationMeter
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    random: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, index: SampleIndex) -> Progress:
        """The beginning of an epoch on some samples."""
        return cls(SegmentationMeter(dict.fromkeys(sample.class_name for sample in index.samples)))

    def gathered(self, device: torch.device, batch_size: int) -> dict[str, Any]:
        """That of all processes, with the state of their random numbers, in tensors and plain values; all call it."""
        losses = torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)
        own = {"losses": losses, "counts": self.meter.counts, "random": random_state(device)}
        together = {
            "step": self.step,
            "batch_size": batch_size,
            "classes": list(self.meter.classes),
        }
        return together | {"processes": gather_objects(own)}

    def restore(self, state: dict[str, Any], device: torch.device, batch_size: int) -> None:
        """Take up what `gathered` gave. Other processes, batches or classes go on after as many episodes, at least."""
        processes, own = state["processes"], (world_size(), batch_size, list(self.meter.classes))
        if (len(processes), state["batch_size"], state["classes"]) == own:
            mine = processes[rank()]
            self.step, self.losses = state["step"], list(mine["losses"].to(device))
            self.meter.counts, self.random = mine["counts"], mine["random"]
            return
        done = state["step"] * len(processes) * state["batch_size"]
        self.step = done // (world_size() * batch_size)
        LOG.warning("%d processes with batches of %d from %d classes began this epoch, %d with batches of %d from %d "
                    "end it: its loss and IoU are those of its rest, and some episodes may come twice",
                    len(processes), state["batch_size"], len(state["classes"]), *own[:2], len(own[2]))  # fmt: skip


def random_state(device: torch.device) -> list[Tensor]:
    """State of the global generators of the CPU and, where it is used, of the GPU."""
    return [torch.get_rng_state()] + (
        [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    )


def set_random_state(states: list[Tensor], device: torch.device) -> None:
    """What `random_state` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def where_it_stands(epoch: int, progress: Progress | None) -> str:
    """How far a training is, for people."""
    within = "" if progress is None else f" and {progress.step} steps of the next"
    return f"after epoch {epoch}{within}"


def state_to_resume(cfg: CfgNode, folder: Path) -> Path | None:
    """The file that TRAIN.resume names; `auto` is that of the run itself, None where it has none yet."""
    if cfg.TRAIN.resume != AUTO:
        return Path(cfg.TRAIN.resume)
    if (file := folder / STATE).exists():
        return file
    LOG.info("TRAIN.resume auto: %s is not there, a new training begins", file)
    return None


def read_state(cfg: CfgNode, file: Path) -> dict[str, Any]:
    """A training state, held against the config.

    Raises:
        WeightsError: missing, unreadable, or something else.
        ConfigError: it is of a training that held out other images.
        ValueError: no epochs, or not as many as its history has.
    """
    state = load_state(file)
    epoch, history = state["epoch"], [entry["epoch"] for entry in state["history"]]
    if epoch < 0 or history != list(range(1, epoch + 1)):
        raise ValueError(f"it is of epoch {epoch}, which its history is not")
    _compare(cfg, dict(leaves(yaml.safe_load(state["config"]))), file)
    return state


@contextmanager
def as_state(file: Path) -> Iterator[None]:
    """A block that takes up a state.

    Raises:
        WeightsError: the state holds something else than it should.
    """
    try:
        yield
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        yaml.YAMLError,
    ) as error:
        raise WeightsError(
            f"TRAIN.resume: {file} does not hold what a training state does ({type(error).__name__}: {error!s:.200}); "
            "take another copy, or remove it to train anew"
        ) from error


def _compare(cfg: CfgNode, earlier: dict[str, Any], file: Path) -> None:
    for key, value in leaves(cfg):
        if value == earlier.get(key, value):
            continue
        if key in FIXED:
            raise ConfigError(f"TRAIN.resume: {file} was written with {key} {earlier[key]!r}, now it is {value!r}, and "
                              "other images would be held out; set it back")  # fmt: skip
        if not any(key == free or key.startswith(f"{free}.") for free in FREE):
            LOG.warning(
                "%s was %r in the training that goes on, now it is %r", key, earlier[key], value
            )
