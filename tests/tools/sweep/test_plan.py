from __future__ import annotations

import shlex

import pytest

from method_config import load_config
from tools.sweep.__main__ import main
from tools.sweep.plan import Sweep
from tools.sweep.protocols import CONFIGS, protocol_names, read_protocol
from utils.errors import ConfigError, WeightsError

RATIO, SMOOTH = (0.01, 0.005, 0.01), (1, 1, 1e5)


@pytest.mark.parametrize("name", protocol_names())
def test_the_runs_of_every_protocol_load(plan, name):
    runs = plan(name)
    assert {run.folder.parent.as_posix() for run in runs.values()} == {f"log/{name}"}
    repeats = {
        run.cfg.DATASET.few_shot_repeated_multiple for run in runs.values() if not run.trains
    }
    assert repeats == {5}


@pytest.mark.parametrize("name", ["vision_v1", "vision_to_ds"])
def test_the_published_settings_of_each_split_arrive_in_its_runs(plan, name):
    runs = plan(name, "--seeds", 54, 60)
    published = load_config(CONFIGS / "VISION_V1" / "SOFS.yaml")
    for seed in (54, 60):
        for split in range(3):
            train = runs[f"train_split{split}_seed{seed}"].cfg
            assert (train.DATASET.area_resize_ratio, train.TRAIN.SOFS.smooth_r) == (
                RATIO[split],
                SMOOTH[split],
            )
            assert (train.DATASET.split, train.RNG_SEED) == (split, seed)
            assert (train.DATASET.shot, train.DATASET.s_in_shot, train.DATASET.name) == (
                1,
                4,
                "VISION_V1_ND",
            )
            assert train.TRAIN_SETUPS.epochs == published.TRAIN_SETUPS.epochs == 50
            assert not train.TRAIN_SETUPS.TEST_SETUPS.test_state
            for shot in (1, 5):
                test = runs[f"test_split{split}_seed{seed}_{shot}shot"]
                assert (test.cfg.DATASET.split, test.cfg.RNG_SEED, test.cfg.DATASET.shot) == (
                    split,
                    seed,
                    shot,
                )
                assert test.training is runs[f"train_split{split}_seed{seed}"]
                assert test.cfg.TEST.load_checkpoint and test.cfg.TEST.load_model_path == str(
                    test.training.head
                )
                assert (test.cfg.TRAIN.SOFS, test.cfg.TRAIN.backbone) == (
                    train.TRAIN.SOFS,
                    train.TRAIN.backbone,
                )
    assert len(runs) == 2 * 3 * 3


def test_vision_v1_is_tested_with_the_ratio_of_its_split(plan):
    for split in range(3):
        cfg = plan("vision_v1", "--shots", 1)[f"test_split{split}_seed54_1shot"].cfg
        assert cfg.DATASET.area_resize_ratio == RATIO[split]


def test_the_cross_domain_test_has_the_settings_of_defect_spectrum(plan):
    runs = plan("vision_to_ds")
    own = load_config(CONFIGS / "DS_Spectrum" / "SOFS.yaml")
    for run in runs.values():
        assert run.cfg.TRAIN.dataset_path == "./data/VISION_V1"
        if not run.trains:
            changed = own.clone()
            changed.defrost()
            changed.DATASET.name, changed.DATASET.split = "DS_Spectrum_DS_ND", run.cfg.DATASET.split
            changed.DATASET.shot, changed.DATASET.few_shot_repeated_multiple = (
                run.cfg.DATASET.shot,
                5,
            )
            assert run.cfg.DATASET == changed.DATASET
            assert run.cfg.TEST.dataset_path == own.TEST.dataset_path


def test_ds_spectrum_runs_its_own_config(plan):
    runs = plan("ds_spectrum", "--splits", 2, "--shots", 1)
    assert list(runs) == ["train_split2_seed54", "test_split2_seed54_1shot"]
    for run in runs.values():
        assert (run.cfg.DATASET.name, run.cfg.DATASET.split, run.cfg.TRAIN.SOFS.smooth_r) == (
            "DS_Spectrum_ND",
            2,
            1,
        )


def test_every_run_is_a_command_that_gives_the_same_config(plan, capsys):
    words = (
        "vision_v1",
        "--splits",
        1,
        2,
        "--opts",
        "DATASET.train_objects",
        "[a, '007']",
        "OUTPUT_DIR",
        "some where",
    )
    runs = plan(*words)
    assert main([*map(str, words), "--list"]) == 0
    for line, run in zip(capsys.readouterr().out.splitlines(), runs.values(), strict=True):
        script, _, file, opts, *pairs = shlex.split(line)
        assert (script, opts) == ("train.py" if run.trains else "test.py", "--opts")
        assert load_config(file, pairs) == run.cfg
        assert run.cfg.OUTPUT_DIR == "some where/vision_v1" and run.cfg.DATASET.train_objects == [
            "a",
            "007",
        ]


