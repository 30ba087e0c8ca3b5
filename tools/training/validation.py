"""Validation while training: on images of the training objects that are held out, never on test
objects."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from yacs.config import CfgNode

from datasets.episodes import derive_seed
from datasets.samples import SampleIndex
from tools.evaluator import SplitTest
from utils.errors import DataError

HOLD_OUT_STREAM = 2
LEFT = 2  # images of a class that stay in the training: a query and a support


def validation_split(
    cfg: CfgNode, index: SampleIndex, folder: Path
) -> tuple[SampleIndex, SplitTest]:
    """The samples of the training objects to train on, and the test of the held-out images, whose
    supports are the others. DataError: no class has images to spare."""
    images = held_out(index, cfg.TRAIN_SETUPS.TEST_SETUPS.val_share, cfg.RNG_SEED)
    if not images:
        raise DataError(f"{index.root}: no class has {LEFT + 1} images, of which one could be held "
                        "out; set TRAIN_SETUPS.TEST_SETUPS.val_state to False")  # fmt: skip
    test = SplitTest(cfg, index, folder, "validation", frozenset(images))
    return replace(index, samples=[s for s in index.samples if s.image not in images]), test


def held_out(index: SampleIndex, share: float, seed: int) -> set[str]:
    """Images to hold out, drawn from the seed: of each class about `share` of its images and at
    least one, where two are left to train on. Images of several classes count for all of them."""
    of_image: dict[str, list[tuple[str, int]]] = {}
    for sample in index.samples:
        of_image.setdefault(sample.image, []).append(sample.class_key)
    left = {key: len(members) for key, members in index.classes().items()}
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
