"""Killed, or ended by a signal: what is trained is kept, and the same command ends where it would
have."""

from __future__ import annotations

import random
import signal

import pytest
import torch

from tests.helpers import EARLY_BEST, signalled, tiny_config, training_of
from tests.killing import Training, equal, kill_somewhere, kill_while_it_saves
from tools.checkpoint import STATE, epochs_done
from tools.trainer import train_epochs
from utils.distributed import launch
from utils.errors import ConfigError, WeightsError
from utils.signals import Interrupted

CHANGES = EARLY_BEST | {
    "TRAIN_SETUPS__epochs": 10,
    "TRAIN_SETUPS__batch_size": 2,
    "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 5,
    "TRAIN_SETUPS__TEST_SETUPS__train_miou": 2,
    "TRAIN_SETUPS__TEST_SETUPS__val_state": True,
    "TRAIN_SETUPS__TEST_SETUPS__test_state": False,
}
FOUR = {"TRAIN_SETUPS__epochs": 4, "TRAIN_SETUPS__batch_size": 2}


def kept(folder):
    state = torch.load(folder / STATE, weights_only=True)
    return {key: value for key, value in state.items() if key not in ("within", "config")}


def same_end(training, straight):
    same_history = training.history() == straight.history()
    return same_history and equal(kept(training.run), kept(straight.run))


def test_killed_at_any_moment_the_same_command_ends_in_the_same_weights(surfaces, tmp_path):
    """Somewhere, then while the state is being written, of which a rest is left."""
    straight, training = (Training(surfaces, tmp_path / name, **CHANGES) for name in "ab")
    kill_somewhere(training, random.Random(17))
    kill_while_it_saves(training)
    assert training.state()["epoch"] < 10
    assert training.finish() == straight.finish() == 0
    assert same_end(training, straight) and not training.partial()
    assert (training.run / "train.log").read_text().count("going on after epoch") == 2


@pytest.mark.parametrize(("processes", "bank"), [(1, 2), (2, 0)])
def test_stopped_within_an_epoch_it_goes_on_with_the_same_step(surfaces, tmp_path, processes, bank):
    """Dropout and sums of the epoch, too, are those of a training that nothing cuts off."""
    changes = {"TRAIN_SETUPS__batch_size": 1, "TRAIN__feature_bank": bank, "TRAIN__resume": "auto"}
    cfg = tiny_config(surfaces, tmp_path, TRAIN_SETUPS__TEST_SETUPS__train_miou=1, **changes)
    folders, steps = (tmp_path / "cut", tmp_path / "straight"), 8 // processes
    with pytest.raises(Interrupted) as error:
        launch(signalled, processes, "gloo", cfg, folders[0], signal.SIGTERM, steps + 1)
    where = f"after epoch 1 and 2 steps of the next in {folders[0] / STATE}"
    assert error.value.saved == f"saved {where}; TRAIN.resume auto goes on there"
    within = torch.load(folders[0] / STATE, weights_only=True)["within"]
    assert len(within["processes"]) == processes and within["step"] == 2
    for folder in folders:
        launch(signalled, processes, "gloo", cfg, folder, signal.SIGTERM, -1)
    assert equal(kept(folders[0]), kept(folders[1])) and epochs_done(folders[0] / STATE) == 2


def test_the_state_is_written_every_so_many_steps(surfaces, tmp_path, monkeypatch):
    monkeypatch.setattr("tools.trainer.SAVE_EVERY", 3)
    run = training_of(surfaces, tmp_path, TRAIN_SETUPS__epochs=1, TRAIN_SETUPS__batch_size=1)
    assert run.interrupted(signal.SIGTERM).saved == "nothing is saved"
    seen = []

    def note(module, args):
        if (tmp_path / STATE).is_file():
            seen.append(torch.load(tmp_path / STATE, weights_only=True)["within"]["step"])

    run.loss.register_forward_pre_hook(note)
    train_epochs(run)
    assert seen == [3, 3, 3, 6, 6]


@pytest.fixture(scope="module")
def begun(surfaces, tmp_path_factory):
    """State after three steps of the third of four epochs, of 8 episodes in batches of 2."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(Interrupted):
        signalled(tiny_config(surfaces, folder, **FOUR), folder, signal.SIGTERM, 2 * 4 + 2)
    return folder / STATE


@pytest.mark.parametrize(("batch_size", "step"), [(1, 6), (3, 2), (40, 0)])
def test_other_batches_go_on_after_as_many_episodes(
    surfaces, tmp_path, begun, batch_size, step, caplog
):
    """And at the learning rate of there."""
    changes = FOUR | {"TRAIN__resume": str(begun), "TRAIN_SETUPS__batch_size": batch_size}
    run = training_of(surfaces, tmp_path, **changes)
    assert (run.epoch, run.step, run.losses) == (2, step, []) and "may come twice" in caplog.text
    left = 1 - (2 + step / run.batches.per_epoch) / 4
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * left**0.9)
    train_epochs(run)
    assert [entry["epoch"] for entry in run.history] == [1, 2, 3, 4]
    assert run.history[-1]["learning_rate"] == 0


def test_rates_and_decay_are_those_that_are_set_now(surfaces, tmp_path, begun, caplog):
    changes = FOUR | {"TRAIN_SETUPS__learning_rate": 4e-3, "TRAIN_SETUPS__lr_multiple": 5.0}
    changes |= {"TRAIN_SETUPS__weight_decay": 0.3, "TRAIN__resume": str(begun)}
    run = training_of(surfaces, tmp_path, **changes)
    first, second = run.optimizer.param_groups
    factor = (1 - 11 / 16) ** 0.9
    assert (first["lr"], second["lr"]) == pytest.approx((4e-3 * factor, 2e-2 * factor))
    assert first["weight_decay"] == second["weight_decay"] == 0.3
    assert all(v["step"] == 11 for v in run.optimizer.state.values()), "the moments go on"
    assert "learning_rate was 0.001 in the training that goes on, now it is 0.004" in caplog.text


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"RNG_SEED": 3}, ConfigError, "RNG_SEED 54, now it is 3, and other images"),
        ({"TRAIN__SOFS__reduce_dim": 8}, WeightsError, r"state\.pth does not fit.*shape"),
    ],
)
def test_other_images_to_hold_out_or_another_head_are_refused(
    surfaces, tmp_path, begun, change, error, words
):
    with pytest.raises(error, match=rf"TRAIN\.resume: .*{words}"):
        training_of(surfaces, tmp_path, TRAIN__resume=str(begun), **change)


@pytest.mark.parametrize("part", ["optimizer", "within", "config"])
def test_a_state_with_spoilt_content_is_refused_by_name(surfaces, tmp_path, part):
    run = training_of(surfaces, tmp_path / "a")
    run.save()
    state = torch.load(run.folder / STATE, weights_only=True)
    torch.save(state | {part: {"step": "spoilt"}}, tmp_path / "spoilt.pth")
    with pytest.raises(WeightsError, match=r"TRAIN\.resume: .*spoilt\.pth does not hold"):
        training_of(surfaces, tmp_path / "b", TRAIN__resume=str(tmp_path / "spoilt.pth"))
