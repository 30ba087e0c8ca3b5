from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import default_collate

from datasets.build import build_test_index, build_train_index
from models.build import build_model
from tests.helpers import tiny_config, train_without_dropout, trainer_of
from tools.checkpoint import load_state
from tools.tester import SplitTest
from tools.trainer import Trainer, run_training
from tools.training.state import STATE
from utils.distributed import launch
from utils.errors import DataError
from utils.precision import autocast


def batch_of(trainer, count=8):
    return default_collate([trainer.episodes[i] for i in range(count)])


def loss_of(trainer, batch):
    """Loss without dropout and without a step."""
    trainer.model.eval()
    with torch.no_grad():
        return float(trainer.learner.step(batch)[0])


def test_training_lowers_the_loss(surfaces, tmp_path):
    trainer = trainer_of(surfaces, tmp_path, TRAIN_SETUPS__epochs=8, TRAIN__save_model=False)
    batch = batch_of(trainer)
    before = loss_of(trainer, batch)
    frozen = {n: p.clone() for n, p in trainer.model.backbone.state_dict().items()}
    trainer.run([])
    assert loss_of(trainer, batch) < before - 0.1
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.backbone.state_dict().items())
    assert not (tmp_path / "checkpoints").exists()
    assert trainer.learner.schedule.get_last_lr() == [0.0, 0.0], (
        "polynomial decay ends at the last step"
    )


def test_every_epoch_draws_anew_and_trains_with_dropout_also_after_a_test(surfaces, tmp_path):
    trainer = trainer_of(surfaces, tmp_path, TRAIN_SETUPS__TEST_SETUPS__epoch_test=1)
    seen = []
    trainer.learner.step.register_forward_pre_hook(
        lambda step, args: seen.append((args[0]["query"], step.model.head.training))
    )
    trainer.run([SplitTest(trainer.cfg, build_test_index(trainer.cfg), tmp_path, "original")])
    assert [training for _, training in seen] == [True] * 4, "two epochs of two batches"
    first, second = (
        torch.cat([query for query, _ in seen[i : i + 2]]).flatten(1).sum(1) for i in (0, 2)
    )
    assert len(set(first.tolist()) | set(second.tolist())) == 16


@pytest.mark.parametrize("layers", [[2], [1, 2, 3]])
def test_a_step_encodes_its_queries_and_supports_in_one_pass_under_inference_mode(
    surfaces, tmp_path, layers
):
    changes = {
        "TRAIN__SOFS__prior_layer_pointer": layers,
        "TRAIN__SOFS__prior_residual": True,
        "DATASET__shot": 2,
    }
    trainer = trainer_of(surfaces, tmp_path, **changes)
    seen = []
    trainer.model.backbone.register_forward_hook(
        lambda _, args, maps: seen.append((len(args[0]), maps))
    )
    trainer.learner.update(batch_of(trainer, 4))
    ((images, maps),) = seen
    assert images == 4 * (1 + 2 * 2) and all(m.is_inference() for m in maps)
    assert all(p.grad is not None for p in trainer.model.head.parameters())


def test_learning_rates_of_the_groups(surfaces, tmp_path):
    trainer = trainer_of(
        surfaces, tmp_path, TRAIN_SETUPS__lr_multiple=3.0, TRAIN_SETUPS__weight_decay=0.02
    )
    transformer, others = trainer.learner.optimizer.param_groups
    assert transformer["lr"] == pytest.approx(1e-3) and others["lr"] == pytest.approx(3e-3)
    assert transformer["weight_decay"] == others["weight_decay"] == 0.02
    chosen = {id(p) for p in transformer["params"]}
    assert chosen == {
        id(p) for n, p in trainer.model.named_parameters() if n.startswith("head.transformer.")
    }
    assert len(chosen) + len(others["params"]) == len(list(trainer.model.head.parameters()))


def test_training_with_a_threshold_of_the_supports(surfaces, tmp_path):
    folder = run_training(
        tiny_config(surfaces, tmp_path, TEST__threshold="auto", TRAIN_SETUPS__epochs=1), ""
    )
    thresholds = {row["threshold"] for row in csv.DictReader((folder / "queries.csv").open())}
    assert len(thresholds) > 1


class Interrupted(Trainer):
    """A training that is cut off once its first epoch is saved."""

    def _save(self):
        super()._save()
        raise KeyboardInterrupt


