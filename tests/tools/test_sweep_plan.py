from __future__ import annotations

import shlex

import pytest

from datasets.demo.products import OPEN_DOMAIN_OBJECTS, PRODUCTS
from method_config import load_config
from tools.sweep import build_parser, build_sweep, main, protocol_names
from utils.errors import ConfigError, WeightsError

RATIO, SMOOTH = (0.01, 0.005, 0.01), (1, 1, 1e5)  # of the published splits


def plan(*words):
    """The runs of a command line, by name."""
    runs = build_sweep(build_parser().parse_args([*map(str, words)])).runs()
    return {run.cfg.RUN_NAME: run for run in runs}


@pytest.mark.parametrize("name", protocol_names())
def test_the_runs_of_every_protocol_load_and_are_commands_of_the_same_config(name, capsys):
    words = [name, "--seeds", "3", "4", "--name", "my own", "--opts", "OUTPUT_DIR", "some where"]
    runs = plan(*words).values()
    assert {run.folder.parent.as_posix() for run in runs} == {"some where/my own"}
    tests = [run for run in runs if not run.trains]
    repeats = {run.cfg.DATASET.few_shot_repeated_multiple for run in tests}
    assert repeats == {3 if name == "defects" else 5}
    shots = {1, 2, 4} if name in ("mvtec", "visa") else {1, 5}
    assert {run.cfg.DATASET.shot for run in tests} == shots
    assert main([*words, "--list"]) == 0
    for line, run in zip(capsys.readouterr().out.splitlines(), runs, strict=True):
        script, _, file, opts, *pairs = shlex.split(line)
        assert (script, opts) == ("train.py" if run.trains else "test.py", "--opts")
        assert load_config(file, pairs) == run.cfg


@pytest.mark.parametrize("name", ["vision_v1", "vision_to_ds"])
def test_the_published_settings_of_each_split_arrive_in_its_runs(name):
    """The cross-domain test has those of Defect Spectrum."""
    runs = plan(name, "--seeds", 54, 60)
    assert len(runs) == 2 * 3 * 3
    for seed, split in [(seed, split) for seed in (54, 60) for split in range(3)]:
        training = runs[f"train_split{split}_seed{seed}"]
        cfg, data = training.cfg, training.cfg.DATASET
        assert (cfg.RNG_SEED, data.split, data.name) == (seed, split, "VISION_V1_ND")
        assert (data.area_resize_ratio, cfg.TRAIN.SOFS.smooth_r) == (RATIO[split], SMOOTH[split])
        assert (data.shot, data.s_in_shot, cfg.TRAIN_SETUPS.epochs) == (1, 4, 50)
        assert not cfg.TRAIN_SETUPS.TEST_SETUPS.test_state
        for shot in (1, 5):
            run = runs[f"test_split{split}_seed{seed}_{shot}shot"]
            data, test = run.cfg.DATASET, run.cfg.TEST
            assert (run.cfg.RNG_SEED, data.split, data.shot) == (seed, split, shot)
            assert run.training is training and test.load_checkpoint
            assert test.load_model_path == str(training.head)
            assert run.cfg.TRAIN.SOFS == cfg.TRAIN.SOFS
            assert data.area_resize_ratio == (RATIO[split] if name == "vision_v1" else 0.01)
            if name == "vision_to_ds":
                assert data.name == "DS_Spectrum_DS_ND"
                assert test.dataset_path == "./data/DS_Spectrum"


def test_every_product_with_real_defects_is_tested_once_and_never_trained_on_then():
    """All others are trained on, with the drawn ones that the demo writes."""
    runs = plan("defects", "--shots", 1, "--opts", "TRAIN.dataset_path", "d")
    tested, drawn = [], set(PRODUCTS) - set(OPEN_DOMAIN_OBJECTS)
    for split in range(4):
        training = runs[f"train_split{split}_seed54"].cfg
        test = runs[f"test_split{split}_seed54_1shot"].cfg
        assert training.TRAIN.extra_dataset_paths == ["./demo_data/VISION_V1"]
        assert test.TEST.normal_queries == 20
        assert test.DATASET.test_objects == training.DATASET.test_objects
        tested.append((test.DATASET.test_objects, set(training.DATASET.train_objects)))
    products = {name for objects, _ in tested for name in objects}
    assert len(products) == 16 == sum(len(objects) for objects, _ in tested)
    for objects, trained in tested:
        assert trained == (products - set(objects)) | drawn


