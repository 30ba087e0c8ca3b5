from __future__ import annotations

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from torch.utils.data import default_collate

from tests.helpers import loss_of, tiny_config, training_of
from tools.trainer import run_training, train_epochs
from tools.training.feature_bank import filled
from utils.errors import ConfigError


def bank_of(run):
    return filled(run.cfg, run.episodes, run.model.backbone, run.device)


@pytest.mark.parametrize(
    "changes",
    [
        {"DATASET__shot": 2, "DATASET__normal_views": 1, "TRAIN__SOFS__prior_residual": True},
        {"TRAIN__SOFS__meta_cls": False, "TRAIN__LOSS__resolution": "pixel"},
    ],
)
def test_the_loss_from_the_bank_is_that_of_the_same_crops_encoded_now(surfaces, tmp_path, changes):
    """And the bank is the same for any number of workers."""
    contents = []
    for workers in (2, 0):
        banked = {"TRAIN__feature_bank": 2, "TRAIN_SETUPS__num_workers": workers}
        run = training_of(surfaces, tmp_path, **changes | banked)
        with bank_of(run):
            files = run.episodes.bank.folder.iterdir()
            contents.append({path.name: path.read_bytes() for path in files})
            kept = default_collate([run.episodes[n] for n in range(8)])
            now = default_collate([run.episodes.images(n) for n in range(8)])
            for stored, fresh in zip(run.loss.features(kept), run.loss.features(now), strict=True):
                assert_close(stored, fresh, rtol=2**-8, atol=1e-4)
            assert loss_of(run, kept) == pytest.approx(loss_of(run, now), abs=5e-3)
    assert contents[0] == contents[1] and any(contents[0]["features.bf16"])


def test_each_crop_is_encoded_once_and_training_lowers_the_loss(surfaces, tmp_path):
    changes = {"TRAIN__feature_bank": 3, "TRAIN_SETUPS__epochs": 8, "TRAIN__save_model": False}
    run, encoded = training_of(surfaces, tmp_path, **changes), []
    batch = default_collate([run.episodes.images(n) for n in range(8)])
    before = loss_of(run, batch)
    hook = run.model.backbone.register_forward_pre_hook(lambda _, x: encoded.append(len(x[0])))
    train_epochs(run)
    hook.remove()
    assert encoded == [12] * 4, "as many a pass as a step without the bank, but whole samples"
    assert sum(encoded) == run.episodes.bank.rows == 8 * 2 * 3
    assert loss_of(run, batch) < before - 0.1 and not run.episodes.bank.folder.exists()


def test_a_run_shows_pictures_of_its_episodes_and_a_disk_may_be_too_small(surfaces, tmp_path):
    changes = {"TRAIN__feature_bank": 2, "TRAIN_SETUPS__TEST_SETUPS__test_state": False}
    folder = run_training(tiny_config(surfaces, tmp_path, RUN_NAME="small", **changes), "")
    assert "feature bank: 32 crops" in (folder / "train.log").read_text()
    events = EventAccumulator(str(folder / "events"))
    events.Reload()
    assert len(events.Images("train/episode")) == 2
    cfg = tiny_config(surfaces, tmp_path, TRAIN__feature_bank=10**9)
    with pytest.raises(ConfigError, match=r"feature_bank: 16,000,000,000 crops need [\d,]+ bytes"):
        run_training(cfg, "")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
