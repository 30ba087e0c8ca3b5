from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]


def test_twenty_times_as_many_invented_inputs_new_ones_each_time():
    """More than 20,000; SOFS_FUZZ chooses another factor."""
    command = [sys.executable, "-m", "pytest", "-q", "tests/fuzz"]
    environment = {"SOFS_FUZZ": "20"} | dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-5000:]
