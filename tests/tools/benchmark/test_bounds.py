"""What is timed: it runs alone, after all other tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tools.benchmark.__main__ import SECTIONS
from tools.benchmark.figures import EXACTLY

REPO = Path(__file__).parents[3]


def test_quick_keeps_every_bound(tmp_path):
    command = [sys.executable, "-m", "tools.benchmark", "--quick"]
    command += ["--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert {f["section"] for f in figures} == {*SECTIONS}
    assert len(done.stdout.splitlines()) == len(figures) + 1, "a line each, and the sum"
    assert sum(f["kind"] == EXACTLY and f["bound"] is not None for f in figures) >= 5
