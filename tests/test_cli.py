"""Bad input: exit code 2 and one line that names file and key, and nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import JOBS, tiny_config
from tests.killing import Training, ended, until
from tools.cli import run_main

ROOT = Path(__file__).parents[1]
BAR = re.compile(r"((epoch \d+/\d+|test):.*)?$")  # a progress bar, or the empty line after it
EACH_JOB = pytest.mark.parametrize("job", JOBS)


@pytest.fixture
def setting(surfaces, tmp_path):
    """A YAML file and the products it trains and tests on, which may be damaged."""
    shutil.copytree(surfaces, tmp_path / "data")
    (tmp_path / "my.yaml").write_text(tiny_config(tmp_path / "data", tmp_path / "log").dump())
    return tmp_path


@pytest.fixture
def fault(setting, monkeypatch, capsys):
    """Run a job on the YAML file, with further --opts: one line on standard error has `names`."""

    def fault(job, *opts, names=()):
        command = [f"{job}.py", "--cfg", str(setting / "my.yaml"), "--opts", *map(str, opts)]
        monkeypatch.setattr(sys, "argv", command)
        assert run_main("", JOBS[job]) == 2
        output = capsys.readouterr()
        (line,) = [line for line in output.err.splitlines() if not BAR.match(line)]
        assert line.startswith("error: ") and "Traceback" not in output.err + output.out
        assert all(str(part) in line for part in names), line
        log = setting / "log"
        assert not (log.exists() and any(log.iterdir())), "no run folder is left"

    return fault


def test_the_script_exits_with_2_and_one_line(setting):
    """The real process; the other cases run in this one."""
    script, key = str(ROOT / "train.py"), "TRAIN.dataset_path"
    command = [sys.executable, script, "--cfg", "my.yaml", "--opts", key, "/gone"]
    done = subprocess.run(command, cwd=setting, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: /gone: no such folder") and key in done.stderr
    assert not (setting / "log").exists()


@EACH_JOB
def test_settings(fault, setting, job):
    fault(job, "DATASET.split", "first", names=("DATASET.split", "'first'", "an integer"))
    unknown = "unknown key TRAIN.SOFS.smoth_r"
    fault(job, "TRAIN.SOFS.smoth_r", 1, names=(unknown, "TRAIN.SOFS.smooth_r"))
    sizes = "DATASET.image_size", 65, "DATASET.mask_size", 65
    fault(job, *sizes, names=("DATASET.image_size", "64 or 72"))
    (setting / "my.yaml").unlink()
    fault(job, names=(setting / "my.yaml", "--cfg"))


def test_a_bad_config_is_an_error_before_pytorch_is_loaded(setting):
    """Which takes seconds."""
    code = f"import sys; from tools.cli import run_main; code = run_main('', {JOBS['test']!r})"
    command = [sys.executable, "-c", f"{code}; sys.exit(10 * code + ('torch' in sys.modules))"]
    command += ["--cfg", str(setting / "my.yaml"), "--opts", "DATASET.split", "first"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 20


def test_ctrl_c_in_a_training_saves_and_ends_with_130(surfaces, tmp_path):
    """All processes of a terminal get it, also the loader's workers."""
    changes = {"TRAIN_SETUPS__epochs": 10_000, "TRAIN_SETUPS__num_workers": 2}
    training = Training(surfaces, tmp_path, **changes)
    process = training.start()
    until((training.run / "history.json").exists, process)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process) == 130
    errors = training.errors.read_text()
    assert errors.startswith("interrupted by SIGINT: saved after epoch") and errors.count("\n") == 1
    assert training.state()["epoch"] >= 1


@EACH_JOB
def test_weights_files(fault, setting, job):
    (setting / "broken.pth").write_bytes(b"<html>not found</html>")
    key, backbone = f"{job.upper()}.load_model_path", "TRAIN.backbone_checkpoint"
    for file in (setting / "gone.pth", setting / "broken.pth"):
        fault(job, f"{job.upper()}.load_checkpoint", True, key, file, names=(key, file))
        fault(job, backbone, file, names=(backbone, file))


@EACH_JOB
def test_data_sets(fault, setting, job):
    product = setting / "data" / ("Plate" if job == "train" else "Disk")
    key = f"{job.upper()}.dataset_path"
    fault(job, key, setting / "gone", names=(setting / "gone", key))
    image, annotations = (product / "train" / n for n in ("spot_0.png", "_annotations.coco.json"))
    Image.new("RGB", (50, 60)).save(image)
    fault(job, names=(image, "(96, 128)", "(60, 50)"))
    annotations.write_text(annotations.read_text()[:-30])
    fault(job, names=(annotations, "not valid JSON"))
    shutil.rmtree(product)
    fault(job, names=(product, key))


def test_unreadable_images(fault, setting):
    """One to train on, all to test on."""
    path = setting / "data" / "Plate" / "train" / "spot_1.png"
    path.write_bytes(path.read_bytes()[:2000])
    fault("train", names=(path, "cannot be read", "copy it again"))
    for path in (setting / "data" / "Disk").rglob("*.png"):
        path.write_bytes(b"")
    fault("test", names=("no query could be evaluated", setting / "data" / "Disk"))
