"""The entry points in many processes, of torchrun and of NUM_GPUS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny_config
from tools.evaluator import run_test

REPO = Path(__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


@pytest.fixture
def data(surfaces, tmp_path):
    """Products of which one query image is cut off."""
    root = shutil.copytree(surfaces, tmp_path / "data")
    path = root / "Disk" / "train" / "line_1.png"
    path.write_bytes(path.read_bytes()[:300])
    return root


@pytest.fixture
def run(data, tmp_path):
    """Run a script with the settings of a YAML file; returns the process and the run's folder."""

    def run(*command, **changes):
        yaml = tmp_path / "my.yaml"
        yaml.write_text(tiny_config(data, tmp_path / "log", **changes).dump())
        command = [str(REPO / word) if word.endswith(".py") else word for word in command]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *command, "--cfg", str(yaml)]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done, tmp_path / "log" / changes.get("RUN_NAME", "run")

    return run


def test_figures_are_those_of_one_process(run, data, tmp_path):
    """Digit for digit; 8 queries do not come out even among 3, and one cannot be read. Under
    torchrun NUM_GPUS does not count."""
    changes = {"DATASET__few_shot_repeated_multiple": 2, "TEST__VISUALIZE__save_figure": True}
    changes["TEST__VISUALIZE__sample_prob"] = 1.0
    run_test(tiny_config(data, tmp_path / "log", RUN_NAME="1", **changes), "")
    for launcher, processes, number in ((TORCHRUN, 2, 5), ([], 3, 3)):
        names = {"RUN_NAME": str(processes), "NUM_GPUS": number}
        done, _ = run(*launcher, "test.py", **names, **changes)
        assert done.returncode == 0, done.stderr
    contents = []
    for processes in (1, 2, 3):
        folder = tmp_path / "log" / str(processes)
        files = ["metrics.json", "queries.csv", "curves.json", "gallery/index.json"]
        figures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        contents.append([*((folder / file).read_bytes() for file in files), figures])
        assert len(figures) == 7 and (folder / "report.html").is_file()
        assert json.loads((folder / "run.json").read_text())["processes"] == processes
        (line,) = json.loads((folder / "metrics.json").read_text())["unreadable"]
        assert "line_1.png" in line
    assert contents[0] == contents[1] == contents[2]


def test_a_training_of_torchrun(run):
    """Without RUN_NAME all processes write in one folder, named after the time of the main one."""
    done, log = run(*TORCHRUN, "train.py", RUN_NAME="", TRAIN_SETUPS__batch_size=2)
    assert done.returncode == 0, done.stderr
    (folder,) = log.iterdir()
    assert (folder / "checkpoints" / "head.safetensors").is_file()
    assert (folder / "metrics.json").is_file()


@pytest.mark.parametrize(("launcher", "code"), [(TORCHRUN, 1), ([], 2)])
def test_a_fault_of_all_processes_is_printed_once(run, launcher, code):
    changes = {"TRAIN__dataset_path": "/gone", "NUM_GPUS": 2}
    done, folder = run(*launcher, "train.py", **changes)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == code and len(errors) == 1 and "/gone: no such folder" in errors[0]
    assert "DataError" not in done.stderr and not folder.exists()
