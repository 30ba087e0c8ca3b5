from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from torch.utils.data import default_collate

from datasets.build import build_test_index, build_train_index
from method_config import load_config
from models.build import build_model
from tests.helpers import own_logging, tiny_config, train_without_dropout
from tools.checkpoint import load_head
from tools.tester import run_test
from tools.trainer import Trainer, run_training
from utils.distributed import launch
from utils.errors import DataError, WeightsError
from utils.precision import autocast


@pytest.fixture(scope="module")
def finished(surfaces, tmp_path_factory):
    """Config and run folder of a training of two epochs with a test after each and at the end."""
    cfg = tiny_config(
        surfaces,
        tmp_path_factory.mktemp("log"),
        TRAIN_SETUPS__TEST_SETUPS__epoch_test=1,
        TRAIN_SETUPS__TEST_SETUPS__train_miou=2,
        TRAIN_SETUPS__TEST_SETUPS__val_state=True,
        TEST__VISUALIZE__save_figure=True,
        TEST__VISUALIZE__sample_prob=1.0,
    )
    with own_logging():
        return cfg, run_training(cfg, "method_config/Tiny/SOFS.yaml")


def trainer_of(surfaces, folder, **changes):
    cfg = tiny_config(surfaces, folder, **changes)
    return Trainer(cfg, build_train_index(cfg), folder)


def batch_of(trainer, count=8):
    return default_collate([trainer.episodes[i] for i in range(count)])


def loss_of(trainer, batch):
    """Loss without dropout and without a step."""
    trainer.model.eval()
    with torch.no_grad():
        return float(trainer.step(batch)[0])


def test_training_lowers_the_loss(surfaces, tmp_path):
    trainer = trainer_of(surfaces, tmp_path, TRAIN_SETUPS__epochs=8, TRAIN__save_model=False)
    batch = batch_of(trainer)
    before = loss_of(trainer, batch)
    frozen = {n: p.clone() for n, p in trainer.model.backbone.state_dict().items()}
    trainer.run({})
    assert loss_of(trainer, batch) < before - 0.1
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.model.backbone.state_dict().items())
    assert not (tmp_path / "checkpoints").exists()
    assert trainer.schedule.get_last_lr() == [0.0, 0.0], "polynomial decay ends at the last step"


def test_every_epoch_draws_anew_and_trains_with_dropout_also_after_a_test(surfaces, tmp_path):
    trainer = trainer_of(surfaces, tmp_path, TRAIN_SETUPS__TEST_SETUPS__epoch_test=1)
    seen = []
    trainer.step.register_forward_pre_hook(lambda step, args: seen.append((args[0]["query"], step.model.head.training)))
    trainer.run({"original": build_test_index(trainer.cfg)})
    assert [training for _, training in seen] == [True] * 4, "two epochs of two batches"
    first, second = (torch.cat([query for query, _ in seen[i : i + 2]]).flatten(1).sum(1) for i in (0, 2))
    assert len(set(first.tolist()) | set(second.tolist())) == 16


@pytest.mark.parametrize("layers", [[2], [1, 2, 3]])
def test_a_step_encodes_its_queries_and_supports_in_one_pass_under_inference_mode(surfaces, tmp_path, layers):
    changes = {"TRAIN__SOFS__prior_layer_pointer": layers, "TRAIN__SOFS__prior_residual": True, "DATASET__shot": 2}
    trainer = trainer_of(surfaces, tmp_path, **changes)
    seen = []
    trainer.model.backbone.register_forward_hook(lambda _, args, maps: seen.append((len(args[0]), maps)))
    trainer.update(batch_of(trainer, 4))
    ((images, maps),) = seen
    assert images == 4 * (1 + 2 * 2) and all(m.is_inference() for m in maps)
    assert all(p.grad is not None for p in trainer.model.head.parameters())


def test_learning_rates_of_the_groups(surfaces, tmp_path):
    trainer = trainer_of(surfaces, tmp_path, TRAIN_SETUPS__lr_multiple=3.0, TRAIN_SETUPS__weight_decay=0.02)
    transformer, others = trainer.optimizer.param_groups
    assert transformer["lr"] == pytest.approx(1e-3) and others["lr"] == pytest.approx(3e-3)
    assert transformer["weight_decay"] == others["weight_decay"] == 0.02
    chosen = {id(p) for p in transformer["params"]}
    assert chosen == {id(p) for n, p in trainer.model.named_parameters() if n.startswith("head.transformer.")}
    assert len(chosen) + len(others["params"]) == len(list(trainer.model.head.parameters()))


