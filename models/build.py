"""`build_model(cfg)`: the one function of models/ that reads the config."""

from __future__ import annotations

import os
import shutil

import torch
from yacs.config import CfgNode

from models.backbone import TIMM_PREFIX, Backbone, build_backbone, check_backbone
from models.head import Head
from models.prior_method import PriorMethod
from models.sofs import SOFS
from utils.errors import ConfigError


def build_model(cfg: CfgNode) -> SOFS:
    """SOFS with pretrained backbone and random head, on the CPU."""
    own = cfg.TRAIN.SOFS
    backbone = _backbone(cfg)
    num_layers = len(backbone.layers)
    head = Head(
        sum(backbone.channels),
        num_layers * (2 if own.normal_sim_aug else 1),
        reduce_dim=own.reduce_dim,
        embed_dim=own.transformer_embed_dim,
        num_heads=own.transformer_nums_heads,
        num_stages=own.transformer_num_stages,
        temperature=own.target_semantic_temperature,
        meta_cls=own.meta_cls,
        prior_residual=own.prior_residual,
    )
    return SOFS(
        backbone,
        head,
        abnormal_to_head=own.normal_sim_aug,
        area_downsampling=own.conv_vit_down_sampling,
        skip_empty_supports=own.empty_supports == "skip",
    )


def check_model(cfg: CfgNode) -> None:
    """What the config alone cannot tell of a `timm:` backbone, before data are read. Raises ConfigError."""
    if cfg.TRAIN.backbone.startswith(TIMM_PREFIX):
        check_backbone(
            cfg.TRAIN.backbone,
            layers=cfg.TRAIN.SOFS.prior_layer_pointer,
            image_size=cfg.DATASET.image_size,
            stride=cfg.TRAIN.SOFS.vit_patch_size,
        )


def build_prior_method(cfg: CfgNode, backbone: Backbone | None = None) -> PriorMethod:
    """The method without training, on a backbone of its own or on one that is there already."""
    return PriorMethod(backbone or _backbone(cfg))


def _backbone(cfg: CfgNode) -> Backbone:
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
            raise ConfigError(f"TRAIN.compile: torch.compile needs a C++ compiler, and {compiler} is not installed; "
                              "install it (on Debian: apt install g++), or set TRAIN.compile to False")  # fmt: skip
        backbone.model.forward_intermediates = torch.compile(
            backbone.model.forward_intermediates, dynamic=True
        )
    return backbone
