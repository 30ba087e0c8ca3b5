from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from method_config import load_config
from models.build import build_model
from tests.helpers import EARLY_BEST, own_logging, tiny_config, trainer_of
from tools.checkpoint import load_head
from tools.tester import run_test
from tools.trainer import run_training
from utils.errors import ConfigError, DataError, WeightsError


@pytest.fixture(scope="module")
def finished(surfaces, tmp_path_factory):
    """Config and run folder of a training of two epochs with validation and a test after each; the first validates
    better."""
    cfg = tiny_config(
        surfaces,
        tmp_path_factory.mktemp("log"),
        TRAIN_SETUPS__TEST_SETUPS__epoch_test=1,
        TRAIN_SETUPS__TEST_SETUPS__train_miou=2,
        TRAIN_SETUPS__TEST_SETUPS__val_state=True,
        **EARLY_BEST,
        TEST__VISUALIZE__save_figure=True,
        TEST__VISUALIZE__sample_prob=1.0,
    )
    with own_logging():
        return cfg, run_training(cfg, "method_config/Tiny/SOFS.yaml")


def test_folder_of_a_run(finished):
    cfg, folder = finished
    assert folder.name == "run"
    assert {p.name for p in folder.iterdir()} - {"report.html"} == {
        *(
            "config.yaml",
            "train.log",
            "events",
            "checkpoints",
            "history.json",
            "figures",
            "gallery",
        ),
        *("metrics.json", "queries.csv", "curves.json", "run.json"),
        *("metrics_validation.json", "queries_validation.csv", "curves_validation.json"),
    }
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {
        *("head.safetensors", "best.safetensors", "state.pth")
    }
    assert load_config(folder / "config.yaml") == cfg
    assert len(list((folder / "figures").glob("*Disk*.png"))) == 8


def test_log_of_a_run(finished):
    _, folder = finished
    log = (folder / "train.log").read_text()
    assert "training on 6 samples of 2 classes: Plate" in log, "of 8, two are held out"
    assert "epoch 1: loss" in log and "epoch 2: loss" in log and "training IoU: Plate/line" in log
    assert "validation after 1 epochs" in log and "validation after 2 epochs" in log
    last = log.rindex("original after 1 epochs, split 0, 1-shot")
    assert last > log.index("validation after 2 epochs"), (
        "the head that validated best is tested in the end"
    )
    table = log[last:].splitlines()[1:6]
    assert [row.split()[0] for row in table] == [
        "class",
        "Disk/line",
        "Disk/spot",
        "mIoU",
        "FB-IoU",
    ]
    assert table[0].split()[1:] == ["queries", "SOFS", "prior"]


def test_metrics_of_a_run(finished):
    _, folder = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    expected = {
        "data_set": "VISION_V1_ND",
        "split": 0,
        "shot": 1,
        "seed": 54,
        "epochs": 1,
        "failed_queries": 0,
    }
    assert {key: metrics[key] for key in expected} == expected
    assert json.loads((folder / "metrics_validation.json").read_text())["epochs"] == 2
    assert {"git_revision", "python", "torch", "timm", "backbone", "unreadable"} <= metrics.keys()
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
        *(
            "original/miou_SOFS",
            "original/miou_prior",
            "validation/miou_SOFS",
            "validation/miou_prior",
        ),
    }
    assert [e.step for e in events.Scalars("train/loss")] == [0, 1]
    metrics = json.loads((folder / "metrics.json").read_text())
    last = events.Scalars("original/miou_SOFS")[-1]
    assert last.step == 2 and last.value == pytest.approx(
        metrics["methods"]["SOFS"]["miou"]["mean"]
    )


def test_the_kept_head_tests_as_it_did_in_training(finished):
    """The best validated one, that is; the last one is another."""
    cfg, folder = finished
    found = {"training": folder}
    for name in ("best", "head"):
        again = cfg.clone()
        again.defrost()
        again.TEST.load_checkpoint, again.RUN_NAME = True, f"test_of_{name}"
        again.TEST.load_model_path = str(folder / "checkpoints" / f"{name}.safetensors")
        found[name] = run_test(again, "")
    methods = {
        name: json.loads((f / "metrics.json").read_text())["methods"] for name, f in found.items()
    }
    assert methods["training"] == methods["best"]
    assert (
        methods["head"]["prior"] == methods["best"]["prior"]
        and methods["head"]["SOFS"] != methods["best"]["SOFS"]
    )
    for file in ("queries.csv", "curves.json", "gallery/index.json"):
        assert (found["best"] / file).read_bytes() == (folder / file).read_bytes()
    assert {p.name for p in found["best"].iterdir()} - {"report.html"} == {
        *(
            "config.yaml",
            "test.log",
            "metrics.json",
            "queries.csv",
            "curves.json",
            "run.json",
            "figures",
            "gallery",
        )
    }
    assert "FB-IoU" in (found["best"] / "test.log").read_text()


