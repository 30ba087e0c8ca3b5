"""Long runs hold no more memory, files or threads at their end than after their first quarter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import write_product
from tests.tools.open_domain_data import write_object

ROOT = Path(__file__).parents[2]
GROWTH = 20  # MB, within which allocators settle
COMING_AND_GOING = 2  # threads that live for a query
QUERIES = 500


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Root of Plate and Disk with 50 images each, and of the open domain object steel."""
    root = tmp_path_factory.mktemp("products")
    for name in ("Plate", "Disk"):
        write_product(root, name, {"spot": 25, "line": 25}, size=(48, 64))
    queries = {f"{number:03}.png": (48, 64) for number in range(QUERIES)}
    write_object(root, "steel", queries, labels=["003.png"])
    return root


@pytest.mark.parametrize(
    ("job", "workers"),
    [("evaluated", 0), ("evaluated", 2), ("trained", 0), ("trained", 2), ("predicted", 0),
     ("open_domain", 0)],
)  # fmt: skip
def test_a_long_run_does_not_grow(products, tmp_path, job, workers):
    words = ["-m", "tests.long.long_jobs", job, str(products), str(tmp_path), str(workers)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    samples = json.loads(done.stdout.splitlines()[-1])
    # the last passes may come after the workers have ended
    samples = [sample for sample in samples if (sample["workers"] > 0) == (workers > 0)]
    assert len(samples) >= 16
    quarter, end = samples[len(samples) // 4], samples[-1]
    message = f"{samples[0]} at the start, {quarter} after a quarter, {end} at the end"
    assert end["memory"] - quarter["memory"] < GROWTH, message
    assert end["workers"] - quarter["workers"] < GROWTH, message
    assert end["files"] <= quarter["files"], message
    assert end["threads"] <= quarter["threads"] + COMING_AND_GOING, message
