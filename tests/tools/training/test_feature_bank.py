from __future__ import annotations

import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from torch.utils.data import default_collate

from tests.helpers import tiny_config, training_of
from tools.trainer import run_training, train_epochs
from tools.training.feature_bank import filled
from utils.errors import ConfigError, DataError


def banked(root, folder, **changes):
    return training_of(root, folder, **{"TRAIN__feature_bank": 2} | changes)


def bank_of(run):
    return filled(run.cfg, run.episodes, run.model.backbone, run.device)


def loss_of(run, batch):
    run.model.eval()
    with torch.no_grad():
        return float(run.loss(batch)[0])


def test_the_bank_is_the_same_for_any_number_of_workers(surfaces, tmp_path):
    contents = []
    for workers in (0, 2):
        run = banked(surfaces, tmp_path, TRAIN_SETUPS__num_workers=workers, DATASET__shot=2)
        with bank_of(run):
            files = run.episodes.bank.folder.iterdir()
            contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1] and any(contents[0]["features.bf16"])


@pytest.mark.parametrize(
    "changes",
    [
        {"DATASET__shot": 2, "DATASET__normal_views": 1, "TRAIN__SOFS__prior_residual": True},
        {"TRAIN__SOFS__meta_cls": False, "TRAIN__LOSS__resolution": "pixel"},
    ],
)
def test_the_loss_from_the_bank_is_that_of_the_same_crops_encoded_now(surfaces, tmp_path, changes):
    run = banked(surfaces, tmp_path, **changes)
    with bank_of(run):
        kept = default_collate([run.episodes[n] for n in range(8)])
        now = default_collate([run.episodes.images(n) for n in range(8)])
        assert all(torch.equal(kept[k], now[k]) for k in ("query_mask", "support_masks"))
        for stored, fresh in zip(run.loss.features(kept), run.loss.features(now), strict=True):
            assert_close(stored, fresh, rtol=2**-8, atol=1e-4)
        assert loss_of(run, kept) == pytest.approx(loss_of(run, now), abs=5e-3)


def test_each_crop_is_encoded_once_and_training_lowers_the_loss(surfaces, tmp_path):
    changes = {"TRAIN__feature_bank": 3, "TRAIN_SETUPS__epochs": 8, "TRAIN__save_model": False}
    run, encoded = banked(surfaces, tmp_path, **changes), []
    batch = default_collate([run.episodes.images(n) for n in range(8)])
    before = loss_of(run, batch)
    hook = run.model.backbone.register_forward_pre_hook(lambda _, x: encoded.append(len(x[0])))
    train_epochs(run)
    hook.remove()
    assert encoded == [12] * 4, "as many a pass as a step without the bank, but whole samples"
    assert sum(encoded) == run.episodes.bank.rows == 8 * 2 * 3
    assert loss_of(run, batch) < before - 0.1 and not run.episodes.bank.folder.exists()


def test_a_run_shows_pictures_of_its_episodes_and_leaves_no_bank(surfaces, tmp_path):
    changes = {"TRAIN__feature_bank": 2, "TRAIN_SETUPS__num_workers": 2}
    changes["TRAIN_SETUPS__TEST_SETUPS__test_state"] = False
    folder = run_training(tiny_config(surfaces, tmp_path, **changes), "")
    assert not (folder / "feature_bank").exists()
    assert "feature bank: 32 crops" in (folder / "train.log").read_text()
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    assert len(events.Images("train/episode")) == 2


def test_a_disk_that_is_too_small_or_a_broken_image_leaves_no_bank(surfaces, tmp_path):
    cfg = tiny_config(surfaces, tmp_path, TRAIN__feature_bank=10**9)
    with pytest.raises(ConfigError, match=r"feature_bank: 16,000,000,000 crops need [\d,]+ bytes"):
        run_training(cfg, "")
    assert not (tmp_path / "run").exists()
    shutil.copytree(surfaces, tmp_path / "data")
    (tmp_path / "data" / "Plate" / "train" / "spot_1.png").write_bytes(b"")
    run = banked(tmp_path / "data", tmp_path / "run")
    with pytest.raises(DataError, match=r"spot_1\.png"):
        train_epochs(run)
    assert not run.episodes.bank.folder.exists()
