from __future__ import annotations

import copy
import csv
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datasets.build import build_test_index, build_train_index
from datasets.rle import rle_encode
from datasets.samples import Sample, SampleIndex
from tests.helpers import EARLY_BEST, SIZE, surface, tiny_config, trainer_of, write_product
from tools.evaluator import test_episodes as episodes_of
from tools.methods import with_baseline
from tools.predictor import Predictor
from tools.tester import SplitTest
from tools.trainer import Trainer, run_training
from tools.training.validation import Validation, held_out
from utils.errors import DataError
from utils.run_folder import create_run_folder

VALIDATED = {
    "TRAIN_SETUPS__TEST_SETUPS__val_state": True,
    "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 1,
}
SHARE = "TRAIN_SETUPS__TEST_SETUPS__val_share"


def index_of(images):
    """Index of images that are given by name, each with the classes that it shows."""
    mask = rle_encode(np.eye(4, dtype=np.uint8))
    samples = [
        Sample(name, "Rod", c, f"kind{c}", mask)
        for name, classes in images.items()
        for c in classes
    ]
    return SampleIndex(Path("nowhere"), samples)


def drawn_index(seed, images=60, classes=5):
    """Images of one to three random classes, of which some are rare."""
    rng = random.Random(seed)
    kinds = range(classes)
    weights = [4**-c for c in kinds]
    shown = {
        f"{i:03d}.png": {*rng.choices(kinds, weights, k=rng.choice((1, 1, 1, 2, 3)))}
        for i in range(images)
    }
    return index_of(shown)


def images_by_class(index):
    return {
        key: {index.samples[i].image for i in members} for key, members in index.classes().items()
    }


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
def test_every_class_keeps_two_images_to_train_on(seed, share):
    index = drawn_index(seed)
    out = held_out(index, share, seed)
    assert out < {s.image for s in index.samples}
    classes = images_by_class(index).values()
    for images in classes:
        assert len(images - out) >= min(2, len(images))
        spared = all(
            any(len(other - out) <= 2 for other in classes if image in other) for image in images
        )
        assert images & out or spared, "none but for the sake of a class that needs the image"


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [
        (1, 0.5, 0),
        (2, 0.5, 0),
        (3, 0.1, 1),
        (4, 0.5, 2),
        (10, 0.1, 1),
        (30, 0.1, 3),
        (30, 0.5, 15),
        (10, 0.95, 8),
    ],
)
def test_the_share_is_held_out_of_each_class(count, share, expected):
    """Beside a class of other images, which changes nothing."""
    index = index_of({f"{c}_{i}.png": [c] for c, n in enumerate((count, 40)) for i in range(n)})
    out = held_out(index, share, 7)
    counts = [len(images & out) for images in images_by_class(index).values()]
    assert counts == [expected, max(1, round(40 * share))]


def test_the_draw_follows_the_seed_alone():
    index = drawn_index(0)
    draws = [held_out(index, 0.2, seed) for seed in range(5)]
    assert len({frozenset(out) for out in draws}) == 5
    for seed, out in enumerate(draws):
        samples = list(index.samples)
        random.Random(seed).shuffle(samples)
        assert (
            held_out(replace(index, samples=samples), 0.2, seed)
            == out
            == held_out(index, 0.2, seed)
        )


def test_an_image_is_held_out_for_all_its_classes(surfaces, tmp_path):
    index = index_of({f"{i}.png": [0, 1] if i % 2 else [i % 3] for i in range(40)})
    validation = Validation(
        tiny_config(surfaces, tmp_path, **{SHARE: 0.2}, **VALIDATED), index, tmp_path
    )
    queries = validation.test.protocol.query_images
    assert {s.image for s in index.samples} - queries == {s.image for s in validation.rest.samples}
    assert {len([s for s in index.samples if s.image == image]) for image in queries} == {1, 2}
    episodes = episodes_of(index, validation.test.protocol)
    assert len(episodes) == len(index) - len(validation.rest), (
        "each of an image's classes is asked for"
    )


