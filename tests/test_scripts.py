"""train.sh and test.sh."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from method_config import load_config
from tests.tools.open_domain_data import write_object
from tools.sweep import build_parser, build_sweep

REPO = Path(__file__).parents[1]
SHELLS = {"test.sh": shutil.which("dash") or "sh", "train.sh": "bash"}
TINY = shlex.split(
    "DATASET.image_size 64 DATASET.mask_size 64 DATASET.crop_size 64 DATASET.s_in_shot 1 "
    "TRAIN.backbone efficientnet_lite0 TRAIN.SOFS.prior_layer_pointer [1,2] "
    "TRAIN.SOFS.vit_patch_size 8 TRAIN.SOFS.reduce_dim 8 TRAIN.SOFS.transformer_embed_dim 8 "
    "TRAIN_SETUPS.num_workers 0"
)


def run(script, *opts, cwd, **environment):
    """Run a script of the repository in another folder; None removes an environment variable."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable} | environment
    environment = {k: v for k, v in environment.items() if v is not None}
    command = [SHELLS[script], REPO / script, *map(str, opts)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture
def recorder(tmp_path):
    """A stand-in for the Python program: keeps its arguments, exits with the code in EXIT."""
    file, calls = tmp_path / "bin" / "python", tmp_path / "calls"
    file.parent.mkdir()
    lines = ["#!/bin/sh", f'printf "%s\\t" "$@" >> "{calls}"', f'echo >> "{calls}"']
    file.write_text("\n".join([*lines, "exit ${EXIT:-0}"]))
    file.chmod(0o755)
    return file


def calls(tmp_path):
    """The words of every call that the recorder has seen."""
    lines = (tmp_path / "calls").read_text().splitlines()
    return [line.rstrip("\t").split("\t") for line in lines]


def called_configs(tmp_path):
    """The configs of the calls of test.py that the recorder has seen."""
    for script, flag, *words in calls(tmp_path):
        assert (Path(script).name, flag) == ("test.py", "--cfg")
        split = words.index("--opts")
        yield load_config(words[:split], words[split + 1 :])


def called_sweep(tmp_path):
    """The sweep of the one call of tools.sweep that the recorder has seen."""
    (call,) = calls(tmp_path)
    assert call[:3] == ["-P", "-m", "tools.sweep"]
    return build_sweep(build_parser().parse_args(call[3:]))


def test_test_sh_segments_own_images(tmp_path):
    data = tmp_path / "my data"
    write_object(data, "my_part", {"a.png": (96, 128)}, labels=["a.png"])
    opts = ["TEST.method", "prior", "TEST.dataset_path", data, "RUN_NAME", "here"]
    opts += ["DATASET.open_domain_test_object", "my_part"]
    done = run("test.sh", *TINY, *opts, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "log" / "here"
    mask = cv2.imread(str(folder / "my_part" / "masks" / "a.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (96, 128) and set(np.unique(mask)) <= {0, 255}
    report = json.loads((folder / "metrics.json").read_text())["objects"]["my_part"]
    assert report["queries"] == 1 and len(list((folder / "my_part" / "overlays").iterdir())) == 1


def test_test_sh_takes_several_configs_in_their_order(tmp_path, recorder):
    (tmp_path / "a.yaml").write_text("RNG_SEED: 1\nRUN_NAME: a\n")
    (tmp_path / "b.yaml").write_text("RUN_NAME: b\n")
    environment = {"CFG": f"{tmp_path}/a.yaml {tmp_path}/b.yaml", "PYTHON": str(recorder)}
    for lead in ([], ["--opts"]):
        run("test.sh", *lead, "DATASET.split", "2", cwd=tmp_path, **environment)
    for cfg in called_configs(tmp_path):
        assert (cfg.RNG_SEED, cfg.RUN_NAME, cfg.DATASET.split) == (1, "b", 2)


def test_test_sh_expects_the_published_checkpoint(tmp_path, recorder):
    run("test.sh", cwd=tmp_path, PYTHON=str(recorder))
    (cfg,) = called_configs(tmp_path)
    assert (cfg.TEST.load_checkpoint, cfg.TEST.load_model_path) == (True, "./SOFS_model.pth")


def test_train_sh_runs_the_published_settings(tmp_path, recorder):
    opts = ["OUTPUT_DIR", "./runs", "TRAIN_SETUPS.epochs", "2"]
    done = run("train.sh", *opts, cwd=tmp_path, PYTHON=str(recorder), SPLITS=None, EXIT="3")
    assert done.returncode == 3, "the code of the sweep"
    sweep = called_sweep(tmp_path)
    runs = sweep.runs()
    assert sweep.folder() == Path("runs/vision_v1")
    assert [r.trains for r in runs] == [True, False] * 3
    published = [(0, 0.01, 1), (1, 0.005, 1), (2, 0.01, 1e5)]
    for number, each in enumerate(runs):
        data, train = each.cfg.DATASET, each.cfg.TRAIN
        settings = data.split, data.area_resize_ratio, train.SOFS.smooth_r
        assert settings == published[number // 2]
        assert (data.s_in_shot, data.shot, each.cfg.TRAIN_SETUPS.epochs) == (4, 1, 2)
        if not each.trains:
            assert each.cfg.TEST.load_checkpoint and each.training is runs[number - 1]
            assert data.few_shot_repeated_multiple == 5


def test_train_sh_lists_its_runs_from_any_folder(tmp_path):
    """Also where the folder has modules of the same names; it takes options of the sweep, too."""
    for name in ("tools", "utils"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError")
    words = ["--opts", "TRAIN_SETUPS.epochs", "2", "--shots", "5", "--seeds", "54", "55", "--list"]
    environment = {"SPLITS": "0 2", "NUM_GPUS": "3", "PYTHONPATH": None}
    done = run("train.sh", *words, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    cfgs = [load_config(words[2], words[4:]) for words in commands]
    splits = [f"split{split}_seed{seed}" for seed in (54, 55) for split in (0, 2)]
    runs = [name for split in splits for name in (f"train_{split}", f"test_{split}_5shot")]
    assert [cfg.RUN_NAME for cfg in cfgs] == runs
    assert {(cfg.TRAIN_SETUPS.epochs, cfg.NUM_GPUS) for cfg in cfgs} == {(2, 3)}


@pytest.mark.parametrize(
    ("environment", "smi", "gpus"),
    [
        ({"NUM_GPUS": "4"}, "echo GPU 0:", 4),
        ({"CUDA_VISIBLE_DEVICES": "2,5"}, "exit 0", 2),
        ({}, "echo GPU 0: H; echo '  MIG 1g: MIG-GPU-1'; echo GPU 1: H", 2),
        ({}, "echo No devices found; exit 6", 1),
    ],
)
def test_train_sh_counts_gpus(tmp_path, recorder, environment, smi, gpus):
    program = recorder.with_name("nvidia-smi")
    program.write_text(f"#!/bin/sh\n{smi}\n")
    program.chmod(0o755)
    path = f"{recorder.parent}:{os.environ['PATH']}"
    environment = {"NUM_GPUS": None, "CUDA_VISIBLE_DEVICES": None, "PATH": path} | environment
    done = run("train.sh", cwd=tmp_path, PYTHON=str(recorder), SPLITS="0", **environment)
    assert done.returncode == 0, done.stderr
    assert {r.cfg.NUM_GPUS for r in called_sweep(tmp_path).runs()} == {gpus}
