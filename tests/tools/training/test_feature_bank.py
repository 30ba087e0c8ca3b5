from __future__ import annotations

import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from torch.utils.data import default_collate

from tests.helpers import tiny_config, trainer_of
from tools.trainer import run_training
from utils.errors import ConfigError, DataError


def banked(root, folder, **changes):
    return trainer_of(root, folder, **{"TRAIN__feature_bank": 2} | changes)


def files_of(trainer):
    with trainer.features_ready():
        return {path.name: path.read_bytes() for path in trainer.episodes.bank.folder.iterdir()}


@pytest.mark.parametrize("shot", [1, 2])
def test_the_bank_is_the_same_for_any_number_of_workers(surfaces, tmp_path, shot):
    alone, several = (
        files_of(banked(surfaces, tmp_path, TRAIN_SETUPS__num_workers=n, DATASET__shot=shot))
        for n in (0, 2)
    )
    assert alone == several and len(alone) == 2 and any(alone["features.bf16"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"DATASET__shot": 2, "DATASET__normal_views": 1, "TRAIN__SOFS__prior_residual": True},
        {"TRAIN__SOFS__meta_cls": False, "TRAIN__LOSS__resolution": "pixel"},
    ],
)
def test_the_loss_from_the_bank_is_that_of_the_same_crops_encoded_now(surfaces, tmp_path, changes):
    trainer = banked(surfaces, tmp_path, **changes)
    trainer.model.eval()
    with trainer.features_ready(), torch.no_grad():
        kept = default_collate([trainer.episodes[n] for n in range(8)])
        now = default_collate([trainer.episodes.images(n) for n in range(8)])
        assert torch.equal(kept["query_mask"], now["query_mask"])
        assert torch.equal(kept["support_masks"], now["support_masks"])
        for stored, fresh in zip(
            trainer.learner.step.features(kept), trainer.learner.step.features(now), strict=True
        ):
            assert_close(stored, fresh, rtol=2**-8, atol=1e-4)
        losses = [float(trainer.learner.step(batch)[0]) for batch in (kept, now)]
    assert losses[0] == pytest.approx(losses[1], abs=5e-3)


def test_each_crop_is_encoded_once_and_epochs_leave_the_backbone_alone(surfaces, tmp_path):
    trainer = banked(surfaces, tmp_path, TRAIN__feature_bank=3)
    before = {n: p.clone() for n, p in trainer.model.head.state_dict().items()}
    encoded = []
    trainer.model.backbone.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    with trainer.features_ready():
        assert sum(encoded) == trainer.episodes.bank.rows == 8 * 2 * 3
        assert encoded == [12] * 4, (
            "as many a pass as a step without the bank encodes, but whole samples"
        )
        passes = len(encoded)
        trainer.train_epoch()
        trainer.train_epoch()
    assert len(encoded) == passes
    after = trainer.model.head.state_dict()
    assert all(not torch.equal(p, before[n]) for n, p in after.items() if "attention" in n)


def test_a_run_trains_from_the_bank_shows_its_pictures_and_leaves_no_bank(surfaces, tmp_path):
    changes = {
        "TRAIN__feature_bank": 2,
        "TRAIN_SETUPS__TEST_SETUPS__train_miou": 1,
        "TRAIN_SETUPS__num_workers": 2,
    }
    folder = run_training(
        tiny_config(surfaces, tmp_path, TRAIN_SETUPS__TEST_SETUPS__test_state=False, **changes), ""
    )
    assert {p.name for p in folder.iterdir()} - {"report.html", "run.json"} == {
        *("config.yaml", "train.log", "events", "checkpoints", "history.json")
    }
    log = (folder / "train.log").read_text()
    assert (
        "feature bank: 32 crops" in log
        and "epoch 2: loss" in log
        and "training IoU: Plate/line" in log
    )
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    assert len(events.Images("train/episode")) == 2


def test_training_from_the_bank_lowers_the_loss(surfaces, tmp_path):
    trainer = banked(surfaces, tmp_path, TRAIN_SETUPS__epochs=8, TRAIN__save_model=False)
    batch = default_collate([trainer.episodes.images(n) for n in range(8)])

    def loss():
        trainer.model.eval()
        with torch.no_grad():
            return float(trainer.learner.step(batch)[0])

    before = loss()
    trainer.run([])
    assert loss() < before - 0.1
    assert not trainer.episodes.bank.folder.exists()


def test_a_disk_that_is_too_small_ends_the_run_before_it_starts(surfaces, tmp_path):
    cfg = tiny_config(surfaces, tmp_path, TRAIN__feature_bank=10**9)
    with pytest.raises(
        ConfigError, match=r"TRAIN\.feature_bank: 16,000,000,000 crops need [\d,]+ bytes"
    ):
        run_training(cfg, "")
    assert not (tmp_path / "run").exists()


def test_an_image_that_cannot_be_read_leaves_no_bank(surfaces, tmp_path):
    shutil.copytree(surfaces, tmp_path / "data")
    (tmp_path / "data" / "Plate" / "train" / "spot_1.png").write_bytes(b"")
    trainer = banked(tmp_path / "data", tmp_path / "run")
    with pytest.raises(DataError, match=r"spot_1\.png"):
        trainer.run([])
    assert not trainer.episodes.bank.folder.exists()
