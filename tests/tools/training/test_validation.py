from __future__ import annotations

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
from tests.helpers import EARLY_BEST, SIZE, surface, tiny_config, training_of, write_product
from tools.checkpoint import BEST, HEAD, STATE
from tools.evaluator import SplitTest
from tools.evaluator import test_episodes as episodes_of
from tools.trainer import predictor_of, run_training, train_epochs
from tools.training.validation import held_out, validation_split
from utils.errors import DataError

SHARE = "TRAIN_SETUPS__TEST_SETUPS__val_share"
VALIDATED = {
    "TRAIN_SETUPS__TEST_SETUPS__val_state": True,
    "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 1,
}


def index_of(images):
    """Index of images that are given by name, each with the classes that it shows."""
    mask = rle_encode(np.eye(4, dtype=np.uint8))
    shown = [(name, c) for name, classes in images.items() for c in classes]
    samples = [Sample(name, "Rod", c, f"kind{c}", mask) for name, c in shown]
    return SampleIndex(Path("nowhere"), samples)


def drawn_index(seed):
    """60 images of one to three of five random classes, of which some are rare."""
    rng, weights = random.Random(seed), [4**-c for c in range(5)]
    counts = {f"{i:03d}.png": rng.choice((1, 1, 1, 2, 3)) for i in range(60)}
    return index_of({name: {*rng.choices(range(5), weights, k=k)} for name, k in counts.items()})


def images_by_class(index):
    return [{index.samples[i].image for i in members} for members in index.classes().values()]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
def test_every_class_keeps_two_images_to_train_on(seed, share):
    index = drawn_index(seed)
    out, classes = held_out(index, share, seed), images_by_class(index)
    assert out < {s.image for s in index.samples}
    for images in classes:
        assert len(images - out) >= min(2, len(images))
        spared = all(any(len(o - out) <= 2 for o in classes if i in o) for i in images)
        assert images & out or spared, "none but for the sake of a class that needs the image"


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 0), (2, 0.5, 0), (3, 0.1, 1), (4, 0.5, 2), (30, 0.1, 3), (10, 0.95, 8)],
)
def test_the_share_is_held_out_of_each_class(count, share, expected):
    """Beside a class of other images, which changes nothing."""
    index = index_of({f"{c}_{i}.png": [c] for c, n in enumerate((count, 40)) for i in range(n)})
    out = held_out(index, share, 7)
    counts = [len(images & out) for images in images_by_class(index)]
    assert counts == [expected, max(1, round(40 * share))]


def test_the_draw_follows_the_seed_alone():
    index = drawn_index(0)
    draws = [held_out(index, 0.2, seed) for seed in range(5)]
    assert len({frozenset(out) for out in draws}) == 5
    samples = list(index.samples)
    random.Random(1).shuffle(samples)
    assert held_out(replace(index, samples=samples), 0.2, 3) == draws[3]


def test_nothing_to_hold_out_is_an_error_that_names_the_key(tmp_path):
    write_product(tmp_path / "data", "Plate", {"spot": 2, "line": 1})
    with pytest.raises(DataError, match=r"no class has 3 images.*TEST_SETUPS\.val_state"):
        training_of(tmp_path / "data", tmp_path / "run", **VALIDATED)


@pytest.mark.parametrize(("share", "count"), [(0.1, 2), (0.5, 4)])
def test_queries_are_the_held_out_images_and_supports_the_others(surfaces, tmp_path, share, count):
    cfg = tiny_config(surfaces, tmp_path, DATASET__shot=3, **{SHARE: share}, **VALIDATED)
    index = build_train_index(cfg)
    out = held_out(index, share, cfg.RNG_SEED)
    rest, test = validation_split(cfg, index, tmp_path)
    assert len(out) == count
    assert {s.image for s in rest.samples} == {s.image for s in index.samples} - out
    episodes = episodes_of(index, test.protocol)
    drawn = [episodes.episode(i) for i in range(len(episodes))]
    assert sorted(e.query.image for e in drawn) == sorted(out)
    assert {s.image for e in drawn for s in e.candidates} == {s.image for s in rest.samples}


def test_what_is_held_out_is_never_trained_on_and_test_objects_are_never_read(surfaces, tmp_path):
    """Other pixels in the held-out images change the validation and no weight."""
    root = tmp_path / "data"
    shutil.copytree(surfaces, root)
    shutil.rmtree(root / "Disk")
    out = held_out(build_train_index(tiny_config(root, tmp_path)), 0.1, 54)
    changes = VALIDATED | EARLY_BEST | {"TRAIN_SETUPS__TEST_SETUPS__test_state": False}
    first = run_training(tiny_config(root, tmp_path / "first", **changes), "")
    rows = list(csv.DictReader((first / "queries_validation.csv").open()))
    assert {row["image"] for row in rows} == out and len(rows) == 2 * len(out), "one per method"
    for image in out:
        Image.fromarray(255 - np.array(Image.open(root / image))).save(root / image)
    second = run_training(tiny_config(root, tmp_path / "second", **changes), "")
    one, other = (json.loads((f / "history.json").read_text()) for f in (first, second))
    assert [e["loss"] for e in one] == [e["loss"] for e in other]
    assert one[0]["validation"] != other[0]["validation"]
    assert equal_heads(load_file(first / HEAD), load_file(second / HEAD))


