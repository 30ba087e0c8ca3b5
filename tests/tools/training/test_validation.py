from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from datasets.build import build_test_index, build_train_index
from datasets.rle import rle_encode
from datasets.samples import Sample, SampleIndex
from tests.helpers import EARLY_BEST, tiny_config, training_of, write_product
from tools.checkpoint import BEST, HEAD, STATE
from tools.evaluator import SplitTest
from tools.trainer import run_training, train_epochs
from tools.training.validation import held_out, validation_split
from utils.errors import DataError

SETUPS = "TRAIN_SETUPS__TEST_SETUPS__"
VALIDATED = {f"{SETUPS}val_state": True, f"{SETUPS}epoch_test": 1}


def index_of(images):
    """Index of images that are given by name, each with the classes that it shows."""
    mask = rle_encode(np.eye(4, dtype=np.uint8))
    shown = [(name, c) for name, classes in images.items() for c in classes]
    samples = [Sample(name, "Rod", c, f"kind{c}", mask) for name, c in shown]
    return SampleIndex(Path("nowhere"), samples)


def images_by_class(index):
    return [{index.samples[i].image for i in members} for members in index.classes().values()]


def read_json(folder, name):
    return json.loads((folder / name).read_text())


SHOWN = st.lists(st.sets(st.integers(0, 4), min_size=1, max_size=3), min_size=1, max_size=60)


@given(SHOWN, st.floats(0.01, 0.95), st.integers(0, 99), st.randoms(use_true_random=False))
def test_every_class_keeps_two_images_to_train_on(shown, share, seed, shuffler):
    index = index_of({f"{i:03}.png": classes for i, classes in enumerate(shown)})
    out, classes = held_out(index, share, seed), images_by_class(index)
    for images in classes:
        assert len(images - out) >= min(2, len(images))
        spared = all(any(len(o - out) <= 2 for o in classes if i in o) for i in images)
        assert images & out or spared, "none but for the sake of a class that needs the image"
    samples = list(index.samples)
    shuffler.shuffle(samples)
    assert held_out(replace(index, samples=samples), share, seed) == out


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(2, 0.5, 0), (3, 0.1, 1), (30, 0.1, 3), (10, 0.95, 8)]
)
def test_the_share_is_held_out_of_each_class(count, share, expected):
    """Beside a class of other images, which changes nothing; which ones, the seed decides."""
    index = index_of({f"{c}_{i}.png": [c] for c, n in enumerate((count, 40)) for i in range(n)})
    draws = [held_out(index, share, seed) for seed in range(5)]
    counts = [[len(images & out) for images in images_by_class(index)] for out in draws]
    assert counts == [[expected, max(1, round(40 * share))]] * 5
    assert len(set(map(frozenset, draws))) > 1


def test_nothing_to_hold_out_is_an_error_that_names_the_key(tmp_path):
    write_product(tmp_path / "data", "Plate", {"spot": 2, "line": 1})
    with pytest.raises(DataError, match=r"no class has 3 images.*TEST_SETUPS\.val_state"):
        training_of(tmp_path / "data", tmp_path / "run", **VALIDATED)


def test_queries_are_the_held_out_images_and_supports_the_others(surfaces, tmp_path):
    changes = VALIDATED | {f"{SETUPS}val_share": 0.5, "DATASET__shot": 3}
    cfg = tiny_config(surfaces, tmp_path, **changes)
    index = build_train_index(cfg)
    out = held_out(index, 0.5, cfg.RNG_SEED)
    rest, test = validation_split(cfg, index, tmp_path)
    assert len(out) == 4
    assert {s.image for s in rest.samples} == {s.image for s in index.samples} - out
    drawn = [test.episodes.episode(i) for i in range(len(test.episodes))]
    assert sorted(e.query.image for e in drawn) == sorted(out)
    assert {s.image for e in drawn for s in e.candidates} == {s.image for s in rest.samples}


def test_what_is_held_out_is_never_trained_on_and_test_objects_are_never_read(surfaces, tmp_path):
    """Other pixels in the held-out images change the validation and no weight."""
    root = tmp_path / "data"
    shutil.copytree(surfaces, root)
    shutil.rmtree(root / "Disk")
    out = held_out(build_train_index(tiny_config(root, tmp_path)), 0.1, 54)
    changes = VALIDATED | EARLY_BEST | {f"{SETUPS}test_state": False}
    first = run_training(tiny_config(root, tmp_path / "first", **changes), "")
    rows = list(csv.DictReader((first / "queries_validation.csv").open()))
    assert {row["image"] for row in rows} == out and len(rows) == 2 * len(out), "one per method"
    for image in out:
        Image.fromarray(255 - np.array(Image.open(root / image))).save(root / image)
    second = run_training(tiny_config(root, tmp_path / "second", **changes), "")
    one, other = (read_json(f, "history.json") for f in (first, second))
    assert [e["loss"] for e in one] == [e["loss"] for e in other]
    assert one[0]["validation"] != other[0]["validation"]
    weights = [load_file(folder / HEAD) for folder in (first, second)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_resumed_training_keeps_its_history_and_its_best_head(surfaces, tmp_path):
    """Also in another folder, and though no later epoch comes near."""
    first = training_of(surfaces, tmp_path / "first", **EARLY_BEST | VALIDATED)
    train_epochs(first)
    file, folder = tmp_path / "first" / STATE, tmp_path / "second"
    state = torch.load(file, weights_only=True)
    state["best"]["miou"] = 1.1
    torch.save(state, file)
    changes = EARLY_BEST | VALIDATED | {"TRAIN_SETUPS__epochs": 4, "TRAIN__resume": str(file)}
    second = training_of(surfaces, folder, **changes)
    assert not second.goes_on and second.reads == [str(file)]
    train_epochs(second, [SplitTest(second.cfg, build_test_index(second.cfg), folder, "original")])
    history = read_json(folder, "history.json")
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4] and history[:2] == first.history
    kept = load_file(folder / BEST)
    assert all(torch.equal(v, kept[f"head.{n}"]) for n, v in state["best"]["head"].items())
    assert read_json(folder, "metrics.json")["epochs"] == state["best"]["epoch"]


def test_a_validation_that_was_cut_off_is_done_first(surfaces, tmp_path):
    changes = EARLY_BEST | VALIDATED | {"TRAIN_SETUPS__epochs": 1}
    straight = training_of(surfaces, tmp_path / "straight", **changes)
    train_epochs(straight)
    run = training_of(surfaces, tmp_path / "cut", **changes)
    run.validation = None
    train_epochs(run)
    resumed = training_of(surfaces, tmp_path / "cut", TRAIN__resume=str(tmp_path / "cut" / STATE),
                          **changes)  # fmt: skip
    train_epochs(resumed)
    assert "validation" not in run.history[0] and resumed.history == straight.history


def test_no_epoch_at_all_tests_the_head_as_it_is(surfaces, tmp_path):
    folder = run_training(tiny_config(surfaces, tmp_path, TRAIN_SETUPS__epochs=0, **VALIDATED), "")
    assert read_json(folder, "metrics.json")["epochs"] == 0
    assert not (folder / "checkpoints").exists() and not list(folder.glob("*validation*"))
