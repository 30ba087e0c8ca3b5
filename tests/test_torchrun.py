"""The entry points in many processes, of torchrun and of NUM_GPUS."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import SIZE, surface, tiny_config
from tools.evaluator import run_test

REPO = Path(__file__).parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


@pytest.fixture
def run(surfaces, tmp_path):
    """Run a script with the settings of a YAML file; returns the process."""

    def run(*command, **changes):
        yaml = tmp_path / "my.yaml"
        yaml.write_text(tiny_config(surfaces, tmp_path / "log", **changes).dump())
        command = [str(REPO / word) if word.endswith(".py") else word for word in command]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *command, "--cfg", str(yaml)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)

    return run


def test_figures_are_those_of_one_process(run, surfaces, tmp_path):
    """Digit for digit; 8 queries and 4 normal images do not come out even among 3, and one query
    cannot be read. Under torchrun NUM_GPUS does not count, and one folder is named after the time
    of the main process."""
    data = shutil.copytree(surfaces, tmp_path / "data")
    image = data / "Disk" / "train" / "line_1.png"
    image.write_bytes(image.read_bytes()[:300])
    (data / "pool").mkdir()
    for number in range(4):
        picture = Image.fromarray(surface(SIZE, np.random.default_rng(number)))
        picture.save(data / "pool" / f"{number}.png")
    changes = {"TEST__dataset_path": str(data), "TEST__VISUALIZE__save_figure": True}
    changes["TEST__VISUALIZE__sample_prob"] = 1.0
    changes |= {"DATASET__normal_folder": "pool", "TEST__normal_queries": 4}
    run_test(tiny_config(surfaces, tmp_path / "log", RUN_NAME="1", **changes), "")
    done = run(*TORCHRUN, "3", "test.py", RUN_NAME="", NUM_GPUS=5, **changes)
    assert done.returncode == 0, done.stderr
    contents, folders = [], sorted((tmp_path / "log").iterdir())
    for folder, processes in zip(folders, (1, 3), strict=True):
        files = ["metrics.json", "queries.csv", "normal.csv", "curves.json", "gallery/index.json"]
        figures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
        contents.append([*((folder / file).read_bytes() for file in files), figures])
        assert len(figures) == 7 and (folder / "report.html").is_file()
        assert json.loads((folder / "run.json").read_text())["processes"] == processes
        (line,) = json.loads((folder / "metrics.json").read_text())["unreadable"]
        assert "line_1.png" in line
    assert contents[0] == contents[1]


def test_a_fault_of_all_processes_is_printed_once(run, tmp_path):
    done = run(*TORCHRUN, "2", "train.py", TRAIN__dataset_path="/gone")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "/gone: no such folder" in errors[0]
    assert "DataError" not in done.stderr and not (tmp_path / "log" / "run").exists()