def test_history_of_a_run(finished):
    _, folder = finished
    history = json.loads((folder / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    events = EventAccumulator(str(folder / "events"))
    events.Reload()

    def scalars(name):
        return pytest.approx([e.value for e in events.Scalars(name)], rel=1e-6)

    for key in ("loss", "learning_rate"):
        assert [entry[key] for entry in history] == scalars(f"train/{key}")
    assert [entry["train_miou"] for entry in history if "train_miou" in entry] == scalars(
        "train/miou"
    )
    assert "train_miou" in history[1], "every second epoch"
    for method in ("SOFS", "prior"):
        assert [entry["validation"][method] for entry in history] == scalars(
            f"validation/miou_{method}"
        )
    last = json.loads((folder / "metrics_validation.json").read_text())["methods"]
    assert history[1]["validation"] == {
        method: figures["miou"]["mean"] for method, figures in last.items()
    }


def test_the_head_file_holds_the_state(finished):
    cfg, folder = finished
    model = build_model(cfg)
    load_head(folder / "checkpoints" / "head.safetensors", model, "TEST.load_model_path")
    state = torch.load(folder / "checkpoints" / "state.pth", weights_only=True)
    assert state["epoch"] == 2
    assert all(
        torch.equal(value, state["head"][name]) for name, value in model.head.state_dict().items()
    )
    assert load_file(folder / "checkpoints" / "head.safetensors").keys() == {
        f"head.{n}" for n in state["head"]
    }


def test_a_state_of_another_head_is_refused(finished, surfaces, tmp_path):
    state = finished[1] / "checkpoints" / "state.pth"
    changes = {"TRAIN_SETUPS__TEST_SETUPS__val_state": True, "TRAIN__SOFS__reduce_dim": 8}
    with pytest.raises(WeightsError, match=r"TRAIN\.resume: .*state\.pth does not fit.*shape"):
        trainer_of(surfaces, tmp_path, TRAIN__resume=str(state), **EARLY_BEST, **changes)


def test_training_can_start_from_a_head(finished, surfaces, tmp_path):
    head = finished[1] / "checkpoints" / "head.safetensors"
    changes = EARLY_BEST | {"TRAIN__load_checkpoint": True, "TRAIN__load_model_path": str(head)}
    trainer = trainer_of(surfaces, tmp_path, **changes)
    state = load_file(head)
    assert all(
        torch.equal(value, state[f"head.{name}"])
        for name, value in trainer.model.head.state_dict().items()
    )
    assert trainer.epoch == 0


def test_runs_that_share_a_name_share_no_file(surfaces, tmp_path):
    """A training, another one of other settings, and a test: each finds an empty folder, and none is lost."""
    options = {
        "TRAIN_SETUPS__epochs": 1,
        "TEST__VISUALIZE__save_figure": True,
        "TEST__VISUALIZE__sample_prob": 1.0,
    }
    validated = {"TRAIN_SETUPS__TEST_SETUPS__val_state": True}
    first = run_training(tiny_config(surfaces, tmp_path, **options | validated), "")
    best = (first / "checkpoints" / "best.safetensors").read_bytes()
    run_training(tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=1), "")
    earlier = tmp_path / "run.1"
    assert (earlier / "checkpoints" / "best.safetensors").read_bytes() == best
    assert (earlier / "metrics_validation.json").is_file() and list((earlier / "figures").iterdir())
    assert not (first / "figures").exists() and not (first / "metrics_validation.json").exists()
    assert {p.name for p in (first / "checkpoints").iterdir()} == {"head.safetensors", "state.pth"}
    run_test(tiny_config(surfaces, tmp_path, TEST__method="prior"), "")
    assert not (first / "checkpoints").exists() and not (first / "history.json").exists()
    assert (tmp_path / "run.2" / "checkpoints" / "head.safetensors").is_file()


def test_a_test_in_the_folder_of_the_head_that_it_reads_is_refused(surfaces, tmp_path):
    folder = run_training(tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=1), "")
    head = folder / "checkpoints" / "head.safetensors"
    loaded = {"TEST__load_checkpoint": True, "TEST__load_model_path": str(head)}
    with pytest.raises(
        ConfigError, match=r"RUN_NAME: .*head\.safetensors, which this run reads, .*choose another"
    ):
        run_test(tiny_config(surfaces, tmp_path, **loaded), "")
    assert (
        head.is_file()
        and (tmp_path / "run" / "history.json").is_file()
        and not (tmp_path / "run.1").exists()
    )
    run_test(tiny_config(surfaces, tmp_path, RUN_NAME="other", **loaded), "")


@pytest.mark.parametrize("job", [run_test, run_training])
def test_a_set_of_which_no_query_can_be_read_takes_nothing_from_the_others(surfaces, tmp_path, job):
    root = tmp_path / "data"
    for name in ("sharp", "dark"):
        shutil.copytree(surfaces, root / name)
    sets = {"DATASET__sub_datasets": ["sharp", "dark"], "TRAIN_SETUPS__epochs": 1}
    job(tiny_config(root, tmp_path, TRAIN__dataset_path=str(surfaces), RUN_NAME="good", **sets), "")
    for path in (root / "dark").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"dark could not be tested: no query .*the results of the rest are in .*run\)",
    ):
        job(tiny_config(root, tmp_path, TRAIN__dataset_path=str(surfaces), **sets), "")
    run, good = tmp_path / "run", tmp_path / "good"
    names = {p.name for p in run.glob("metrics*")}
    assert len(names) == 1 and all((run / n).read_bytes() == (good / n).read_bytes() for n in names)
    assert "dark could not be tested" in json.loads((run / "run.json").read_text())["failed"][0]


def test_a_training_that_goes_on_stays_in_its_folder(surfaces, tmp_path):
    """By `auto` and by the name of its state; one that begins from there does not."""
    run = run_training(tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=1), "")
    state = run / "checkpoints" / "state.pth"
    for number, resume in enumerate(("auto", str(state)), 2):
        run_training(
            tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=number, TRAIN__resume=resume), ""
        )
        assert len(json.loads((run / "history.json").read_text())) == number
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    log = (run / "train.log").read_text()
    assert log.count("training on 8 samples") == 3, "the log goes on, too"