def test_folder_of_a_run(finished):
    cfg, folder = finished
    assert folder.name == "run"
    assert {p.name for p in folder.iterdir()} == {
        *("config.yaml", "train.log", "events", "checkpoints", "figures", "figures_validation"),
        *("metrics.json", "metrics_validation.json"),
    }
    assert load_config(folder / "config.yaml") == cfg
    assert len(list((folder / "figures").glob("*Disk*.png"))) == 8
    assert len(list((folder / "figures_validation").glob("*Plate*.png"))) == 8


def test_log_of_a_run(finished):
    _, folder = finished
    log = (folder / "train.log").read_text()
    assert "training on 8 samples of 2 classes: Plate" in log
    assert "epoch 1: loss" in log and "epoch 2: loss" in log and "training IoU: Plate/line" in log
    assert "original after 2 epochs, split 0, 1-shot" in log and "validation after 1 epochs" in log
    table = log[log.index("original after 2 epochs") :].splitlines()[1:6]
    assert [row.split()[0] for row in table] == ["class", "Disk/line", "Disk/spot", "mIoU", "FB-IoU"]
    assert table[0].split()[1:] == ["queries", "SOFS", "prior"]


def test_metrics_of_a_run(finished):
    _, folder = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = {"data_set": "VISION_V1_ND", "split": 0, "shot": 1, "seed": 54, "epochs": 2, "failed_queries": 0}
    assert {key: metrics[key] for key in expected} == expected
    assert {"git_revision", "python", "torch", "timm", "backbone", "finished", "unreadable"} <= metrics.keys()
    for method in ("SOFS", "prior"):
        found = metrics["methods"][method]
        assert found["classes"].keys() == {"Disk/line", "Disk/spot"}
        assert found["classes"]["Disk/line"].keys() == {"iou", "std", "repeats", "queries"}
        assert 0 <= found["miou"]["mean"] <= 1 and found["fb_iou"]["std"] == 0


def test_events_of_a_run(finished):
    _, folder = finished
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    tags = events.Tags()
    assert tags["images"] == ["train/episode"] and len(events.Images("train/episode")) == 2
    assert set(tags["scalars"]) == {
        *("train/loss", "train/learning_rate", "train/episodes_per_second", "train/miou"),
        *("original/miou_SOFS", "original/miou_prior", "validation/miou_SOFS", "validation/miou_prior"),
    }
    assert [e.step for e in events.Scalars("train/loss")] == [0, 1]
    metrics = json.loads((folder / "metrics.json").read_text())
    last = events.Scalars("original/miou_SOFS")[-1]
    assert last.step == 2 and last.value == pytest.approx(metrics["methods"]["SOFS"]["miou"]["mean"])


def test_the_kept_head_tests_as_it_did_in_training(finished):
    cfg, folder = finished
    head = folder / "checkpoints" / "head.safetensors"
    again = cfg.clone()
    again.defrost()
    again.TEST.load_checkpoint, again.TEST.load_model_path, again.RUN_NAME = True, str(head), "test"
    folder_of_test = run_test(again, "")
    mine, theirs = (json.loads((f / "metrics.json").read_text()) for f in (folder, folder_of_test))
    assert mine["methods"] == theirs["methods"]
    assert {p.name for p in folder_of_test.iterdir()} == {"config.yaml", "test.log", "metrics.json", "figures"}
    assert "FB-IoU" in (folder_of_test / "test.log").read_text()


def test_the_head_file_holds_the_state(finished):
    cfg, folder = finished
    model = build_model(cfg)
    load_head(folder / "checkpoints" / "head.safetensors", model, "TEST.load_model_path")
    state = torch.load(folder / "checkpoints" / "state.pth", weights_only=True)
    assert state["epoch"] == 2
    assert all(torch.equal(value, state["head"][name]) for name, value in model.head.state_dict().items())
    assert load_file(folder / "checkpoints" / "head.safetensors").keys() == {f"head.{n}" for n in state["head"]}


class Interrupted(Trainer):
    """A training that is cut off once its first epoch is saved."""

    def _save(self):
        super()._save()
        raise KeyboardInterrupt


