from __future__ import annotations

import pytest
import torch

from tests.helpers import tiny_config
from tools.benchmark.training import measure_training


@pytest.mark.parametrize(("crops", "workers"), [(0, 2), (2, 0)])
def test_a_training_is_measured(tmp_path, crops, workers):
    cfg = tiny_config(tmp_path / "unused", tmp_path, TRAIN__feature_bank=crops, TRAIN_SETUPS__num_workers=workers,
                      TRAIN_SETUPS__batch_size=2, DATASET__shot=2)  # fmt: skip
    figures = {f.name: f for f in measure_training(cfg, iterations=3, repeats=2)}
    assert {f.section for f in figures.values()} == {"training"}
    assert all(
        f.value > 0
        for n, f in figures.items()
        if n != "feature bank: passes through the backbone in an epoch"
    )
    exact = {f.name: (f.value, f.kept) for f in figures.values() if f.kind == "exactly"}
    assert exact == {
        "passes through the backbone per iteration": (1, True),
        "images encoded / images of the episodes": (1, True),
        "feature bank: passes through the backbone in an epoch": (0, True),
    }
    overhead = figures["iteration / (backbone + head)"]
    parts = (
        figures["bare passes through the backbone"].value
        + figures["head alone: forward, backward, step"].value
    )
    assert (overhead.bound, overhead.kind) == (1.15, "at most")
    assert (
        overhead.value > 0.3
        and 0.2 < figures["iteration, loader and all"].value / parts / overhead.value < 5
    )
    faster = figures["feature bank: epoch without it / epoch with it"]
    assert (faster.bound, faster.kind) == (1, "at least")
    assert not list(tmp_path.iterdir()), "everything was written elsewhere"
    assert (
        not torch.is_inference_mode_enabled()
        and cfg.is_frozen()
        and cfg.TRAIN.feature_bank == crops
    )
