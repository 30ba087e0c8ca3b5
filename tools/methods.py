"""The methods of a test with their weights."""

from __future__ import annotations

import logging

from yacs.config import CfgNode

from models.build import build_method, with_baseline
from models.methods import BASELINE, Method, method_class
from models.weights import require_file
from tools.checkpoint import load_head

LOG = logging.getLogger(__name__)


def tests_a_head(cfg: CfgNode) -> bool:
    """Whether a test loads trained weights: its method has some, and TEST.load_checkpoint is on."""
    return method_class(cfg.TEST.method).needs_training and cfg.TEST.load_checkpoint


def load_methods(cfg: CfgNode) -> dict[str, Method]:
    """The methods of a test by name: TEST.method with its weights and, if on, TEST.baseline.

    Without TEST.load_checkpoint the baseline takes the place of a method that needs training.
    """
    name = cfg.TEST.method
    if not method_class(name).needs_training:
        return with_baseline(cfg, build_method(cfg, name))
    if not cfg.TEST.load_checkpoint:
        LOG.warning("TEST.load_checkpoint is False: the method without training, %r, is tested",
                    BASELINE)  # fmt: skip
        return {BASELINE: build_method(cfg, BASELINE)}
    require_file(cfg.TEST.load_model_path, "TEST.load_model_path")
    method = build_method(cfg, name)
    load_head(cfg.TEST.load_model_path, method, "TEST.load_model_path", cfg)
    return with_baseline(cfg, method)


def weights_files(cfg: CfgNode) -> list[str]:
    """The weights files that a test reads."""
    files = [cfg.TEST.load_model_path] if tests_a_head(cfg) else []
    return files + ([cfg.TRAIN.backbone_checkpoint] if cfg.TRAIN.backbone_checkpoint else [])
