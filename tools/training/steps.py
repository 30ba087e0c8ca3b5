"""One step of a training: the loss of a batch of episodes, and the published optimizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from models.losses import MixedNormalDiceLoss
from models.methods import Method
from models.priors import downsample_mask, upsample
from utils.metrics.segmentation import SegmentationMeter

TARGET_SHARE = 0.1
Batch = dict[str, Any]


class EpisodeLoss(nn.Module):
    """One step's forward pass, in one module so that DistributedDataParallel sees it whole.

    The loss compares probabilities with targets in {0, 1}: where `per_pixel`, the upsampled answer
    with the mask itself (ours), which trains thin and tiny defects to their true extent; else on
    the token grid, as published, where a token is defect from a tenth of its area on, and finer
    log-odds are averaged over their token.
    """

    def __init__(self, model: Method, loss: MixedNormalDiceLoss, per_pixel: bool = False) -> None:
        super().__init__()
        self.model, self.loss, self.per_pixel = model, loss, per_pixel

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and probabilities (B, h', w') float32, as fine as the model's log-odds, of
        a batch of `TrainingEpisodes` or `BankEpisodes`."""
        logits = self.model.episode_logits(*self.features(batch), batch["support_masks"])
        with torch.autocast(logits.device.type, enabled=False):
            logits, mask = logits.float(), batch["query_mask"]
            if self.per_pixel:
                answer = upsample(logits, mask.shape[-2:]).sigmoid()
                return self.loss(answer, mask), logits.sigmoid()
            share = downsample_mask(mask, self.model.backbone.stride)
            answer = F.adaptive_avg_pool2d(logits, share.shape[-2:]).sigmoid()
            return self.loss(answer, share > TARGET_SHARE), logits.sigmoid()

    def features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Per layer features of queries (B, C_l, h, w) and supports (B * K, C_l, h, w): those of
        the bank, or one pass of all images."""
        if "query_features" in batch:
            kept = batch["query_features"], batch["support_features"].flatten(0, 1)
            query, supports = (k.float().split(self.model.backbone.channels, dim=1) for k in kept)
            return list(query), list(supports)
        count = len(batch["query"])
        maps = self.model.backbone(torch.cat([batch["query"], batch["supports"].flatten(0, 1)]))
        return [m[:count] for m in maps], [m[count:] for m in maps]


def build_optimizer(
    head: nn.Module, learning_rate: float, lr_multiple: float, weight_decay: float
) -> AdamW:
    """AdamW (0.9, 0.999): the transformer, if the head has one, at `learning_rate`, all else at
    `lr_multiple` times that."""
    transformer = list(head.transformer.parameters()) if hasattr(head, "transformer") else []
    chosen = {id(p) for p in transformer}
    others = [p for p in head.parameters() if id(p) not in chosen]
    rates = (learning_rate, learning_rate * lr_multiple)
    parts = zip((transformer, others), rates, strict=True)
    groups = [{"params": part, "lr": rate, "initial_lr": rate} for part, rate in parts if part]
    return AdamW(groups, betas=(0.9, 0.999), weight_decay=weight_decay)


def polynomial_factor(iteration: int, max_iter: int, power: float = 0.9) -> float:
    """Factor on the learning rate before iteration `iteration` (from 0) of `max_iter`: (1 - i /
    max_iter) ** power."""
    return max(0.0, 1 - iteration / max_iter) ** power


def add_to_meter(meter: SegmentationMeter, batch: Batch, probability: Tensor) -> None:
    """Count the answers (B, h, w) to a batch, thresholded at 0.5, by class."""
    predictions = upsample(probability, batch["query_mask"].shape[-2:]).cpu().numpy() > 0.5
    targets = batch["query_mask"].cpu().numpy()
    for name, prediction, target in zip(batch["class"], predictions, targets, strict=True):
        meter.update(name, prediction.astype(np.uint8), target)
