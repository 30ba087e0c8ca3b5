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
import torch
from PIL import Image

from tests.helpers import JOBS, tiny_config
from tools.checkpoint import STATE_KEYS
from tools.cli import run_main

ROOT = Path(__file__).parents[1]
BAR = re.compile(r"((epoch \d+/\d+|test):.*)?$")  # a progress bar, or the empty line after it


@pytest.fixture
def setting(surfaces, tmp_path):
    """A YAML file and the products it trains and tests on, which may be damaged."""
    shutil.copytree(surfaces, tmp_path / "data")
    (tmp_path / "my.yaml").write_text(tiny_config(tmp_path / "data", tmp_path / "log").dump())
    return tmp_path


@pytest.fixture
def fault(setting, monkeypatch, capsys):
    """Run a job on the YAML file, with further --opts; return the line on standard error."""

    def fault(job, *opts):
        monkeypatch.setattr(
            sys, "argv", [f"{job}.py", "--cfg", str(setting / "my.yaml"), "--opts", *map(str, opts)]
        )
        assert run_main("", JOBS[job]) == 2
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if not BAR.match(line)]
        assert len(lines) == 1 and lines[0].startswith("error: ")
        assert "Traceback" not in output.err + output.out
        log = setting / "log"
        assert not (log.exists() and any(log.iterdir())), "no run folder is left"
        return lines[0]

    return fault


def names(line, *parts):
    return all(str(part) in line for part in parts)


