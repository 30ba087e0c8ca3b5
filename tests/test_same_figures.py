"""The same command gives the same figures, byte for byte, for any workers and batch size."""

from __future__ import annotations

import json

import pytest
import torch

from models.build import build_model
from tests.anomaly_data import write_mvtec
from tests.helpers import tiny_config
from tests.tools.open_domain_data import QUERIES, write_object
from tools.checkpoint import save_head
from tools.evaluator import run_test
from tools.trainer import run_training

# more workers than cores
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
LOADERS = [(0, 1), (1, 3), (3, 2)]  # workers and batch sizes
FILES = "metrics.json queries.csv curves.json"


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Settings of an untrained head."""
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    save_head(folder / "head.safetensors", build_model(tiny_config(folder, folder)), "")
    path = str(folder / "head.safetensors")
    return {"TEST__load_checkpoint": True, "TEST__load_model_path": path}


def figures(folder):
    """Content of every file of figures, by name."""
    stems = {"metrics", "curves", "queries", "images", "history"}
    files = [path for path in folder.iterdir() if path.stem.removesuffix("_validation") in stems]
    return {path.name: path.read_bytes() for path in files}


def check(job, root, folder, expected, loaders=LOADERS, **options):
    """Run a job with every loader, and with the first one twice: all leave the same figures."""
    runs = []
    for number, (workers, batch) in enumerate([*loaders, loaders[0]]):
        loading = {"TRAIN_SETUPS__num_workers": workers, "TEST_SETUPS__batch_size": batch}
        run = job(tiny_config(root, folder, RUN_NAME=str(number), **options, **loading), "")
        assert json.loads((run / "run.json").read_text())["processes"] == 1
        runs.append(figures(run))
    assert runs[0].keys() == set(expected.split())
    for number, files in enumerate(runs[1:], 1):
        assert [name for name in files if files[name] != runs[0][name]] == [], f"run {number}"
    return runs[0]


def test_of_a_split(surfaces, head, tmp_path, one_thread):
    options = {"TEST__threshold": "auto", "DATASET__few_shot_repeated_multiple": 2} | head
    options |= {"TEST_SETUPS__ND_batch_size": 3}  # passes that queries of 4 windows do not fill
    files = check(run_test, surfaces, tmp_path, FILES, **options)
    other = run_test(tiny_config(surfaces, tmp_path, RUN_NAME="other", RNG_SEED=3, **options), "")
    unequal = [files[name] != content for name, content in figures(other).items()]
    assert all(unequal), "the seed counts"
    three = run_test(tiny_config(surfaces, tmp_path, RUN_NAME="3", NUM_GPUS=3, **options), "")
    assert json.loads((three / "run.json").read_text())["processes"] == 3
    assert figures(three) == files, "any number of processes"


def test_of_open_domain_objects(head, tmp_path):
    write_object(tmp_path / "data", "steel", labels=list(QUERIES))
    options = {"DATASET__name": "opendomain_test_dataset_ND"} | head
    options |= {"DATASET__open_domain_test_object": ["steel"]}
    check(run_test, tmp_path / "data", tmp_path, FILES, LOADERS[:2], **options)


def test_of_anomaly_detection(tmp_path):
    write_mvtec(tmp_path / "data", ("bottle", "cable"))
    options = {"DATASET__name": "mvtec", "DATASET__test_objects": ["bottle", "cable"]}
    options |= {"TEST__method": "prior", "DATASET__few_shot_repeated_multiple": 2}
    names = FILES.replace("queries", "images")
    check(run_test, tmp_path / "data", tmp_path, names, LOADERS[:2], **options)


@pytest.mark.parametrize("bank", [0, 2])
def test_of_a_training(surfaces, tmp_path, bank):
    options = {"TRAIN__feature_bank": bank, "TRAIN_SETUPS__TEST_SETUPS__val_state": True}
    names = f"{FILES} history.json " + " ".join(
        name.replace(".", "_validation.") for name in FILES.split()
    )
    check(run_training, surfaces, tmp_path, names, LOADERS[::2], **options)