def test_nothing_to_hold_out_is_an_error_that_names_the_key(tmp_path):
    write_product(tmp_path / "data", "Plate", {"spot": 2, "line": 1})
    cfg = tiny_config(tmp_path / "data", tmp_path / "log", **VALIDATED)
    with pytest.raises(
        DataError, match=r"no class has 3 images.*TRAIN_SETUPS\.TEST_SETUPS\.val_state"
    ):
        Trainer(cfg, build_train_index(cfg), tmp_path / "run")


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_queries_are_the_held_out_images_and_supports_the_others(surfaces, tmp_path, share):
    cfg = tiny_config(surfaces, tmp_path, DATASET__shot=3, **{SHARE: share}, **VALIDATED)
    index = build_train_index(cfg)
    out = held_out(index, share, cfg.RNG_SEED)
    assert len(out) == {0.1: 2, 0.5: 4}[share]
    validation = Validation(cfg, index, tmp_path)
    assert {s.image for s in validation.rest.samples} == {s.image for s in index.samples} - out
    episodes = episodes_of(index, validation.test.protocol)
    drawn = [episodes.with_seed(seed).episode(i) for seed in range(3) for i in range(len(episodes))]
    assert sorted(e.query.image for e in drawn) == sorted([*out] * 3)
    supports = {s.image for e in drawn for s in e.candidates}
    assert supports == {s.image for s in validation.rest.samples}
    assert all(s.class_key == e.query.class_key for e in drawn for s in e.candidates)


def trained(root, folder, **changes):
    options = {"TRAIN_SETUPS__TEST_SETUPS__test_state": False} | VALIDATED | EARLY_BEST
    return run_training(tiny_config(root, folder, **options | changes), "")


def test_what_is_held_out_is_never_trained_on_and_test_objects_are_never_read(surfaces, tmp_path):
    """Other pixels in the held-out images change the validation and no weight; without the test objects all is the
    same."""
    shutil.copytree(surfaces, tmp_path / "data")
    cfg = tiny_config(tmp_path / "data", tmp_path)
    out = held_out(build_train_index(cfg), 0.1, cfg.RNG_SEED)
    first = trained(tmp_path / "data", tmp_path / "first", DATASET__test_objects=["Disk"])
    rows = list(csv.DictReader((first / "queries_validation.csv").open()))
    assert {row["image"] for row in rows} == out and {
        row["class"].split("/")[0] for row in rows
    } == {"Plate"}
    assert len(rows) == 2 * len(out), "a row per method"
    shutil.rmtree(tmp_path / "data" / "Disk")
    without = trained(tmp_path / "data", tmp_path / "without")
    for image in out:
        path = tmp_path / "data" / image
        Image.fromarray(255 - np.array(Image.open(path))).save(path)
    changed = trained(tmp_path / "data", tmp_path / "changed")
    history = [json.loads((f / "history.json").read_text()) for f in (first, without, changed)]
    heads = [head_in(f / "checkpoints" / "head.safetensors") for f in (first, without, changed)]
    assert history[0] == history[1] and history[0][0]["validation"] != history[2][0]["validation"]
    assert [e["loss"] for e in history[0]] == [e["loss"] for e in history[2]]
    assert equal_heads(heads[0], heads[1]) and equal_heads(heads[0], heads[2])


class Remembering(Trainer):
    """A training that keeps the head of every epoch."""

    def train_epoch(self):
        super().train_epoch()
        self.heads = [*getattr(self, "heads", []), copy.deepcopy(self.model.head.state_dict())]


