"""The entry points as processes of torchrun, and with NUM_GPUS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny_config

REPO = Path(__file__).parents[1]
PLAIN = [sys.executable]


def torchrun(processes):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]


@pytest.fixture
def run(surfaces, tmp_path):
    """Start a script with a launcher; returns what it left: process, and the folder of the run."""

    def start(launcher, script, *opts, **changes):
        yaml = tmp_path / "my.yaml"
        yaml.write_text(tiny_config(surfaces, tmp_path / "log", **changes).dump())
        command = [*launcher, str(REPO / script), "--cfg", str(yaml), "--opts", *map(str, opts)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        return done, tmp_path / "log" / changes.get("RUN_NAME", "run")

    return start


def test_figures_are_those_of_one_process_whoever_starts_the_others(run):
    """Digit for digit; 8 queries do not come out even among 3."""
    found = {}
    changes = {"DATASET__few_shot_repeated_multiple": 2, "TEST__VISUALIZE__save_figure": True}
    changes["TEST__VISUALIZE__sample_prob"] = 1.0
    for name, launcher, processes in (
        ("alone", PLAIN, 1),
        ("own", PLAIN, 2),
        ("torchrun1", torchrun(1), 4),
        ("torchrun2", torchrun(2), 1),
        ("torchrun3", torchrun(3), 1),
    ):
        done, folder = run(launcher, "test.py", "NUM_GPUS", processes, RUN_NAME=name, **changes)
        assert done.returncode == 0, done.stderr
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics.pop("finished", None)
        files = {file: (folder / file).read_bytes() for file in ("queries.csv", "curves.json")}
        figures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        found[name] = (metrics, files, figures)
        assert len(figures) == 8 and (folder / "report.html").is_file()
    assert all(result == found["alone"] for result in found.values())


def test_a_training_of_torchrun(run):
    """Without RUN_NAME all processes write in one folder, named after the time of the main one."""
    done, folder = run(torchrun(2), "train.py", RUN_NAME="", TRAIN_SETUPS__batch_size=2)
    assert done.returncode == 0, done.stderr
    (folder,) = folder.iterdir()
    assert (folder / "checkpoints" / "head.safetensors").is_file() and (folder / "metrics.json").is_file()


def test_a_fault_that_all_processes_have_is_told_once(run):
    done, folder = run(torchrun(2), "train.py", "TRAIN.dataset_path", "/gone")
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(told) == 1 and "/gone: no such folder" in told[0]
    assert "DataError" not in done.stderr and not folder.exists()