def test_opts_win_over_the_protocol_and_name_over_its_name(plan):
    opts = (
        "--name",
        "mine",
        "--opts",
        "DATASET.area_resize_ratio",
        "0.2",
        "DATASET.few_shot_repeated_multiple",
        "2",
    )
    for run in plan("vision_v1", *opts, "OUTPUT_DIR", "out").values():
        assert (run.cfg.OUTPUT_DIR, run.cfg.DATASET.area_resize_ratio) == ("out/mine", 0.2)
        assert run.cfg.DATASET.few_shot_repeated_multiple == 2


def test_repeated_choices_count_once(plan):
    runs = plan("vision_v1", "--splits", 0, 0, "--seeds", 3, 3, "--shots", 2, 2)
    assert list(runs) == ["train_split0_seed3", "test_split0_seed3_2shot"]


def test_given_heads_are_tested_and_nothing_is_trained(plan, tmp_path):
    for name in ("a_0_7", "a_2_7"):
        (tmp_path / name).touch()
    runs = plan(
        "vision_v1",
        "--splits",
        0,
        2,
        "--seeds",
        7,
        "--shots",
        1,
        "--heads",
        tmp_path / "a_{split}_{seed}",
    )
    assert {n: run.cfg.TEST.load_model_path for n, run in runs.items()} == {
        f"test_split{split}_seed7_1shot": f"{tmp_path}/a_{split}_7" for split in (0, 2)
    }
    assert all(run.cfg.TEST.load_checkpoint and run.training is None for run in runs.values())
    with pytest.raises(WeightsError, match=f"--heads: no weights file {tmp_path}/a_1_7"):
        plan("vision_v1", "--seeds", 7, "--heads", tmp_path / "a_{split}_{seed}")


def test_the_prior_is_tested_without_training(plan):
    runs = plan("vision_v1", "--splits", 1, "--opts", "TEST.method", "prior")
    assert list(runs) == ["test_split1_seed54_1shot", "test_split1_seed54_5shot"]
    assert not any(run.cfg.TEST.load_checkpoint for run in runs.values())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--opts", "RUN_NAME", "a"], ["RUN_NAME", "--name"]),
        (["--opts", "RNG_SEED", "1"], ["RNG_SEED", "--seeds"]),
        (["--opts", "TEST.threshold", "0.4", "DATASET.split", "1"], ["DATASET.split", "--splits"]),
        (["--opts", "DATASET.shot", "1"], ["DATASET.shot", "--shots"]),
        (["--opts", "TEST.load_model_path", "a"], ["TEST.load_model_path", "--heads"]),
        (["--opts", "TEST.load_checkpoint", "True"], ["TEST.load_checkpoint", "--heads"]),
        (["--opts", "TRAIN.resume", "a"], ["TRAIN.resume", "same command"]),
        (["--opts", "TEST.threshold"], ["'TEST.threshold'", "stands alone"]),
        (["--opts", "TEST.treshold", "1"], ["Did you mean TEST.threshold?"]),
        (["--opts", "TRAIN.save_model", "False"], ["TRAIN.save_model is False", "no head"]),
        (["--opts", "TRAIN_SETUPS.epochs", "0"], ["TRAIN_SETUPS.epochs is 0", "no head"]),
        (["--opts", "TEST.method", "prior", "--heads", "a"], ["--heads", "prior"]),
        (["--splits", "0", "3"], ["--splits", "0, 1, 2", "3 was given"]),
        (["--shots", "0"], ["DATASET.shot is 0", "1 or more"]),
        (["--seeds", "-1"], ["RNG_SEED is -1"]),
        (
            ["--name", "../elsewhere"],
            ["--name: ../elsewhere is no folder below OUTPUT_DIR", "plain name"],
        ),
        (["--name", "/elsewhere"], ["--name: /elsewhere is no folder below OUTPUT_DIR"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, words, expected
):
    monkeypatch.chdir(tmp_path)
    assert main(["vision_v1", *words]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and "Traceback" not in output.err
    assert [word for word in expected if word not in output.err] == []
    assert not list(tmp_path.iterdir())


def test_a_protocol_without_splits_has_one_part(tmp_path):
    (tmp_path / "flat.yaml").write_text(
        "config: VISION_V1/SOFS.yaml\nshots: [2]\ntest: {TEST.method: prior}"
    )
    flat = read_protocol("flat", tmp_path)
    assert [run.name for run in Sweep(flat, seeds=[5, 6]).runs()] == [
        "test_seed5_2shot",
        "test_seed6_2shot",
    ]
    with pytest.raises(ConfigError, match="flat has no splits, but 0 was given"):
        Sweep(flat, splits=[0]).runs()
    with pytest.raises(ConfigError, match=r"flat trains no head for TEST\.method SOFS.*--heads"):
        Sweep(flat, opts=["TEST.method", "SOFS"]).runs()
