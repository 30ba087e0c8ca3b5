"""Models from a config, which only this file and the methods themselves read."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import torch
from yacs.config import CfgNode

from models.backbone import Backbone, build_backbone, check_backbone
from models.feature_cache import FeatureCache
from models.methods import BASELINE, Method, method_class
from models.runtime import (
    AUTO,
    FORMATS,
    TORCH,
    cached_encoder,
    exported_encoder,
    fastest,
    open_encoder,
)  # fmt: skip
from utils.errors import ConfigError
from utils.output_files import sha256_of
from utils.precision import arithmetic

LOG = logging.getLogger(__name__)


def check_model(cfg: CfgNode) -> None:
    """Check the methods' names and the backbone's settings (ConfigError) before data are read."""
    method_class(cfg.TEST.method)
    method_class(cfg.TRAIN.method, "TRAIN.method")
    check_backbone(cfg.TRAIN.backbone, **_shape(cfg))


def build_model(cfg: CfgNode) -> Method:
    """TRAIN.method with pretrained backbone and random head, on the CPU."""
    return method_class(cfg.TRAIN.method, "TRAIN.method").from_config(cfg, backbone_of(cfg))


def build_method(cfg: CfgNode, name: str, backbone: Backbone | None = None) -> Method:
    """A method by its name, untrained, on the given backbone or on a new one."""
    return method_class(name).from_config(cfg, backbone or backbone_of(cfg))


def with_baseline(cfg: CfgNode, method: Method) -> dict[str, Method]:
    """By name, the method and, with TEST.baseline, the untrained baseline on its backbone."""
    methods = {method.name: method}
    if cfg.TEST.baseline and method.name != BASELINE:
        methods[BASELINE] = build_method(cfg, BASELINE, method.backbone)
    return methods


def backbone_of(cfg: CfgNode) -> Backbone:
    """The frozen backbone of a config with its weights, compiled if TRAIN.compile is set, run as
    TEST.runtime says, and with the features that are kept in TRAIN.feature_cache_path."""
    backbone = build_backbone(
        cfg.TRAIN.backbone,
        **_shape(cfg),
        checkpoint=cfg.TRAIN.backbone_checkpoint,
        sha256=cfg.TRAIN.backbone_sha256,
        pretrained=cfg.TRAIN.backbone_load_state_dict,
        attention=cfg.TRAIN.attention,
    )
    backbone.leave_out_position(cfg.TRAIN.position_directions, cfg.DATASET.image_size)
    if cfg.TRAIN.compile:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise ConfigError(
                f"TRAIN.compile: torch.compile needs a C++ compiler, and {compiler} is not "
                "installed; install it (on Debian: apt install g++), or set TRAIN.compile to False"
            )
        forward = torch.compile(backbone.model.forward_intermediates, dynamic=True)
        backbone.model.forward_intermediates = forward
    runs_in = _set_runtime(cfg, backbone)
    if folder := cfg.TRAIN.feature_cache_path:
        about = f"{backbone.identity} {backbone.layers} {backbone.stride}{runs_in}"
        backbone.cache = FeatureCache(folder, backbone.channels, about)
    return backbone


def _set_runtime(cfg: CfgNode, backbone: Backbone) -> str:
    """Have a backbone run as TEST.runtime and TEST.runtime_path say; returns what tells its
    features from those of torch."""
    name, folder, size = cfg.TEST.runtime, cfg.TEST.runtime_path, cfg.DATASET.image_size
    if name == TORCH or (name == AUTO and torch.cuda.is_available()):
        return ""
    if torch.cuda.is_available():
        raise ConfigError(
            f"TEST.runtime is {name}, which runs on the CPU, but there is a GPU: set it to auto or "
            "torch, or hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    precision, path = cfg.TRAIN.precision, None
    if folder:
        path, precision = exported_encoder(Path(folder), backbone, size)
        name = FORMATS[path.suffix][0] if name == AUTO else name
    elif name == AUTO:
        name = fastest(backbone, size, precision)
    if name == TORCH:
        return ""
    path = path or cached_encoder(backbone, size)
    half = precision != "fp32" and arithmetic(torch.device("cpu"), "auto") == "bf16"
    backbone.run_by(open_encoder(name, path, half=half))
    LOG.info("windows are encoded by %s: %s", name, path)
    return f" {name} {sha256_of(path)}"


def _shape(cfg: CfgNode) -> dict:
    keys, size = cfg.TRAIN.SOFS, cfg.DATASET.image_size
    return {"layers": keys.prior_layer_pointer, "image_size": size, "stride": keys.vit_patch_size}
