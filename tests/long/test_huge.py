"""Images of hundreds of megapixels."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pyvips

from tests.helpers import SIZE, TINY
from tests.tools.open_domain_data import write_object

REPO = Path(__file__).parents[2]
SIDE = 20_000
GROUND = (90, 120, 100)
# MiB above what the same job takes without the image, whose pixels are 1,145 MiB
MORE = 700
JOB = (
    "import re, sys\nfrom pathlib import Path\nfrom tools.cli import run_main\n"
    "code, status = run_main('', 'tools.evaluator:run_test'), Path('/proc/self/status')\n"
    "print('peak', re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1])\n"
    "sys.exit(code)\n"
)


def run(root, output, **changes):
    """Metrics of a job in a process of its own, and its peak memory in MiB."""
    data = {"name": "opendomain_test_dataset_ND", "open_domain_test_object": "[steel]"}
    values = TINY | {f"DATASET.{key}": value for key, value in data.items()} | {
        "DATASET.crop_size": 2000, "TEST.dataset_path": root, "OUTPUT_DIR": output,
        "TEST.method": "prior"} | changes  # fmt: skip
    opts = [str(part) for pair in values.items() for part in pair]
    command = [sys.executable, "-c", JOB, "--cfg", "/dev/null", "--opts", *opts]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((output / "run" / "metrics.json").read_text())["objects"]["steel"]
    return report, int(re.search(r"peak (\d+)", done.stdout)[1]) >> 10


def plain(value):
    """An image of one colour, SIDE x SIDE, that is never held as a whole."""
    pixel = pyvips.Image.new_from_array(np.full((1, 1, np.size(value)), value, np.uint8))
    return pixel.replicate(SIDE, SIDE)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The peak memory with small images alone."""
    root = tmp_path_factory.mktemp("usual")
    write_object(root / "data", "steel", {"one.png": SIZE})
    return run(root / "data", root / "log")[1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_400_megapixels_are_segmented_in_bounded_memory(tmp_path, usual, suffix):
    write_object(tmp_path / "data", "steel", {"one.png": SIZE})
    plain(GROUND).write_to_file(f"{tmp_path}/data/steel/query/image/large.{suffix}")
    report, peak = run(tmp_path / "data", tmp_path / "log")
    assert report["unreadable"] == [] and report["queries"] == 2
    mask = pyvips.Image.new_from_file(f"{tmp_path}/log/run/steel/masks/large.png")
    assert (mask.width, mask.height) == (SIDE, SIDE)
    assert peak < usual + MORE, (peak, usual)


def test_400_megapixels_as_a_support_take_bounded_memory(tmp_path, usual):
    """All its pixels are held: at most 10 bytes a pixel."""
    write_object(tmp_path / "data", "steel", {"one.png": SIZE})
    for part, ground, defect in (("image", GROUND, (250, 250, 250)), ("mask", 0, 255)):
        whole = plain(ground).insert(plain(defect).crop(0, 0, 60, 40), SIDE // 2, SIDE // 3)
        whole.write_to_file(f"{tmp_path}/data/steel/support/{part}/large.png")
    report, peak = run(tmp_path / "data", tmp_path / "log")
    assert report["unreadable"] == [] and report["queries"] == 1
    assert peak < usual + (10 * SIDE**2 >> 20), (peak, usual)
