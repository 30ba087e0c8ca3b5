"""The entry points as processes of torchrun, and with NUM_GPUS."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import tiny_config
from tools.evaluator import run_test

REPO = Path(__file__).parents[1]


def torchrun(processes):
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]


@pytest.fixture
def data(surfaces, tmp_path):
    """Products of which one query image is cut off."""
    root = shutil.copytree(surfaces, tmp_path / "data")
    path = root / "Disk" / "train" / "line_1.png"
    path.write_bytes(path.read_bytes()[:300])
    return root


@pytest.fixture
def run(data, tmp_path):
    """Start a script with a launcher; returns what it left: process, and the folder of the run."""

    def start(launcher, script, *opts, **changes):
        yaml = tmp_path / "my.yaml"
        yaml.write_text(tiny_config(data, tmp_path / "log", **changes).dump())
        command = [*launcher, str(REPO / script), "--cfg", str(yaml), "--opts", *map(str, opts)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        return done, tmp_path / "log" / changes.get("RUN_NAME", "run")

    return start


def test_figures_are_those_of_one_process(run, data, tmp_path):
    """Digit for digit; 8 queries do not come out even among 3, and one cannot be read. The number of processes is
    torchrun's."""
    found = {}
    changes = {"DATASET__few_shot_repeated_multiple": 2, "TEST__VISUALIZE__save_figure": True}
    changes["TEST__VISUALIZE__sample_prob"] = 1.0
    run_test(tiny_config(data, tmp_path / "log", RUN_NAME="1", **changes), "")
    for processes in (1, 2, 3):
        folder = tmp_path / "log" / str(processes)
        if processes > 1:
            done, folder = run(
                torchrun(processes), "test.py", "NUM_GPUS", 5, RUN_NAME=str(processes), **changes
            )
            assert done.returncode == 0, done.stderr
        files = ("metrics.json", "queries.csv", "curves.json", "gallery/index.json")
        figures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        found[processes] = [(folder / file).read_bytes() for file in files], figures
        assert len(figures) == 7 and (folder / "report.html").is_file()
        assert json.loads((folder / "run.json").read_text())["processes"] == processes
        (told,) = json.loads((folder / "metrics.json").read_text())["unreadable"]
        assert "line_1.png" in told
    assert found[1] == found[2] == found[3]


def test_a_training_of_torchrun(run):
    """Without RUN_NAME all processes write in one folder, named after the time of the main one."""
    done, folder = run(torchrun(2), "train.py", RUN_NAME="", TRAIN_SETUPS__batch_size=2)
    assert done.returncode == 0, done.stderr
    (folder,) = folder.iterdir()
    assert (folder / "checkpoints" / "head.safetensors").is_file() and (
        folder / "metrics.json"
    ).is_file()


def test_a_fault_that_all_processes_have_is_told_once(run):
    done, folder = run(torchrun(2), "train.py", "TRAIN.dataset_path", "/gone")
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(told) == 1 and "/gone: no such folder" in told[0]
    assert "DataError" not in done.stderr and not folder.exists()


def test_processes_whose_launcher_is_killed_save_and_end(surfaces, tmp_path):
    """Or they would train on, and the same command be refused meanwhile."""
    yaml, folder = tmp_path / "my.yaml", tmp_path / "log" / "run"
    options = {
        "TRAIN_SETUPS__epochs": 10_000,
        "TRAIN_SETUPS__batch_size": 1,
        "TRAIN__resume": "auto",
    }
    yaml.write_text(tiny_config(surfaces, tmp_path / "log", **options).dump())
    with (tmp_path / "stderr").open("w") as errors:
        command = [*torchrun(2), str(REPO / "train.py"), "--cfg", str(yaml)]
        launcher = subprocess.Popen(
            command, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    wait(lambda: (folder / "history.json").exists())
    own = processes_below(launcher.pid)
    launcher.kill()
    assert launcher.wait() == -signal.SIGKILL and len(own) == 2
    wait(lambda: not any(map(is_there, own)))
    told = (tmp_path / "stderr").read_text().splitlines()
    assert sum(line.startswith("interrupted by SIGTERM: saved after epoch") for line in told) == 1


def processes_below(number):
    return [int(n) for n in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def is_there(number):
    """Whether a process lives; one that has ended may wait for its parent to ask how."""
    status = Path(f"/proc/{number}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def wait(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.05)
