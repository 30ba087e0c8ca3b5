from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
TIMES = 20  # SOFS_FUZZ may ask for more
MOST = 3 * 3600  # seconds


def test_twenty_times_as_many_invented_inputs_new_ones_each_time():
    command = [sys.executable, "-m", "pytest", "-q", "tests/fuzz"]
    times = max(TIMES, int(os.environ.get("SOFS_FUZZ", TIMES)))
    ours = {"SOFS_FUZZ": str(times), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        command,
        cwd=REPO,
        env=os.environ | ours,
        capture_output=True,
        text=True,
        timeout=MOST * times // TIMES,
    )
    assert found.returncode == 0, found.stdout[-5000:]
