"""Validation while training: on images of the training objects that are held out, never on test objects."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from datasets.episodes import derive_seed
from datasets.samples import SampleIndex
from tools.predictor import Predictor
from tools.evaluator import SplitTest
from utils.distributed import is_main
from utils.errors import DataError

HOLD_OUT_STREAM = 2
LEFT = 2  # images of a class that stay in the training: a query and a support


@dataclass(frozen=True)
class Best:
    """The head that validated best: after which epoch, its mIoU, its weights."""

    epoch: int
    miou: float
    head: Mapping[str, Tensor]


class Validation:
    """Tests on the held-out images, explained by the others, and keeps the best head.

    Args:
        cfg: the config.
        index: all samples of the training objects.
        folder: of the run.

    Attributes:
        rest: the samples to train on.
        best: None before the first validation.

    Raises:
        DataError: no class has images to spare.
    """

    def __init__(self, cfg: CfgNode, index: SampleIndex, folder: Path) -> None:
        images = held_out(index, cfg.TRAIN_SETUPS.TEST_SETUPS.val_share, cfg.RNG_SEED)
        if not images:
            raise DataError(f"{index.root}: no class has {LEFT + 1} images, of which one could be held out; set "
                            "TRAIN_SETUPS.TEST_SETUPS.val_state to False")  # fmt: skip
        self.rest = replace(index, samples=[s for s in index.samples if s.image not in images])
        self.test = SplitTest(cfg, index, folder, "validation", frozenset(images))
        self.best: Best | None = None

    def run(self, predictor: Predictor, epoch: int, head: nn.Module) -> dict[str, float | None]:
        """Validate after an epoch: mIoU by method; an equal one does not replace the best."""
        evaluation = self.test.run(predictor, f"validation after {epoch} epochs", epochs=epoch)
        mious = {method: evaluation.miou(method) for method in evaluation.methods}
        miou = mious[predictor.main] or 0.0
        if self.best is None or miou > self.best.miou:
            self.best = Best(epoch, miou, copy.deepcopy(head.state_dict()))
        return mious

    def state(self) -> dict[str, Any] | None:
        """The best so far in plain values and tensors, for a training state."""
        return None if self.best is None else dict(vars(self.best))

    def restore(self, state: dict[str, Any], head: nn.Module) -> None:
        """Take up what `state` gave. Raises ValueError where that is of another head."""
        best, own = Best(**state), head.state_dict()
        if {n: t.shape for n, t in best.head.items()} != {n: t.shape for n, t in own.items()}:
            raise ValueError("the best head is of another shape")
        self.best = best


def _without_normal(cfg: CfgNode) -> CfgNode:
    """The config without DATASET.normal_shot, whose images are those of the test objects."""
    own = cfg.clone()
    own.defrost()
    own.DATASET.normal_shot = 0
    return own


def held_out(index: SampleIndex, share: float, seed: int) -> set[str]:
    """Images to hold out, drawn from the seed: of each class about `share` of its images and at least one, where two
    are left to train on. An image of several classes is held out for all of them."""
    classes = index.classes()
    of_image: dict[str, list[tuple[str, int]]] = {}
    for sample in index.samples:
        of_image.setdefault(sample.image, []).append(sample.class_key)
    left = {key: len(members) for key, members in classes.items()}
    wanted = {key: max(1, round(share * count)) for key, count in left.items()}
    images = sorted(of_image)
    random.Random(derive_seed(seed, HOLD_OUT_STREAM)).shuffle(images)
    chosen: set[str] = set()
    for image in images:
        keys = of_image[image]
        if any(wanted[key] > 0 for key in keys) and all(left[key] > LEFT for key in keys):
            chosen.add(image)
            for key in keys:
                left[key], wanted[key] = left[key] - 1, wanted[key] - 1
    return chosen
