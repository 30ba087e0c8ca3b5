"""Which methods a test compares, with their weights."""

from __future__ import annotations

import logging

from torch import nn
from yacs.config import CfgNode

from models.build import build_model, build_prior_method
from models.sofs import SOFS
from models.weight_files import require_file
from tools.checkpoint import load_head

LOG = logging.getLogger(__name__)
PRIOR = "prior"


def test_methods(cfg: CfgNode) -> dict[str, nn.Module]:
    """The methods of a test by name: TEST.method with its weights and, with TEST.baseline, the prior.

    Without a checkpoint to load only the prior is left, which needs none; a notice says so.
    """
    if cfg.TEST.method == PRIOR or not cfg.TEST.load_checkpoint:
        if cfg.TEST.method != PRIOR:
            LOG.warning(
                "no checkpoint given (TEST.load_checkpoint is False): testing the method without training, %r",
                PRIOR,
            )
        return {PRIOR: build_prior_method(cfg)}
    require_file(cfg.TEST.load_model_path, "TEST.load_model_path")
    model = build_model(cfg)
    load_head(cfg.TEST.load_model_path, model, "TEST.load_model_path", cfg)
    return with_baseline(cfg, model)


def weights_files(cfg: CfgNode) -> list[str]:
    """The weights files that a test reads."""
    head = (
        []
        if cfg.TEST.method == PRIOR or not cfg.TEST.load_checkpoint
        else [cfg.TEST.load_model_path]
    )
    return head + ([cfg.TRAIN.backbone_checkpoint] if cfg.TRAIN.backbone_checkpoint else [])


def with_baseline(cfg: CfgNode, model: SOFS) -> dict[str, nn.Module]:
    """The model and, with TEST.baseline, the prior on the same backbone."""
    baseline = {PRIOR: build_prior_method(cfg, model.backbone)} if cfg.TEST.baseline else {}
    return {"SOFS": model} | baseline
