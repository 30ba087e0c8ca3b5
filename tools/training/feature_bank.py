"""Fill a feature bank (`TRAIN.feature_bank`): every crop goes through the frozen backbone once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import BatchSampler
from yacs.config import CfgNode

from datasets.episodes import TrainingEpisodes
from datasets.feature_bank import BankCrops, BankEpisodes, FeatureBank
from models.backbone import Backbone
from tools.loading import Loader
from utils.distributed import barrier, is_main, rank, world_size
from utils.logging import progress_bar
from utils.precision import autocast

LOG = logging.getLogger(__name__)


def bank_episodes(
    cfg: CfgNode, episodes: TrainingEpisodes, backbone: Backbone, folder: Path
) -> BankEpisodes:
    """The episodes of a training with `TRAIN.feature_bank`; the bank lies below the run's folder, not filled yet."""
    crops = BankCrops(episodes, cfg.TRAIN.feature_bank)
    size = cfg.DATASET.image_size
    tokens = size // backbone.stride
    rows = len(crops) * crops.per_sample
    bank = FeatureBank(
        folder / "feature_bank", rows, sum(backbone.channels), (tokens, tokens), size
    )
    return BankEpisodes(crops, bank)


@contextmanager
def filled(
    cfg: CfgNode, episodes: BankEpisodes, backbone: Backbone, device: torch.device
) -> Iterator[None]:
    """Have the bank of the episodes on disk for the length of the block; each process encodes its share.

    Raises:
        ConfigError: the disk has too little space.
        DataError: an image cannot be read.
    """
    bank = episodes.bank
    try:
        if is_main():
            bank.create()
        barrier()
        start = time.perf_counter()
        _fill(cfg, episodes, backbone, device)
        barrier()
        spent = time.perf_counter() - start
        LOG.info(
            "feature bank: %d crops, %.2f GB, encoded in %.1f s",
            bank.rows,
            bank.nbytes / 1e9,
            spent,
        )
        yield
    finally:
        if is_main():
            bank.remove()


def _fill(cfg: CfgNode, episodes: BankEpisodes, backbone: Backbone, device: torch.device) -> None:
    crops, setups = episodes.crops, cfg.TRAIN_SETUPS
    own = range(rank(), len(crops), world_size())
    views = cfg.DATASET.shot * (cfg.DATASET.s_in_shot + cfg.DATASET.normal_views)
    images_per_pass = setups.batch_size * (1 + views)  # what a step without the bank takes
    samples = BatchSampler(own, max(1, images_per_pass // crops.per_sample), drop_last=False)
    loader = Loader(
        crops, samples, num_workers=setups.num_workers, pin_memory=device.type == "cuda"
    )
    for batch in progress_bar(loader, desc="feature bank"):
        images = batch["images"].flatten(0, 1).split(images_per_pass)
        with autocast(device, cfg.TRAIN.precision):
            features = torch.cat(
                [_encode(backbone, part.to(device, non_blocking=True)) for part in images]
            )
        by_sample = features.cpu().unflatten(0, batch["masks"].shape[:2])
        for place, maps, masks in zip(
            batch["place"].tolist(), by_sample, batch["masks"], strict=True
        ):
            episodes.bank.write(place * crops.per_sample, maps, masks)


def _encode(backbone: Backbone, images: Tensor) -> Tensor:
    """Features of all layers, (B, C, h, w) bfloat16."""
    return torch.cat(backbone(images), dim=1).to(torch.bfloat16)
