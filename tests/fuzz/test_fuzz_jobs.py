"""Whole jobs on broken data: exit code 0 or 2, no traceback."""

from __future__ import annotations

import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.readers import vision_v1
from tests.fuzz.inputs import annotations, broken_files, contents, fuzzed
from tests.helpers import JOBS, SIZE, TINY, own_logging, write_product
from tests.tools.open_domain_data import write_object
from tools.cli import run_main

NAMES = ["spot_0.png", "spot_1.png", "line_0.png", "line_1.png"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a job as the command line does, check how it ends; return what it printed as errors."""

    def run(job, root, changes):
        output = tmp_path / "log"
        # a header may claim more pixels, whose windows would take hours
        values = TINY | {"TEST.method": "prior", "DATASET.max_pixels": 100_000}
        values |= {"TRAIN.dataset_path": root, "TEST.dataset_path": root, "OUTPUT_DIR": output}
        options = [str(part) for pair in (values | changes).items() for part in pair]
        monkeypatch.setattr(sys, "argv", ["job", "--cfg", "/dev/null", "--opts", *options])
        with own_logging():
            code = run_main("", JOBS[job])
        printed = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in printed.err + printed.out
        assert code == 0 or printed.err.rpartition("error: ")[2].strip()
        shutil.rmtree(output, ignore_errors=True)
        return printed.err if code else ""

    return run


@pytest.mark.filterwarnings("ignore")
def test_tests_and_trainings_on_odd_data_end_with_0_or_2(tmp_path, run):
    for name in ("Plate", "Disk"):
        write_product(tmp_path, name, {"spot": 3, "line": 3})
    folder = tmp_path / "Disk" / "train"
    swapped = {"DATASET.train_objects": ["Disk"], "DATASET.test_objects": ["Plate"]}
    content, place = contents(annotations(SIZE, NAMES)), st.sampled_from(NAMES)

    @fuzzed(3)
    @given(content, broken_files, place, st.booleans())
    def try_one(content, image, name, is_training):
        (folder / vision_v1.ANNOTATIONS).write_bytes(content)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(image)
        job, objects = ("train", swapped) if is_training else ("test", {})
        run(job, tmp_path, objects | {"TRAIN_SETUPS.epochs": 1})
        (folder / name).write_bytes(whole)

    try_one()


@pytest.mark.filterwarnings("ignore")
def test_open_domain_on_odd_files_ends_with_0_or_2(tmp_path, run):
    write_object(tmp_path, "steel")
    files = sorted(path for path in tmp_path.rglob("*.*") if path.is_file())
    options = {"DATASET.name": "opendomain_test_dataset_ND"}
    options["DATASET.open_domain_test_object"] = ["steel"]

    @fuzzed(3)
    @given(broken_files, st.sampled_from(files))
    def try_one(content, path):
        whole = path.read_bytes()
        path.write_bytes(content)
        error = run("test", tmp_path, options)
        assert not error or path.name in error
        path.write_bytes(whole)

    try_one()
