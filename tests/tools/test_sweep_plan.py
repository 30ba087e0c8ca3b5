from __future__ import annotations

import shlex

import pytest

from method_config import load_config
from tools.sweep import CONFIGS, build_parser, build_sweep, main, protocol_names
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
    assert {r.cfg.DATASET.few_shot_repeated_multiple for r in runs if not r.trains} == {5}
    assert main([*words, "--list"]) == 0
    for line, run in zip(capsys.readouterr().out.splitlines(), runs, strict=True):
        script, _, file, opts, *pairs = shlex.split(line)
        assert (script, opts) == ("train.py" if run.trains else "test.py", "--opts")
        assert load_config(file, pairs) == run.cfg


@pytest.mark.parametrize("name", ["vision_v1", "vision_to_ds"])
def test_the_published_settings_of_each_split_arrive_in_its_runs(name):
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


def test_the_cross_domain_test_has_the_settings_of_defect_spectrum():
    for run in plan("vision_to_ds", "--shots", 1).values():
        assert run.cfg.TRAIN.dataset_path == "./data/VISION_V1"
        if not run.trains:
            changes = ["DATASET.name", "DS_Spectrum_DS_ND", "DATASET.split", run.cfg.DATASET.split]
            changes += ["DATASET.shot", 1, "DATASET.few_shot_repeated_multiple", 5]
            expected = load_config(CONFIGS / "DS_Spectrum" / "SOFS.yaml", changes)
            assert run.cfg.DATASET == expected.DATASET
            assert run.cfg.TEST.dataset_path == expected.TEST.dataset_path


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
        ("--opts RUN_NAME a", ["RUN_NAME", "--name"]),
        ("--opts TEST.threshold 0.4 DATASET.split 1", ["DATASET.split", "--splits"]),
        ("--opts TEST.load_model_path a", ["TEST.load_model_path", "--heads"]),
        ("--opts TEST.threshold", ["'TEST.threshold'", "stands alone"]),
        ("--opts TRAIN_SETUPS.epochs 0", ["TRAIN_SETUPS.epochs is 0", "no head"]),
        ("--opts TEST.method prior --heads a", ["--heads", "prior"]),
        ("--splits 0 3", ["--splits", "0, 1, 2", "3 was given"]),
        ("--shots 0", ["DATASET.shot is 0", "1 or more"]),
        ("--name ../elsewhere", ["../elsewhere is no folder below OUTPUT_DIR", "plain name"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, words, expected
):
    monkeypatch.chdir(tmp_path)
    assert main(["vision_v1", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and [word for word in expected if word not in error] == []
    assert not list(tmp_path.iterdir())


# --- Protocol files ------------------------------------------------------------------------------


@pytest.fixture
def custom(tmp_path):
    """The sweep of a protocol file of some text."""

    def custom(text, *words):
        (tmp_path / "mine.yaml").write_text(text)
        return build_sweep(build_parser().parse_args(["mine", *words]), tmp_path)

    return custom


def test_settings_may_be_nested_or_dotted_and_splits_missing(custom):
    sweep = custom(
        "config: a.yaml\nshots: [3]\ntest: {TEST.threshold: 0.4}\n"
        "splits: {1: {DATASET: {crop_size: 28}}, 2: }"
    )
    assert sweep.splits == {1: {"DATASET.crop_size": 28}, 2: {}} and sweep.shots == [3]
    assert sweep.test == {"TEST.threshold": 0.4} and sweep.train is None
    flat = "config: VISION_V1/SOFS.yaml\nshots: [2]\ntest: {TEST.method: prior}"
    names = [run.cfg.RUN_NAME for run in custom(flat, "--seeds", "5", "6").runs()]
    assert names == ["test_seed5_2shot", "test_seed6_2shot"]
    with pytest.raises(ConfigError, match="mine has no splits, but 0 was given"):
        custom(flat, "--splits", "0")
    with pytest.raises(ConfigError, match=r"mine trains no head for TEST\.method SOFS.*--heads"):
        custom(flat, "--opts", "TEST.method", "SOFS").runs()


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
def test_a_broken_protocol_is_named(custom, tmp_path, text, words):
    with pytest.raises(ConfigError) as error:
        custom(text)
    assert str(error.value).startswith(str(tmp_path / "mine.yaml")) and words in str(error.value)


def test_an_unknown_protocol_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no such protocol.*visa, .*Did you mean vision_v1\?"):
        plan("vison_v1")
