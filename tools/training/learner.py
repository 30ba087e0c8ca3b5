"""What learns: the head with its loss, optimizer and schedule, a step at a time."""

from __future__ import annotations

from typing import Any

import torch
from models.methods.sofs import SOFS
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from models.losses import MixedNormalDiceLoss
from models.weights import load_checked
from tools.training.schedule import build_optimizer, build_schedule
from tools.training.steps import Batch, EpisodeLoss
from utils.distributed import world_size
from utils.precision import autocast, half_type

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class Learner:
    """Changes the head of a model.

    Args:
        cfg: the config.
        model: on the device.
        device: of the steps.
        iterations: of the whole training, for the schedule.
    """

    def __init__(self, cfg: CfgNode, model: SOFS, device: torch.device, iterations: int) -> None:
        own, setups = cfg.TRAIN.LOSS, cfg.TRAIN_SETUPS
        self.model, self.device, self.precision = model, device, cfg.TRAIN.precision
        step = EpisodeLoss(model, MixedNormalDiceLoss(cfg.TRAIN.SOFS.smooth_r, own.dice_weight, own.ce_weight),
                           per_pixel=own.resolution == "pixel")  # fmt: skip
        self.step = DistributedDataParallel(step) if world_size() > 1 else step
        self.optimizer = build_optimizer(
            model.head, setups.learning_rate, setups.lr_multiple, setups.weight_decay
        )
        self.iterations, self.polynomial = max(1, iterations), setups.poly_training
        self.schedule = build_schedule(self.optimizer, self.iterations, self.polynomial)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=half_type(device, self.precision) == torch.float16
        )

    @property
    def learning_rate(self) -> float:
        """Of the transformer, now."""
        return self.schedule.get_last_lr()[0]

    def update(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step on a batch that is on the device: loss (scalar) and token probabilities (B, h, w), without graph."""
        with autocast(self.device, self.precision):
            loss, probability = self.step(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return loss.detach(), probability.detach()

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, in tensors and plain values."""
        return {
            "head": self.model.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any], done: int, source: str) -> None:
        """Take up what `state` gave; rates and decay are those of the config.

        Args:
            state: what `state` gave.
            done: iterations of this training that the state stands for.
            source: of the state, for messages.

        Raises:
            WeightsError: it is of another head.
            ValueError: of another optimizer.
        """
        load_checked(self.model.head, state["head"], source)
        known, groups = state["optimizer"]["state"], self.optimizer.state_dict()["param_groups"]
        for number, parameter in enumerate(
            p for group in self.optimizer.param_groups for p in group["params"]
        ):
            if number in known and any(
                known[number][name].shape != parameter.shape for name in MOMENTS
            ):
                raise ValueError(f"moments of parameter {number} have other shapes than the head")
        self.optimizer.load_state_dict({"state": known, "param_groups": groups})
        self.schedule = build_schedule(self.optimizer, self.iterations, self.polynomial, done)
        self.scaler.load_state_dict(state["scaler"])
