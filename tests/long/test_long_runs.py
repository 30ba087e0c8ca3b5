"""Long runs hold no more at their end than after their first quarter: memory, also of the workers, files, threads."""

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
    write_object(
        root, "steel", {f"{i:03}.png": (48, 64) for i in range(QUERIES)}, labels=["003.png"]
    )
    return root


def held(job, root, folder, workers):
    """What a job holds along its way, see `long_jobs`."""
    command = [
        sys.executable,
        "-m",
        "tests.long.long_jobs",
        job,
        str(root),
        str(folder),
        str(workers),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("job", "workers"),
    [
        ("evaluated", 0),
        ("evaluated", 2),
        ("trained", 0),
        ("trained", 2),
        ("predicted", 0),
        ("open_domain", 0),
    ],
)
def test_a_long_run_does_not_grow(products, tmp_path, job, workers):
    found = held(job, products, tmp_path, workers)
    assert len(found) >= 16
    quarter, end = found[len(found) // 4], found[-1]
    told = f"{job}, {workers} workers: {found[0]} at the start, {quarter} after a quarter, {end} at the end"
    print(told)
    assert end["memory"] - quarter["memory"] < GROWTH, told
    assert end["workers"] - quarter["workers"] < GROWTH, told
    assert (end["workers"] > 0) == (workers > 0), told
    assert end["files"] <= quarter["files"], told
    assert end["threads"] <= quarter["threads"] + COMING_AND_GOING, told
