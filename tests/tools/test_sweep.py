from __future__ import annotations

import json
import shutil

import pytest

from datasets.readers.mvtec import MVTEC_OBJECTS
from datasets.splits import VISION_V1_TEST
from method_config import load_config
from tests.anomaly_data import write_mvtec
from tests.helpers import TINY, own_logging, write_product
from tools.sweep import build_parser, build_sweep, carry_out, check_folders, is_finished, main
from tools.trainer import run_training
from utils.errors import ConfigError

SUMMARY = {"summary.md", "summary.json", "summary.csv"}
# what a protocol sets is not for a test to change
QUICK = {key: value for key, value in TINY.items() if "objects" not in key and "smooth" not in key}
QUICK |= {"TRAIN_SETUPS.epochs": 1, "DATASET.few_shot_repeated_multiple": 1}
QUICK |= {"DATASET.vision_data_save": False}
del QUICK["RUN_NAME"]


def opts(output, **changes):
    """--opts for small and quick runs that write below `output`; `changes` with `__` for dots."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    values = QUICK | {"OUTPUT_DIR": output} | changed
    return ["--opts", *(str(part) for pair in values.items() for part in pair)]


def plan(*words):
    """The runs of a command line, by name."""
    runs = build_sweep(build_parser().parse_args([*map(str, words)])).runs()
    return {run.cfg.RUN_NAME: run for run in runs}


def metrics(run):
    return json.loads((run.folder / "metrics.json").read_text())


def figures(folder, **keys):
    entries = json.loads((folder / "summary.json").read_text())["figures"]
    return [entry for entry in entries if keys.items() <= entry.items()]


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    """Settings for all 14 products of VISION V1, two or three images each."""
    root = tmp_path_factory.mktemp("VISION_V1")
    for name in {name for group in VISION_V1_TEST for name in group}:
        write_product(root, name, {"spot": 3 if name in ("Ring", "Lens") else 2}, (64, 80))
    return {"TRAIN__dataset_path": root, "TEST__dataset_path": root}


@pytest.fixture(scope="module")
def finished(vision, tmp_path_factory):
    """Words and folder of a sweep over one split."""
    output = tmp_path_factory.mktemp("log")
    words = ["vision_v1", "--splits", "0", "--shots", "1", *opts(output, **vision)]
    with own_logging():
        assert main(words) == 0
    return words, output / "vision_v1"


def test_a_sweep_trains_tests_and_sums_up(finished):
    words, folder = finished
    runs = plan(*words)
    assert {path.name for path in folder.iterdir()} == {*runs} | SUMMARY
    for run in runs.values():
        assert (run.folder / "metrics.json").exists() == bool(run.training)
        if not run.training:
            continue
        assert load_config(run.folder / "config.yaml") == run.cfg
        content = metrics(run)
        where = {"shot": content["shot"], "method": "SOFS", "split": content["split"]}
        (miou,) = figures(folder, **where, metric="miou")
        assert miou["mean"] == pytest.approx(content["methods"]["SOFS"]["miou"]["mean"])
        classes = {f["class"]: f["mean"] for f in figures(folder, **where, metric="iou")}
        expected = content["methods"]["SOFS"]["classes"]
        assert classes == pytest.approx({name: of["iou"] for name, of in expected.items()})
        assert {name.split("/")[0] for name in classes} == set(VISION_V1_TEST[content["split"]])
    (mean,) = figures(folder, shot=1, method="SOFS", split="mean", metric="miou")
    text = (folder / "summary.md").read_text()
    assert f" {100 * mean['mean']:.2f} |" in text
    # the same command again keeps every run
    files = [*folder.glob("*/metrics.json"), *folder.glob("*/checkpoints/*")]
    before = [file.stat().st_mtime_ns for file in files]
    (folder / "summary.md").unlink()
    assert main(words) == 0
    assert [file.stat().st_mtime_ns for file in files] == before
    assert (folder / "summary.md").read_text() == text


def test_other_settings_in_the_same_folder_are_refused(finished, tmp_path, capsys):
    """Before anything runs: the split that is missing, too. Of a test, another head as well."""
    words, folder = finished
    assert main(["vision_v1", "--splits", "1", "0", *words[3:], "DATASET.s_in_shot", "3"]) == 2
    error = capsys.readouterr().err
    for word in ("train_split0_seed54/config.yaml", "s_in_shot is 2", "has 3", "--name"):
        assert word in error
    assert not (folder / "train_split1_seed54").exists()
    (tmp_path / "head.safetensors").touch()
    with pytest.raises(ConfigError, match=r"TEST\.load_model_path is .*train_split0"):
        check_folders(list(plan(*words, "--heads", tmp_path / "head.safetensors").values()))


def test_an_interrupted_sweep_goes_on(vision, tmp_path):
    """Only what is missing runs: the training from its last whole epoch, then its test.

    That is of the head that was best in the validation. A training is left out if its tests are
    there.
    """
    words = ["vision_v1", "--splits", "0", "--shots", "2"]
    words += opts(tmp_path, TRAIN_SETUPS__epochs=2, **vision)
    words += ["DATASET.train_objects", "[Ring]", "DATASET.test_objects", "[Lens]"]
    val = "TRAIN_SETUPS.TEST_SETUPS.val_"
    words += [f"{val}state", "True", f"{val}share", "0.4"]
    training, test = runs = list(plan(*words).values())
    with own_logging():
        run_training(training.config({"TRAIN_SETUPS.epochs": 1}), str(training.file))
    (training.folder / "config.yaml").write_text(training.cfg.dump())
    assert not is_finished(training)
    assert main(words) == 0
    log = (training.folder / "train.log").read_text()
    assert log.count("epoch 1: loss") == log.count("epoch 2: loss") == 1
    assert all(map(is_finished, runs))
    used = load_config(test.folder / "config.yaml").TEST.load_model_path
    assert used == str(training.checkpoints / "best.safetensors")
    # a test that is not whole, or of another head
    ended, content = test.folder / "run.json", test.folder / "metrics.json"
    other_head = json.dumps(metrics(test) | {"head_sha256": "0" * 64})
    for file, text in ((ended, ""), (ended, '{"failed": ["a.png"]}'), (content, other_head)):
        whole = file.read_text()
        file.write_text(text)
        assert not is_finished(test)
        file.write_text(whole)
    shutil.rmtree(training.folder)
    carry_out(runs)
    assert not training.folder.exists()


def test_anomaly_detection_on_all_objects(tmp_path):
    shape = {"good": 1, "abnormal": 1, "size": (48, 64), "kinds": ["spot"]}
    write_mvtec(tmp_path / "data", MVTEC_OBJECTS, **shape)
    words = ["mvtec", "--shots", "1", *opts(tmp_path, TEST__dataset_path=tmp_path / "data")]
    assert main(words) == 0
    folder, runs = tmp_path / "mvtec", plan(*words)
    assert {path.name for path in folder.iterdir()} == {"test_seed54_1shot"} | SUMMARY
    report = metrics(runs["test_seed54_1shot"])["anomaly"]
    assert list(report["objects"]) == list(MVTEC_OBJECTS)
    for name, measured in (report["objects"] | {"mean": report["mean"]}).items():
        (figure,) = figures(folder, shot=1, object=name, metric="aupro")
        expected = (measured["aupro"]["mean"], measured["aupro"]["std"])
        assert (figure["mean"], figure["std"]) == pytest.approx(expected, abs=1e-12)
