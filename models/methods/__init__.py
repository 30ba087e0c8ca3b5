"""Methods: each a file in this folder with a subclass of `Method`, registered by its name, by which
`TEST.method` chooses it and, where it is trained, `TRAIN.method`. A method without training needs
`answer` alone; a trained one needs `head` and `episode_logits`, too.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from models.backbone import Backbone
from models.comparison import Comparison
from models.priors import downsample_mask
from utils.errors import ConfigError

METHODS: dict[str, type[Method]] = {}  # by name; `method_class` fills it
BASELINE = "prior"  # the method without training that others are compared with


class Method(nn.Module, ABC):
    """A few-shot segmentation method on a frozen backbone, which several methods may share.

    Supports are encoded once to a `models.memory.Memory`, whose tokens are common to all methods;
    windows are answered by it as often as there are windows.

    Attributes:
        name: in configs, tables and files.
        needs_training: a checkpoint holds its trained weights; False: it works as it is.
        gives_log_odds: its answer is the sigmoid of log-odds, so that masks can be refined.
        head: of a method that needs training, all that is trained, saved and loaded; parameters of
            `head.transformer`, if there is one, have the learning rate of the transformer.
    """

    name: ClassVar[str]
    needs_training: ClassVar[bool] = False
    gives_log_odds: ClassVar[bool] = False
    head: nn.Module

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        METHODS[cls.name] = cls

    @classmethod
    def from_config(cls, cfg: CfgNode, backbone: Backbone) -> Method:
        """The method as a config asks for it, untrained."""
        return cls(backbone)

    def shares(self, masks: Tensor) -> Tensor:
        """Share of marked pixels per token: masks (..., H, W) {0, 1} to (..., h, w)."""
        return downsample_mask(masks, self.backbone.stride)

    def encode(
        self, features: list[Tensor], share: Tensor, counts: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the method keeps of support views beside their tokens; here nothing.

        Args:
            features: per layer (B * K, C_l, h, w), batch-major.
            share: (B, K, h, w) share of marked pixels per token.
            counts: (B, K) how often each view was given, where one came more than once; None: once.
        """
        return {}

    def join(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is kept of several supports, from `encode` of each: side by side along axis 1."""
        return {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}

    def episode_logits(
        self, query: list[Tensor], supports: list[Tensor], support_masks: Tensor
    ) -> Tensor:
        """Log-odds of defect of a training batch, by a method that needs training.

        Args:
            query, supports: features per layer, (B, C_l, h, w) and batch-major (B * K, C_l, h, w).
            support_masks: (B, K, S, S) {0, 1}.

        Returns:
            (B, h', w') of any resolution: the loss brings them to that of its target.
        """
        raise NotImplementedError(f"{self.name} needs no training")

    @abstractmethod
    def answer(self, compared: Comparison, size: tuple[int, int]) -> Tensor:
        """Score windows of `size` (H, W) that are compared with a memory.

        Returns:
            (B, H, W) float32: over 0.5 is defect, as long as no other threshold is chosen; where no
            support pixel is marked, how abnormal a pixel is, in [0, 2].
        """


def method_class(name: str, key: str = "TEST.method") -> type[Method]:
    """The class of the method that a config key names; TRAIN.method names one that needs training.
    ConfigError lists those that there are."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    trained = key == "TRAIN.method"
    names = [n for n, method in METHODS.items() if method.needs_training or not trained]
    if name not in names:
        written = {n.lower(): n for n in names}
        (near,) = difflib.get_close_matches(name.lower(), written, 1, 0.0)
        known = f"the methods{' that can be trained' if trained else ''} are {', '.join(names)}"
        raise ConfigError(f"{key} is {name}; {known}. Did you mean {written[near]}?")
    return METHODS[name]