@pytest.mark.parametrize("crops", [0, 2])
def test_resumed_training_ends_where_an_uninterrupted_one_does(surfaces, tmp_path, crops):
    straight = trainer_of(surfaces, tmp_path / "straight", TRAIN__feature_bank=crops)
    straight.run({})
    cfg = tiny_config(surfaces, tmp_path, TRAIN__feature_bank=crops)
    with pytest.raises(KeyboardInterrupt):
        Interrupted(cfg, build_train_index(cfg), tmp_path / "cut").run({})
    state = tmp_path / "cut" / "checkpoints" / "state.pth"
    resumed = trainer_of(surfaces, tmp_path / "resumed", TRAIN__resume=str(state), TRAIN__feature_bank=crops)
    assert resumed.epoch == 1
    assert any(
        not torch.equal(a, b) for a, b in zip(resumed.model.parameters(), straight.model.parameters(), strict=True)
    )
    resumed.run({})
    first, second = straight.model.head.state_dict(), resumed.model.head.state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_state_of_another_head_is_refused(finished, surfaces, tmp_path):
    state = finished[1] / "checkpoints" / "state.pth"
    with pytest.raises(WeightsError, match=r"TRAIN\.resume: .*state\.pth does not fit.*shape"):
        trainer_of(surfaces, tmp_path, TRAIN__resume=str(state), TRAIN__SOFS__reduce_dim=8)


def test_training_can_start_from_a_head(finished, surfaces, tmp_path):
    head = finished[1] / "checkpoints" / "head.safetensors"
    trainer = trainer_of(surfaces, tmp_path, TRAIN__load_checkpoint=True, TRAIN__load_model_path=str(head))
    state = load_file(head)
    assert all(torch.equal(value, state[f"head.{name}"]) for name, value in trainer.model.head.state_dict().items())
    assert trainer.epoch == 0


@pytest.mark.parametrize("crops", [0, 2])
def test_two_processes_step_as_one_with_their_batches_together(surfaces, tmp_path, crops):
    """At a learning rate that moves nothing the gradients of the last step and the test are those of one process."""
    changes = {"TRAIN_SETUPS__learning_rate": 1e-12, "TRAIN_SETUPS__weight_decay": 0.0, "TRAIN_SETUPS__epochs": 1}
    changes["TRAIN__feature_bank"] = crops
    grads, metrics = [], []
    for processes in (1, 2):
        cfg = tiny_config(surfaces, tmp_path, TRAIN_SETUPS__batch_size=4 // processes, **changes)
        folder = tmp_path / f"of{processes}"
        launch(train_without_dropout, processes, "gloo", cfg, folder)
        grads.append(torch.load(folder / "grads.pth"))
        metrics.append(json.loads((folder / "metrics.json").read_text()))
        assert (folder / "checkpoints" / "head.safetensors").is_file()
    assert metrics[0]["methods"] == metrics[1]["methods"]
    assert max(float(g.abs().max()) for g in grads[0].values()) > 1e-3
    for name, gradient in grads[0].items():
        assert_close(grads[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_the_loss_in_float32(surfaces, tmp_path, precision):
    changes = {"TRAIN__precision": precision, "TRAIN_SETUPS__epochs": 1, "TRAIN__SOFS__prior_residual": True}
    trainer = trainer_of(surfaces, tmp_path, **changes)
    before = {n: p.clone() for n, p in trainer.model.head.state_dict().items()}
    exactly = trainer_of(surfaces, tmp_path, **changes | {"TRAIN__precision": "fp32"})
    exact = exactly.step(batch_of(exactly))[0]
    with autocast(trainer.device, precision):
        loss, probability = trainer.step(batch_of(trainer))
    assert loss.dtype == probability.dtype == torch.float32
    assert 0 < abs(loss.item() - exact.item()) < 0.2
    trainer.run({})
    after = trainer.model.head.state_dict()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after.values())
    assert any(not torch.equal(p, before[n]) for n, p in after.items())


def test_missing_training_images_are_counted_before_the_training(surfaces, tmp_path):
    shutil.copytree(surfaces, tmp_path / "data")
    for name in ("spot_0", "spot_1"):
        (tmp_path / "data" / "Plate" / "train" / f"{name}.png").unlink()
    cfg = tiny_config(tmp_path / "data", tmp_path / "log")
    with pytest.raises(DataError, match=r"2 training images are missing.*spot_0\.png.*TRAIN\.dataset_path"):
        run_training(cfg, "")
    assert not (tmp_path / "log" / "run").exists()


def test_training_without_tests(surfaces, tmp_path):
    changes = {
        "TRAIN_SETUPS__TEST_SETUPS__test_state": False,
        "TRAIN_SETUPS__epochs": 1,
        "DATASET__test_objects": ["X"],
    }
    folder = run_training(tiny_config(surfaces, tmp_path, **changes), "")
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "train.log", "events", "checkpoints"}
