"""One step of a training: features, loss, update of the head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from models.methods.sofs import SOFS
from torch import Tensor, nn

from models.comparison import Comparison
from models.losses import MixedNormalDiceLoss
from models.priors import downsample_mask, upsample
from utils.metrics.segmentation import SegmentationMeter

TARGET_SHARE = 0.1
Batch = dict[str, Any]


class EpisodeLoss(nn.Module):
    """One training step's forward pass, in one module so that DistributedDataParallel sees it whole.

    Args:
        model: what is trained.
        loss: of probabilities against targets in {0, 1}.
        per_pixel: compare the upsampled answer with the mask itself (ours), which trains thin and tiny defects to their
            true extent; False: on the token grid, as published, where a token is defect from a tenth of its area on.
    """

    def __init__(self, model: SOFS, loss: MixedNormalDiceLoss, per_pixel: bool = False) -> None:
        super().__init__()
        self.model, self.loss, self.per_pixel = model, loss, per_pixel

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Loss (scalar) and token probabilities (B, h, w) float32 of a batch of `TrainingEpisodes`, `BankEpisodes`."""
        query, supports = self.features(batch)
        logits = self.model.episode_logits(query, supports, batch["support_masks"])
        with torch.autocast(logits.device.type, enabled=False):
            logits, mask = logits.float(), batch["query_mask"]
            if self.per_pixel:
                return self.loss(
                    upsample(logits, mask.shape[-2:]).sigmoid(), mask
                ), logits.sigmoid()
            share = downsample_mask(mask, self.model.backbone.stride)
            return self.loss(logits.sigmoid(), share > TARGET_SHARE), logits.sigmoid()

    def features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Per layer features of queries (B, C_l, h, w) and supports (B * K, C_l, h, w): those kept, or one pass of all.

        Views of one large defect show the same image, but are augmented apart: hardly ever are two of them equal, and
        nothing is encoded twice that was not drawn twice.
        """
        if "query_features" in batch:
            kept = batch["query_features"], batch["support_features"].flatten(0, 1)
            query, supports = (k.float().split(self.model.backbone.channels, dim=1) for k in kept)
            return list(query), list(supports)
        count = len(batch["query"])
        maps = self.model.backbone(torch.cat([batch["query"], batch["supports"].flatten(0, 1)]))
        return [m[:count] for m in maps], [m[count:] for m in maps]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; from page-locked memory the copy runs beside the work."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()
    }


def add_to_meter(meter: SegmentationMeter, batch: Batch, probability: Tensor) -> None:
    """Count the answers (B, h, w) to a batch, thresholded at 0.5, by class."""
    predictions = upsample(probability, batch["query_mask"].shape[-2:]).cpu().numpy() > 0.5
    for name, prediction, target in zip(
        batch["class"], predictions, batch["query_mask"].cpu().numpy(), strict=True
    ):
        meter.update(name, prediction.astype(np.uint8), target)