@pytest.mark.parametrize("job", JOBS)
def test_the_scripts_exit_with_2_and_one_line(setting, job):
    """The real processes; the other cases run in this one."""
    key, env = f"{job.upper()}.dataset_path", os.environ | {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(ROOT / f"{job}.py"),
        "--cfg",
        str(setting / "my.yaml"),
        "--opts",
        key,
        "/gone",
    ]
    done = subprocess.run(command, cwd=setting, capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [done.stderr.strip()] and done.stderr.startswith(
        "error: /gone: no such folder"
    )
    assert key in done.stderr and not (setting / "log").exists()


@pytest.mark.parametrize("job", JOBS)
def test_settings(fault, job):
    assert names(fault(job, "DATASET.split", "first"), "DATASET.split", "'first'", "an integer")
    assert names(
        fault(job, "TRAIN.SOFS.smoth_r", 1), "unknown key TRAIN.SOFS.smoth_r", "TRAIN.SOFS.smooth_r"
    )
    assert names(
        fault(job, "DATASET.image_size", 65, "DATASET.mask_size", 65),
        "DATASET.image_size",
        "64 or 72",
    )


def test_a_bad_config_is_told_before_pytorch_is_loaded(setting):
    """Which takes seconds."""
    code = (
        "import sys; from tools.cli import run_main; code = run_main('', 'tools.tester:run_test')"
    )
    command = [sys.executable, "-c", f"{code}; sys.exit(10 * code + ('torch' in sys.modules))"]
    command += ["--cfg", str(setting / "my.yaml"), "--opts", "DATASET.split", "first"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 20


SLOW = """
import time
from multiprocessing import current_process

def job():
    pass

if ("Spawn" in current_process().name) == {spawned}:
    print("loading\\n", end="", flush=True)  # one write, whoever else prints
    try:
        time.sleep(1)
    except BaseException:
        raise ValueError
"""
SPAWN = """
import sys
from tools.cli import exit_code

if __name__ == "__main__":
    import slow
    from utils.distributed import launch
    sys.exit(exit_code(lambda: launch(slow.job, 2, "gloo")))
"""
PLAIN = "import sys; from tools.cli import run_main; sys.exit(run_main('', 'slow:job'))"


@pytest.mark.parametrize(("main", "processes"), [(PLAIN, 1), (SPAWN, 2)])
def test_told_to_end_while_modules_are_loaded(setting, main, processes):
    """Some of which turn an interruption into another error."""
    (setting / "slow.py").write_text(SLOW.format(spawned=processes > 1))
    (setting / "main.py").write_text(main)
    command = [sys.executable, str(setting / "main.py"), "--cfg", "my.yaml"]
    options = {
        "cwd": setting,
        "env": os.environ | {"PYTHONPATH": str(ROOT)},
        "start_new_session": True,
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **options, **pipes)
    assert [process.stdout.readline() for _ in range(processes)] == ["loading\n"] * processes
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[1] == "interrupted by SIGINT\n" and process.returncode == 130


def test_a_missing_yaml_file(fault, setting):
    (setting / "my.yaml").unlink()
    assert names(fault("train"), setting / "my.yaml", "--cfg")


@pytest.mark.parametrize("job", JOBS)
def test_weights_files(fault, setting, job):
    (setting / "broken.pth").write_bytes(b"<html>not found</html>")
    for name in ("gone.pth", "broken.pth"):
        file, side = setting / name, job.upper()
        head = fault(job, f"{side}.load_checkpoint", True, f"{side}.load_model_path", file)
        assert names(head, f"{side}.load_model_path", file)
        assert names(
            fault(job, "TRAIN.backbone_checkpoint", file), "TRAIN.backbone_checkpoint", file
        )


@pytest.mark.parametrize(
    "content", [None, b"", b"text", b"\x80\x05junk", b"PK\x03\x04" + bytes(300)]
)
def test_training_states(fault, setting, content):
    file = setting / "state.pth"
    if content is not None:
        file.write_bytes(content)
    assert names(fault("train", "TRAIN.resume", file), "TRAIN.resume", file)


def test_a_training_state_with_something_else_in_it(fault, setting):
    """All names are there."""
    file = setting / "state.pth"
    for odd in (None, 3, "x", {}, [1]):
        torch.save(dict.fromkeys(STATE_KEYS, odd) | {"head": {}}, file)
        assert names(fault("train", "TRAIN.resume", file), "TRAIN.resume", file)


@pytest.mark.parametrize("job", JOBS)
def test_data_sets(fault, setting, job):
    product = setting / "data" / ("Plate" if job == "train" else "Disk")
    key = f"{job.upper()}.dataset_path"
    assert names(fault(job, key, setting / "gone"), setting / "gone", key)
    Image.new("RGB", (50, 60)).save(product / "train" / "spot_0.png")
    assert names(fault(job), product / "train" / "spot_0.png", "(96, 128)", "(60, 50)")
    annotations = product / "train" / "_annotations.coco.json"
    annotations.write_text(annotations.read_text()[:-30])
    assert names(fault(job), annotations, "not valid JSON")
    shutil.rmtree(product)
    assert names(fault(job), product, key)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_training_image(fault, setting, workers):
    """Also where a worker process meets it."""
    path = setting / "data" / "Plate" / "train" / "spot_1.png"
    path.write_bytes(path.read_bytes()[:2000])
    line = fault("train", "TRAIN_SETUPS.num_workers", workers)
    assert names(line, path, "cannot be read", "copy it again") and "worker" not in line


def test_every_test_image_unreadable(fault, setting):
    for path in (setting / "data" / "Disk").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:2000])
    assert names(fault("test"), "no query could be evaluated", setting / "data" / "Disk")


def test_a_folder_that_was_there_stays(fault, setting, monkeypatch, capsys):
    """Only what the run made is removed, and no longer once there is a checkpoint."""
    folder = setting / "log" / "run"
    folder.mkdir(parents=True)
    path = setting / "data" / "Plate" / "train" / "spot_1.png"
    path.write_bytes(path.read_bytes()[:2000])
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg", str(setting / "my.yaml")])
    assert run_main("", JOBS["train"]) == 2
    assert str(path) in capsys.readouterr().err and (folder / "train.log").is_file()


def test_an_output_folder_that_cannot_be_written(setting, monkeypatch, capsys):
    (setting / "log").write_text("a file")
    monkeypatch.setattr(sys, "argv", ["test.py", "--cfg", str(setting / "my.yaml")])
    assert run_main("", JOBS["test"]) == 2
    assert names(capsys.readouterr().err, "OUTPUT_DIR", setting / "log")