def test_opts_win_over_the_protocol_and_choices_count_once():
    words = ["vision_v1", "--splits", 1, 1, "--seeds", 3, 3, "--shots", 2, 2]
    words += ["--opts", "DATASET.area_resize_ratio", "0.2", "DATASET.train_objects", "[a, '007']"]
    runs = plan(*words)
    assert list(runs) == ["train_split1_seed3", "test_split1_seed3_2shot"]
    assert {run.cfg.DATASET.area_resize_ratio for run in runs.values()} == {0.2}
    assert all(run.cfg.DATASET.train_objects == ["a", "007"] for run in runs.values())


def test_given_heads_or_the_prior_are_tested_and_nothing_is_trained(tmp_path):
    for name in ("a_0_7", "a_2_7"):
        (tmp_path / name).touch()
    words = ["vision_v1", "--seeds", 7, "--shots", 1]
    heads = ["--heads", tmp_path / "a_{split}_{seed}"]
    runs = plan(*words, *heads, "--splits", 0, 2)
    assert {name: run.cfg.TEST.load_model_path for name, run in runs.items()} == {
        f"test_split{split}_seed7_1shot": f"{tmp_path}/a_{split}_7" for split in (0, 2)
    }
    assert all(run.cfg.TEST.load_checkpoint and run.training is None for run in runs.values())
    with pytest.raises(WeightsError, match=f"--heads: no weights file {tmp_path}/a_1_7"):
        plan(*words, *heads)
    runs = plan(*words, "--splits", 1, "--opts", "TEST.method", "prior")
    assert list(runs) == ["test_split1_seed7_1shot"]
    assert not runs["test_split1_seed7_1shot"].cfg.TEST.load_checkpoint


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vison_v1", "no such protocol known: visa, Did you mean vision_v1?"),
        ("vision_v1 --opts RUN_NAME a", "RUN_NAME --name"),
        ("vision_v1 --opts TEST.load_model_path a", "TEST.load_model_path --heads"),
        ("vision_v1 --opts TRAIN_SETUPS.epochs 0", "TRAIN_SETUPS.epochs is 0 no head"),
        ("vision_v1 --opts TEST.method prior --heads a", "--heads prior"),
        ("mvtec --opts TEST.method SOFS", "TEST.method SOFS --heads"),
        ("vision_v1 --splits 0 3", "--splits 0, 1, 2 3 was given"),
        ("mvtec --splits 0", "mvtec has no splits, but 0 was given"),
        ("vision_v1 --shots 0", "DATASET.shot is 0 1 or more"),
        ("vision_v1 --name ../elsewhere", "../elsewhere is no folder below OUTPUT_DIR"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, words, expected
):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert [word for word in expected.split() if word not in error] == []
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_no_process_of_torchrun(monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert main(["vision_v1"]) == 2 and "without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shots: [1]", "'config'"),
        ("config: a\nshots: []", "no shots"),
        ("config: a\nshots: [1]\nsplit: {}", "unknown: split"),
        ("config: a\nshots: [1]\nsplits: [0, 1]", "splits"),
        ("config: a\nshots: [1]\ntest: {TEST.treshold: 1}", "Did you mean TEST.threshold?"),
    ],
)
def test_a_broken_protocol_is_named(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        build_sweep(build_parser().parse_args(["mine"]), tmp_path)
    assert str(error.value).startswith(str(tmp_path / "mine.yaml")) and words in str(error.value)
