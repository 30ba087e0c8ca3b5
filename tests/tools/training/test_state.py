"""What goes on from a training state, and with which settings."""

from __future__ import annotations

import signal

import pytest
import torch

from tests.helpers import read_index, tiny_config, trainer_of
from tools.training.checkpoints import Checkpoints
from tools.training.state import STATE, Progress
from utils.errors import WeightsError

KEPT_BEST = {
    "TRAIN_SETUPS__TEST_SETUPS__val_state": True,
    "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 1,
}
RATE, DECAY = "TRAIN_SETUPS__learning_rate", "TRAIN_SETUPS__weight_decay"


@pytest.fixture(scope="module")
def begun(surfaces, tmp_path_factory):
    """State after two of four epochs of 8 episodes in batches of 2."""
    folder = tmp_path_factory.mktemp("begun")
    trainer = trainer_of(surfaces, folder, TRAIN_SETUPS__epochs=4, TRAIN_SETUPS__batch_size=2)
    trainer.train_epoch()
    trainer.train_epoch()
    return folder / STATE


@pytest.mark.parametrize(("batch_size", "step"), [(4, 5), (3, 6), (40, 0)])
def test_other_processes_go_on_after_the_same_episodes(surfaces, caplog, batch_size, step):
    """What two processes have begun with batches of 2, one ends with other batches."""
    progress, device = Progress.of(read_index(surfaces, "Plate")), torch.device("cpu")
    progress.losses = [torch.tensor(1.0)] * 5
    own = progress.gathered(device, batch_size)["processes"]
    progress = Progress.of(read_index(surfaces, "Plate"))
    begun = {"step": 5, "batch_size": 2, "classes": progress.meter.classes, "processes": own * 2}
    progress.restore(begun, device, batch_size)
    assert progress.step == step and not progress.losses and "may come twice" in caplog.text


def test_counts_of_other_classes_are_not_taken_for_those_of_these(surfaces, caplog):
    first, device = Progress.of(read_index(surfaces, "Plate")), torch.device("cpu")
    first.step = 3
    first.meter.counts += 7
    for name, warned, count in (("Plate", False, 7), ("Disk", True, 0)):
        second = Progress.of(read_index(surfaces, name))
        second.restore(first.gathered(device, 2), device, 2)
        assert second.step == 3 and (second.meter.counts == count).all()
        assert ("may come twice" in caplog.text) == warned


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_rate_goes_on_where_the_epochs_are(surfaces, tmp_path, begun, batch_size):
    """Whatever a step takes, as with other processes: after half of the epochs it is that of half of the training."""
    changes = {
        "TRAIN__resume": str(begun),
        "TRAIN_SETUPS__epochs": 4,
        "TRAIN_SETUPS__batch_size": batch_size,
    }
    trainer = trainer_of(surfaces, tmp_path, **changes)
    assert trainer.epoch == 2 and trainer.learner.learning_rate == pytest.approx(1e-3 * 0.5**0.9)
    trainer.train_epoch()
    trainer.train_epoch()
    assert [e["learning_rate"] for e in trainer.history[2:]] == pytest.approx(
        [1e-3 * 0.25**0.9, 0], abs=1e-12
    )


def test_rates_and_decay_are_those_that_are_set_now(surfaces, tmp_path, begun, caplog):
    changes = {
        "TRAIN__resume": str(begun),
        "TRAIN_SETUPS__epochs": 4,
        "TRAIN_SETUPS__batch_size": 2,
    }
    changes |= {RATE: 4e-3, "TRAIN_SETUPS__lr_multiple": 5.0, DECAY: 0.3}
    learner = trainer_of(surfaces, tmp_path, **changes).learner
    first, second = learner.optimizer.param_groups
    assert (first["lr"], second["lr"]) == pytest.approx((4e-3 * 0.5**0.9, 2e-2 * 0.5**0.9))
    assert first["weight_decay"] == second["weight_decay"] == 0.3
    assert all(v["step"] == 8 for v in learner.optimizer.state.values()), (
        "what it has learnt goes on"
    )
    assert "learning_rate was 0.001 in the training that goes on, now it is 0.004" in caplog.text


def broken(state, kind):
    """Spoil a state."""
    moments, best = state["optimizer"]["state"][0], state["best"]
    if kind == "moments":
        moments["exp_avg"] = moments["exp_avg"].flatten()[:3]
    elif kind == "best head":
        best["head"] = {name: tensor[:1] for name, tensor in best["head"].items()}
    else:
        state |= {
            "config": {"config": "a: ["},
            "epoch": {"epoch": -3, "history": []},
            "history": {"history": []},
        }[kind]
    return state


@pytest.mark.parametrize("kind", ["moments", "best head", "config", "epoch", "history"])
def test_a_state_that_was_spoilt_is_refused_by_name(surfaces, tmp_path, kind):
    trainer = trainer_of(surfaces, tmp_path, TRAIN_SETUPS__epochs=1, **KEPT_BEST)
    trainer.run([])
    state = torch.load(tmp_path / STATE, weights_only=True)
    trainer_of(surfaces, tmp_path, TRAIN__resume=str(tmp_path / STATE), **KEPT_BEST)
    torch.save(broken(state, kind), tmp_path / "spoilt.pth")
    with pytest.raises(WeightsError, match=f"TRAIN.resume: {tmp_path}/spoilt.pth does not hold"):
        trainer_of(surfaces, tmp_path, TRAIN__resume=str(tmp_path / "spoilt.pth"), **KEPT_BEST)


def test_who_ends_a_training_is_told_what_is_kept(surfaces, tmp_path):
    files = Checkpoints(tiny_config(surfaces, tmp_path), tmp_path)
    assert files.interrupted(signal.SIGTERM).told == "nothing is saved yet"
    files.stand = "after epoch 3"
    told = f"saved after epoch 3 in {tmp_path / STATE}; TRAIN.resume auto goes on there"
    assert files.interrupted(signal.SIGINT).told == told
    files = Checkpoints(tiny_config(surfaces, tmp_path, TRAIN__save_model=False), tmp_path)
    assert "TRAIN.save_model is False" in files.interrupted(signal.SIGINT).told
