"""Whole jobs on broken data: exit code 0 or 2, in time, no traceback, and nothing is written outside OUTPUT_DIR."""

from __future__ import annotations

import shutil
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.readers import vision_v1
from tests.fuzz.coco import annotations, contents
from tests.fuzz.guards import bounded_time, fuzzed, writes_only
from tests.fuzz.images import broken_files
from tests.helpers import JOBS, SIZE, TINY, own_logging, write_product
from tests.tools.open_domain_data import write_object
from tools.cli import run_main

NAMES = ["spot_0.png", "spot_1.png", "line_0.png", "line_1.png"]


def run_job(monkeypatch, job, root, output, **changes):
    """Exit code of a job that is called as on the command line."""
    values = TINY | {
        "TRAIN.dataset_path": root,
        "TEST.dataset_path": root,
        "OUTPUT_DIR": output,
        "TEST.method": "prior",
        "DATASET.max_pixels": 100_000,  # a header may claim more, whose windows would take hours
    }
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    monkeypatch.setattr(
        sys,
        "argv",
        ["job", "--cfg", "/dev/null", "--opts", *map(str, (p for i in values.items() for p in i))],
    )
    with own_logging():
        return run_main("", JOBS[job])


@pytest.fixture
def places(tmp_path):
    """Folders of the data and of the runs."""
    for name in ("Plate", "Disk"):
        write_product(tmp_path / "data", name, {"spot": 3, "line": 3})
    write_object(tmp_path / "open", "steel")
    return tmp_path / "data", tmp_path / "open", tmp_path / "log"


@pytest.mark.filterwarnings("ignore")
def test_tests_and_trainings_on_odd_data_end_with_0_or_2(places, monkeypatch, capsys):
    data, _, output = places
    folder = data / "Disk" / "train"

    @fuzzed(3)
    @given(
        contents(annotations(SIZE, NAMES)), broken_files(), st.sampled_from(NAMES), st.booleans()
    )
    def run(content, image, name, train):
        (folder / vision_v1.ANNOTATIONS).write_bytes(content)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(image)
        objects = (
            {"DATASET__train_objects": ["Disk"], "DATASET__test_objects": ["Plate"]}
            if train
            else {}
        )
        with bounded_time(), writes_only(output):
            code = run_job(
                monkeypatch,
                "train" if train else "test",
                data,
                output,
                TRAIN_SETUPS__epochs=1,
                **objects,
            )
        told = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in told.err + told.out
        assert code == 0 or told.err.rpartition("error: ")[2].strip()
        (folder / name).write_bytes(whole)
        shutil.rmtree(output, ignore_errors=True)

    run()


@pytest.mark.filterwarnings("ignore")
def test_open_domain_on_odd_files_ends_with_0_or_2(places, monkeypatch, capsys):
    _, root, output = places
    files = sorted(p for p in root.rglob("*.*") if p.is_file())
    options = {
        "DATASET__name": "opendomain_test_dataset_ND",
        "DATASET__open_domain_test_object": ["steel"],
    }

    @fuzzed(3)
    @given(broken_files(), st.sampled_from(files))
    def run(content, path):
        whole = path.read_bytes()
        path.write_bytes(content)
        with bounded_time(), writes_only(output):
            code = run_job(monkeypatch, "test", root, output, **options)
        told = capsys.readouterr()
        assert code in (0, 2) and "Traceback" not in told.err + told.out
        assert code == 0 or path.name in told.err
        path.write_bytes(whole)
        shutil.rmtree(output, ignore_errors=True)

    run()