@pytest.mark.parametrize("crops", [0, 2])
def test_resumed_training_ends_where_an_uninterrupted_one_does(surfaces, tmp_path, crops):
    straight = trainer_of(surfaces, tmp_path / "straight", TRAIN__feature_bank=crops)
    straight.run([])
    cfg = tiny_config(surfaces, tmp_path, TRAIN__feature_bank=crops)
    with pytest.raises(KeyboardInterrupt):
        Interrupted(cfg, build_train_index(cfg), tmp_path / "cut").run([])
    state = tmp_path / "cut" / "checkpoints" / "state.pth"
    resumed = trainer_of(
        surfaces, tmp_path / "resumed", TRAIN__resume=str(state), TRAIN__feature_bank=crops
    )
    assert resumed.epoch == 1
    assert any(
        not torch.equal(a, b)
        for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True)
    )
    resumed.run([])
    first, second = straight.model.head.state_dict(), resumed.model.head.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_two_processes_step_as_one_with_their_batches_together(surfaces, tmp_path):
    """From a feature bank, at a learning rate that moves nothing: the gradients of the last step and the test are those
    of one process."""
    changes = {
        "TRAIN_SETUPS__learning_rate": 1e-12,
        "TRAIN_SETUPS__weight_decay": 0.0,
        "TRAIN_SETUPS__epochs": 1,
    }
    changes["TRAIN__feature_bank"] = 2
    grads, metrics = [], []
    for processes in (1, 2):
        cfg = tiny_config(surfaces, tmp_path, TRAIN_SETUPS__batch_size=4 // processes, **changes)
        folder = tmp_path / f"of{processes}"
        launch(train_without_dropout, processes, "gloo", cfg, folder)
        grads.append(torch.load(folder / "grads.pth", weights_only=True))
        metrics.append(json.loads((folder / "metrics.json").read_text()))
        assert (folder / "checkpoints" / "head.safetensors").is_file()
    assert metrics[0]["methods"] == metrics[1]["methods"]
    assert max(float(g.abs().max()) for g in grads[0].values()) > 1e-3
    for name, gradient in grads[0].items():
        assert_close(grads[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_twenty_steps_of_two_processes_end_where_those_of_one_do(surfaces, tmp_path):
    """Differences are those of float sums in another order: a small share of what was learnt. The loss that is told is
    that of all processes."""
    changes = {"TRAIN_SETUPS__epochs": 10, "TRAIN_SETUPS__TEST_SETUPS__test_state": False}
    heads, losses = [], []
    for processes in (1, 2):
        cfg = tiny_config(surfaces, tmp_path, TRAIN_SETUPS__batch_size=4 // processes, **changes)
        launch(train_without_dropout, processes, "gloo", cfg, tmp_path / f"of{processes}")
        state = load_state(tmp_path / f"of{processes}" / STATE)
        assert state["optimizer"]["state"][0]["step"] == 20
        heads.append(state["head"])
        losses.append([entry["loss"] for entry in state["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and max(losses[0]) > 1.05 * min(
        losses[0]
    )
    torch.manual_seed(cfg.RNG_SEED)
    for name, start in build_model(cfg).head.state_dict().items():
        learnt, apart = ((heads[0][name] - other).abs().max() for other in (start, heads[1][name]))
        assert apart <= 1e-3 * learnt, name


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_the_loss_in_float32(surfaces, tmp_path, precision):
    changes = {
        "TRAIN__precision": precision,
        "TRAIN_SETUPS__epochs": 1,
        "TRAIN__SOFS__prior_residual": True,
    }
    trainer = trainer_of(surfaces, tmp_path, **changes)
    before = {n: p.clone() for n, p in trainer.model.head.state_dict().items()}
    exactly = trainer_of(surfaces, tmp_path, **changes | {"TRAIN__precision": "fp32"})
    exact = exactly.learner.step(batch_of(exactly))[0]
    with autocast(trainer.device, precision):
        loss, probability = trainer.learner.step(batch_of(trainer))
    assert loss.dtype == probability.dtype == torch.float32
    assert 0 < abs(loss.item() - exact.item()) < 0.2
    trainer.run([])
    after = trainer.model.head.state_dict()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after.values())
    assert any(not torch.equal(p, before[n]) for n, p in after.items())


def test_missing_training_images_are_counted_before_the_training(surfaces, tmp_path):
    shutil.copytree(surfaces, tmp_path / "data")
    for name in ("spot_0", "spot_1"):
        (tmp_path / "data" / "Plate" / "train" / f"{name}.png").unlink()
    cfg = tiny_config(tmp_path / "data", tmp_path / "log")
    with pytest.raises(
        DataError, match=r"2 training images are missing.*spot_0\.png.*TRAIN\.dataset_path"
    ):
        run_training(cfg, "")
    assert not (tmp_path / "log" / "run").exists()


def test_training_without_tests(surfaces, tmp_path):
    changes = {
        "TRAIN_SETUPS__TEST_SETUPS__test_state": False,
        "TRAIN_SETUPS__epochs": 1,
        "DATASET__test_objects": ["X"],
    }
    folder = run_training(tiny_config(surfaces, tmp_path, **changes), "")
    assert {p.name for p in folder.iterdir()} - {"report.html", "run.json"} == {
        *("config.yaml", "train.log", "events", "checkpoints", "history.json")
    }