def equal_heads(first, second):
    first, second = ({n.removeprefix("head."): v for n, v in h.items()} for h in (first, second))
    return first.keys() == second.keys() and all(
        torch.equal(v, second[n]) for n, v in first.items()
    )


@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_the_head_that_validates_best_is_kept_and_tested(surfaces, tmp_path, rate):
    changes = EARLY_BEST | VALIDATED | {"TRAIN_SETUPS__learning_rate": rate}
    run, heads = training_of(surfaces, tmp_path, TRAIN_SETUPS__epochs=4, **changes), []
    test = SplitTest(run.cfg, build_test_index(run.cfg), tmp_path, "original")
    end = run.end_epoch

    def remember(figures):
        heads.append({n: v.clone() for n, v in run.model.head.state_dict().items()})
        end(figures)

    run.end_epoch = remember
    train_epochs(run, [test])
    mious = [entry["validation"]["SOFS"] for entry in run.history]
    best = int(np.argmax(mious))
    assert len(set(mious)) > 1
    assert equal_heads(load_file(tmp_path / BEST), heads[best])
    assert equal_heads(load_file(tmp_path / HEAD), heads[-1])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["epochs"] == best + 1
    run.model.head.load_state_dict(heads[best])
    report = test.run(predictor_of(run)).report()
    assert metrics["methods"] == json.loads(json.dumps(report))["methods"]


def test_a_resumed_training_keeps_its_history_and_its_best_head(surfaces, tmp_path):
    """Also in another folder, and though no later epoch comes near."""
    first = training_of(surfaces, tmp_path / "first", **EARLY_BEST | VALIDATED)
    train_epochs(first)
    file = tmp_path / "first" / STATE
    state = torch.load(file, weights_only=True)
    state["best"]["miou"] = 1.1
    torch.save(state, file)
    changes = EARLY_BEST | VALIDATED | {"TRAIN_SETUPS__epochs": 4, "TRAIN__resume": str(file)}
    second = training_of(surfaces, tmp_path / "second", **changes)
    assert not second.goes_on and second.reads == [str(file)]
    test = SplitTest(second.cfg, build_test_index(second.cfg), tmp_path / "second", "original")
    train_epochs(second, [test])
    history = json.loads((tmp_path / "second" / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4] and history[:2] == first.history
    assert equal_heads(load_file(tmp_path / "second" / BEST), state["best"]["head"])
    metrics = json.loads((tmp_path / "second" / "metrics.json").read_text())
    assert metrics["epochs"] == state["best"]["epoch"]


def test_a_validation_that_was_cut_off_is_done_first(surfaces, tmp_path):
    changes = EARLY_BEST | VALIDATED
    straight = training_of(surfaces, tmp_path / "straight", **changes)
    train_epochs(straight)
    run = training_of(surfaces, tmp_path / "cut", **changes)
    run.validation = None
    train_epochs(run)
    state = str(tmp_path / "cut" / STATE)
    resumed = training_of(surfaces, tmp_path / "cut", TRAIN__resume=state, **changes)
    train_epochs(resumed)
    assert resumed.history[-1] == straight.history[-1] and "validation" not in resumed.history[0]


def test_without_validation_nothing_is_held_out(surfaces, tmp_path):
    """Whatever the share says; the test is that of the last head."""
    options = {SHARE: 0.5, "TRAIN_SETUPS__TEST_SETUPS__epoch_test": 1}
    run = training_of(surfaces, tmp_path, **options)
    assert len(run.episodes) == 8
    assert len(training_of(surfaces, tmp_path, **options | VALIDATED).episodes) == 4
    train_epochs(run)
    assert all("validation" not in entry for entry in run.history)
    assert not list(tmp_path.rglob("*validation*")) and not (tmp_path / BEST).exists()


def test_no_epoch_at_all_tests_the_head_as_it_is(surfaces, tmp_path):
    cfg = tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=0, **VALIDATED)
    folder = run_training(cfg, "")
    assert json.loads((folder / "metrics.json").read_text())["epochs"] == 0
    assert not (folder / "checkpoints").exists() and not list(folder.glob("*validation*"))


def test_normal_images_of_the_test_objects_leave_validation_alone(surfaces, tmp_path):
    shutil.copytree(surfaces, tmp_path / "data")
    (tmp_path / "data" / "clean").mkdir()
    clean = surface(SIZE, np.random.default_rng(1))
    Image.fromarray(clean).save(tmp_path / "data" / "clean" / "a.png")
    normal = {"DATASET__normal_shot": 1, "DATASET__normal_folder": "clean"}
    with_normal, without = (
        run_training(
            tiny_config(
                tmp_path / "data", tmp_path / name, TRAIN_SETUPS__epochs=1, **VALIDATED, **o
            ),
            "",
        )
        for name, o in (("with", normal), ("without", {}))
    )

    def methods(folder, file):
        return json.loads((folder / file).read_text())["methods"]

    validation = "metrics_validation.json"
    assert methods(with_normal, validation) == methods(without, validation)
    assert methods(with_normal, "metrics.json") != methods(without, "metrics.json")
