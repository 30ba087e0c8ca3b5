"""The same command gives the same figures, byte for byte, for any workers and batch size."""

from __future__ import annotations

import json

import pytest
import torch

from models.build import build_model
from tests.helpers import tiny_config
from tools.checkpoint import save_head
from tools.evaluator import run_test
from tools.trainer import run_training

# more workers than cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
FILES = {"metrics.json", "queries.csv", "curves.json"}


def figures(folder):
    """Content of every file of figures, by name."""
    stems = {"metrics", "curves", "queries", "history"}
    files = [path for path in folder.iterdir() if path.stem.removesuffix("_validation") in stems]
    return {path.name: path.read_bytes() for path in files}


def check(job, root, folder, expected, **options):
    """Run a job with two loaders, which leave the same figures."""
    runs = []
    for workers, batch in ((0, 1), (3, 2)):
        loading = {"TRAIN_SETUPS__num_workers": workers, "TEST_SETUPS__batch_size": batch}
        loading |= {"RUN_NAME": f"with {workers}"}
        runs.append(figures(job(tiny_config(root, folder, **options, **loading), "")))
    assert runs[0].keys() == expected
    assert [name for name in runs[1] if runs[1][name] != runs[0][name]] == []
    return runs[0]


def test_of_a_split(surfaces, tmp_path, one_thread):
    torch.manual_seed(0)
    head = tmp_path / "head.safetensors"
    save_head(head, build_model(tiny_config(surfaces, tmp_path)), "")
    options = {"TEST__load_checkpoint": True, "TEST__load_model_path": str(head)}
    options |= {"TEST__threshold": "auto", "DATASET__few_shot_repeated_multiple": 2}
    options |= {"TEST_SETUPS__ND_batch_size": 3}  # passes that queries of 4 windows do not fill
    files = check(run_test, surfaces, tmp_path, FILES, **options)
    other = run_test(tiny_config(surfaces, tmp_path, RUN_NAME="other", RNG_SEED=3, **options), "")
    unequal = [files[name] != content for name, content in figures(other).items()]
    assert all(unequal), "the seed counts"
    three = run_test(tiny_config(surfaces, tmp_path, RUN_NAME="3", NUM_GPUS=3, **options), "")
    assert json.loads((three / "run.json").read_text())["processes"] == 3
    assert figures(three) == files, "any number of processes"


@pytest.mark.parametrize("bank", [0, 2])
def test_of_a_training(surfaces, tmp_path, bank):
    options = {"TRAIN__feature_bank": bank, "TRAIN_SETUPS__TEST_SETUPS__val_state": True}
    names = FILES | {name.replace(".", "_validation.") for name in FILES} | {"history.json"}
    check(run_training, surfaces, tmp_path, names, **options)
