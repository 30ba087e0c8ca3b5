from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
TIMES = max(20, int(os.environ.get("SOFS_FUZZ", "20")))  # as many inputs as `make test` tries


def test_more_than_twenty_thousand_invented_inputs_new_ones_each_time(tmp_path):
    ours = {"SOFS_FUZZ": str(TIMES), "SOFS_FUZZ_TALLY": str(tmp_path / "tally")}
    command = [sys.executable, "-m", "pytest", "-q", "tests/fuzz"]
    env = os.environ | ours | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert sum(map(int, (tmp_path / "tally").read_text().split())) >= 20_000
