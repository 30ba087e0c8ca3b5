"""Models out of a config: the only file of models/ that reads one, beside the methods
themselves.
"""

from __future__ import annotations

import os
import shutil

import torch
from yacs.config import CfgNode

from models.backbone import Backbone, build_backbone, check_backbone
from models.methods import BASELINE, Method, method_class
from models.methods.sofs import SOFS
from utils.errors import ConfigError


def check_model(cfg: CfgNode) -> None:
    """Check the names of methods and backbone and what the backbone takes, before any data are
    read.

    Raises:
        ConfigError: a name is unknown, or the backbone lacks a layer or does not take the image
            size.
    """
    method_class(cfg.TEST.method)
    check_backbone(
        cfg.TRAIN.backbone,
        layers=cfg.TRAIN.SOFS.prior_layer_pointer,
        image_size=cfg.DATASET.image_size,
        stride=cfg.TRAIN.SOFS.vit_patch_size,
    )


def build_model(cfg: CfgNode) -> SOFS:
    """SOFS with pretrained backbone and random head, on the CPU."""
    return SOFS.from_config(cfg, backbone_of(cfg))


def build_method(cfg: CfgNode, name: str, backbone: Backbone | None = None) -> Method:
    """A method by its name, untrained, on a new backbone or on one that is there already."""
    return method_class(name).from_config(cfg, backbone or backbone_of(cfg))


def with_baseline(cfg: CfgNode, method: Method) -> dict[str, Method]:
    """The method and, with TEST.baseline, the training-free baseline on the same backbone, by
    name.
    """
    methods = {method.name: method}
    if cfg.TEST.baseline and method.name != BASELINE:
        methods[BASELINE] = build_method(cfg, BASELINE, method.backbone)
    return methods


def backbone_of(cfg: CfgNode) -> Backbone:
    """The frozen backbone of a config with its weights, compiled where TRAIN.compile asks for
    it.
    """
    backbone = build_backbone(
        cfg.TRAIN.backbone,
        layers=cfg.TRAIN.SOFS.prior_layer_pointer,
        image_size=cfg.DATASET.image_size,
        stride=cfg.TRAIN.SOFS.vit_patch_size,
        checkpoint=cfg.TRAIN.backbone_checkpoint,
        sha256=cfg.TRAIN.backbone_sha256,
        pretrained=cfg.TRAIN.backbone_load_state_dict,
        attention=cfg.TRAIN.attention,
    )
    if cfg.TRAIN.compile:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"TRAIN.compile: torch.compile needs a C++ compiler, and {compiler} is not "
                "installed; "
                "install it (on Debian: apt install g++), or set TRAIN.compile to False"
            )
        forward = torch.compile(backbone.model.forward_intermediates, dynamic=True)
        backbone.model.forward_intermediates = forward
    return backbone
