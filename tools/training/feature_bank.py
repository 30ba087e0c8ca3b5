"""Fill a feature bank (`TRAIN.feature_bank`): every crop goes through the frozen backbone once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
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
    """The episodes of a training whose bank, not filled yet, is below the run's folder."""
    crops, size = BankCrops(episodes, cfg.TRAIN.feature_bank), cfg.DATASET.image_size
    rows, tokens = len(crops) * crops.per_sample, size // backbone.stride
    shape = (rows, sum(backbone.channels), (tokens, tokens), size)
    return BankEpisodes(crops, FeatureBank(folder / "feature_bank", *shape))


@contextmanager
def filled(
    cfg: CfgNode,
    episodes: BankEpisodes | TrainingEpisodes,
    backbone: Backbone,
    device: torch.device,
) -> Iterator[None]:
    """Have the bank of the episodes, where they use one, on disk for the length of the block; each
    process encodes its share. ConfigError: the disk has too little space."""
    if not isinstance(episodes, BankEpisodes):
        yield
        return
    bank = episodes.bank
    try:
        if is_main():
            bank.create()
        barrier()
        _fill(cfg, episodes, backbone, device)
        barrier()
        LOG.info("feature bank: %d crops, %.2f GB", bank.rows, bank.nbytes / 1e9)
        yield
    finally:
        if is_main():
            bank.remove()


def _fill(cfg: CfgNode, episodes: BankEpisodes, backbone: Backbone, device: torch.device) -> None:
    crops, data, setups = episodes.crops, cfg.DATASET, cfg.TRAIN_SETUPS
    # as many images per pass as a step without the bank takes
    most = setups.batch_size * (1 + data.shot * (data.s_in_shot + data.normal_views))
    own = range(rank(), len(crops), world_size())
    batches = BatchSampler(own, max(1, most // crops.per_sample), drop_last=False)
    pin = device.type == "cuda"
    loader = Loader(crops, batches, num_workers=setups.num_workers, pin_memory=pin)
    for batch in progress_bar(loader, desc="feature bank", total=len(batches)):
        encoded = []
        for images in batch["images"].flatten(0, 1).split(most):
            with autocast(device, cfg.TRAIN.precision):
                maps = backbone(images.to(device, non_blocking=True))
            encoded.append(torch.cat(maps, dim=1).to(torch.bfloat16).cpu())
        features = torch.cat(encoded).unflatten(0, batch["masks"].shape[:2])
        for place, rows, masks in zip(batch["place"], features, batch["masks"], strict=True):
            episodes.bank.write(int(place) * crops.per_sample, rows, masks)