def equal_heads(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def head_in(file):
    return {name.removeprefix("head."): value for name, value in load_file(file).items()}


@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_the_head_that_validates_best_is_kept_and_tested(surfaces, tmp_path, rate):
    changes = (
        EARLY_BEST | VALIDATED | {"TRAIN_SETUPS__learning_rate": rate, "TRAIN_SETUPS__epochs": 4}
    )
    cfg = tiny_config(surfaces, tmp_path, **changes)
    trainer = Remembering(cfg, build_train_index(cfg), tmp_path)
    test = SplitTest(cfg, build_test_index(cfg), tmp_path, "original")
    trainer.run([test])
    mious = [entry["validation"]["SOFS"] for entry in trainer.history]
    best = int(np.argmax(mious))
    assert len(set(mious)) > 1
    assert equal_heads(head_in(tmp_path / "checkpoints" / "best.safetensors"), trainer.heads[best])
    assert equal_heads(head_in(tmp_path / "checkpoints" / "head.safetensors"), trainer.heads[-1])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["epochs"] == best + 1
    trainer.model.head.load_state_dict(trainer.heads[best])
    predictor = Predictor.from_config(cfg, with_baseline(cfg, trainer.model), torch.device("cpu"))
    assert metrics["methods"] == json.loads(json.dumps(test.run(predictor).report()))["methods"]


def test_a_resumed_training_keeps_its_history_and_its_best_head(surfaces, tmp_path):
    """Also in another folder, and though no later epoch comes near."""
    changes = EARLY_BEST | VALIDATED
    cfg = tiny_config(surfaces, tmp_path, **changes)
    create_run_folder(tmp_path / "first", cfg)
    first = Trainer(cfg, build_train_index(cfg), tmp_path / "first")
    first.run([])
    file = tmp_path / "first" / "checkpoints" / "state.pth"
    state = torch.load(file, weights_only=True)
    assert (
        state["best"]["epoch"] == 1
        and state["best"]["miou"] == first.history[0]["validation"]["SOFS"]
    )
    state["best"]["miou"] = 1.1
    torch.save(state, file)
    cfg = tiny_config(
        surfaces, tmp_path, TRAIN__resume=str(file), TRAIN_SETUPS__epochs=4, **changes
    )
    create_run_folder(tmp_path / "second", cfg)
    second = Trainer(cfg, build_train_index(cfg), tmp_path / "second")
    second.run([SplitTest(cfg, build_test_index(cfg), tmp_path / "second", "original")])
    history = json.loads((tmp_path / "second" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4] and history[:2] == first.history
    kept = [
        head_in(tmp_path / name / "checkpoints" / "best.safetensors")
        for name in ("first", "second")
    ]
    assert equal_heads(kept[0], kept[1]) and equal_heads(kept[0], state["best"]["head"])
    assert json.loads((tmp_path / "second" / "metrics.json").read_text())["epochs"] == 1


def test_without_validation_nothing_is_held_out(surfaces, tmp_path):
    """Whatever the share says; the test is that of the last head."""
    options = {
        "TRAIN_SETUPS__TEST_SETUPS__val_share": 0.5,
        "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 1,
    }
    cfg = tiny_config(surfaces, tmp_path, **options)
    trainer = Trainer(cfg, build_train_index(cfg), tmp_path)
    assert trainer.index.samples == build_train_index(cfg).samples and len(trainer.episodes) == 8
    assert len(trainer_of(surfaces, tmp_path, **options | VALIDATED).episodes) == 4
    trainer.run([SplitTest(cfg, build_test_index(cfg), tmp_path, "original")])
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"] == 2
    assert all("validation" not in entry for entry in trainer.history)
    assert not list(tmp_path.rglob("*validation*")) and not list(tmp_path.rglob("best.safetensors"))


def test_no_epoch_at_all_tests_the_head_as_it_is(surfaces, tmp_path):
    cfg = tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=0, **VALIDATED)
    folder = run_training(cfg, "")
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 0
    assert (
        not (folder / "checkpoints").exists() and not (folder / "metrics_validation.json").exists()
    )


def test_the_history_is_kept_without_the_weights(surfaces, tmp_path):
    folder = run_training(tiny_config(surfaces, tmp_path, TRAIN__save_model=False, **VALIDATED), "")
    assert len(json.loads((folder / "history.json").read_text())) == 2
    assert not (folder / "checkpoints").exists()


def test_normal_images_of_the_test_objects_leave_validation_alone(tmp_path):
    """The training objects have none, and need none."""
    for name in ("Plate", "Disk"):
        write_product(tmp_path / "data", name)
    (tmp_path / "data" / "clean").mkdir()
    Image.fromarray(surface(SIZE, np.random.default_rng(1))).save(
        tmp_path / "data" / "clean" / "a.png"
    )
    options = {"DATASET__normal_shot": 1, "DATASET__normal_folder": "clean"}
    cfg = tiny_config(tmp_path / "data", tmp_path, TRAIN_SETUPS__epochs=1, **VALIDATED, **options)
    plain = tiny_config(
        tmp_path / "data", tmp_path, TRAIN_SETUPS__epochs=1, RUN_NAME="plain", **VALIDATED
    )
    with_normal, without = (run_training(c, "") for c in (cfg, plain))

    def methods(folder, file):
        return json.loads((folder / file).read_text())["methods"]

    assert methods(with_normal, "metrics_validation.json") == methods(
        without, "metrics_validation.json"
    )
    assert (
        methods(with_normal, "metrics.json")["prior"] != methods(without, "metrics.json")["prior"]
    )
