from __future__ import annotations

import pytest

from datasets.splits import VISION_V1_TEST
from tests.helpers import TINY, write_product
from tools.sweep.__main__ import build_parser, build_sweep

SET_BY_SPLITS = ("RUN_NAME", "DATASET.train_objects", "DATASET.test_objects", "TRAIN.SOFS.smooth_r")
QUICK = {
    "TRAIN_SETUPS.epochs": 1,
    "DATASET.few_shot_repeated_multiple": 2,
    "DATASET.vision_data_save": False,
}


@pytest.fixture(scope="session")
def vision(tmp_path_factory):
    """Root of all 14 products of VISION V1, three images each; only to be read."""
    root = tmp_path_factory.mktemp("VISION_V1")
    for name in {name for group in VISION_V1_TEST for name in group}:
        write_product(root, name, {"spot": 3}, (64, 80))
    return root


@pytest.fixture(scope="session")
def tiny():
    """The words of --opts for small and quick runs that write below `output`; `changes` with `__` for the dots."""

    def words(output, **changes):
        values = {key: value for key, value in TINY.items() if key not in SET_BY_SPLITS} | QUICK
        values |= {"OUTPUT_DIR": output} | {
            key.replace("__", "."): value for key, value in changes.items()
        }
        return ["--opts", *(str(part) for pair in values.items() for part in pair)]

    return words


@pytest.fixture(scope="session")
def plan():
    """The runs of a command line, by their name."""

    def runs(*words):
        return {
            run.name: run
            for run in build_sweep(build_parser().parse_args([*map(str, words)])).runs()
        }

    return runs
