from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from datasets.build import build_train_index
from datasets.splits import CROSS_DOMAIN_TEST, DS_SPECTRUM_TEST
from method_config import load_config
from tests.helpers import draw_defect, own_logging, surface
from tools.sweep.__main__ import main
from tools.sweep.runs import carry_out, check_folders, is_finished
from tools.tester import run_test
from tools.trainer import Trainer
from utils.errors import ConfigError, WeightsError
from utils.run_folder import create_run_folder

SUMMARY = {"summary.md", "summary.json", "summary.csv"}
ONE = {"DATASET__train_objects": "[Ring]", "DATASET__test_objects": "[Lens]"}


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def stamps(folder):
    """When each result and each trained head below a sweep's folder was written."""
    files = [*folder.glob("*/metrics.json"), *folder.glob("*/checkpoints/*")]
    return {file.relative_to(folder).as_posix(): file.stat().st_mtime_ns for file in files}


def figures(folder, **keys):
    found = json.loads((folder / "summary.json").read_text())["figures"]
    return [figure for figure in found if keys.items() <= figure.items()]


@pytest.fixture(scope="module")
def finished(vision, tiny, tmp_path_factory):
    """Words and folder of a sweep over two splits and two shots."""
    output = tmp_path_factory.mktemp("log")
    words = ["vision_v1", "--splits", "0", "2", "--shots", "1", "2"]
    words += tiny(output, TRAIN__dataset_path=vision, TEST__dataset_path=vision)
    with own_logging():
        assert main(words) == 0
    return words, output / "vision_v1"


@pytest.fixture
def small(vision, tiny, tmp_path, plan):
    """Words, folder and runs of a quick sweep that has not run yet: one training, two tests of one class."""
    words = ["vision_v1", "--splits", "0", "--shots", "1", "2"]
    words += tiny(
        tmp_path,
        TRAIN__dataset_path=vision,
        TEST__dataset_path=vision,
        TRAIN_SETUPS__epochs=2,
        **ONE,
    )
    return words, tmp_path / "vision_v1", plan(*words)


def test_a_sweep_trains_tests_and_sums_up(finished):
    _, folder = finished
    runs = {f"train_split{s}_seed54" for s in (0, 2)}
    runs |= {f"test_split{s}_seed54_{k}shot" for s in (0, 2) for k in (1, 2)}
    assert {path.name for path in folder.iterdir()} == runs | SUMMARY
    for split, ratio, smooth in ((0, 0.01, 1), (2, 0.01, 1e5)):
        for name in (f"train_split{split}_seed54", f"test_split{split}_seed54_1shot"):
            cfg = load_config(folder / name / "config.yaml")
            assert (cfg.DATASET.area_resize_ratio, cfg.TRAIN.SOFS.smooth_r, cfg.DATASET.split) == (
                ratio,
                smooth,
                split,
            )
    for file in folder.glob("train_*"):
        assert not (file / "metrics.json").exists()
    products = {c["class"].split("/")[0] for c in figures(folder, split=2, metric="iou")}
    assert products == {"Groove", "Lens", "Screw", "Cylinder"}


def test_the_summary_is_that_of_the_tests(finished):
    _, folder = finished
    tests = [metrics(file) for file in folder.glob("test_*")]
    for content in tests:
        for name, method in content["methods"].items():
            where = {"shot": content["shot"], "method": name, "split": content["split"]}
            (miou,) = figures(folder, **where, metric="miou")
            assert (miou["mean"], miou["std"]) == pytest.approx(
                (method["miou"]["mean"], method["miou"]["std"])
            )
            classes = {f["class"]: f["mean"] for f in figures(folder, **where, metric="iou")}
            assert classes == pytest.approx(
                {label: known["iou"] for label, known in method["classes"].items()}
            )
    for shot in (1, 2):
        both = [t["methods"]["SOFS"]["miou"]["repeats"] for t in tests if t["shot"] == shot]
        (mean,) = figures(folder, shot=shot, method="SOFS", split="mean", metric="miou")
        assert mean["std"] == pytest.approx(np.std(np.mean(both, 0)))
    text = (folder / "summary.md").read_text()
    assert (
        text.startswith("# vision_v1\n")
        and f"{100 * mean['mean']:.2f} +- {100 * mean['std']:.2f}" in text
    )


def test_a_test_of_a_sweep_is_the_test_of_test_py(finished, tmp_path):
    _, folder = finished
    cfg = load_config(
        folder / "test_split2_seed54_2shot" / "config.yaml", ["OUTPUT_DIR", str(tmp_path)]
    )
    assert (
        metrics(run_test(cfg, ""))["methods"]
        == metrics(folder / "test_split2_seed54_2shot")["methods"]
    )


def test_the_same_command_again_keeps_every_run(finished):
    words, folder = finished
    before = stamps(folder)
    text = (folder / "summary.md").read_text()
    (folder / "summary.md").unlink()
    assert main(words) == 0
    assert stamps(folder) == before
    assert (folder / "summary.md").read_text() == text


def test_an_interrupted_sweep_goes_on(small):
    """Only what is missing runs: a test; then the training, from its last whole epoch, and its tests."""
    words, folder, runs = small
    training, first, second = runs.values()

    class Interrupted(Trainer):
        def _save(self):
            super()._save()
            raise KeyboardInterrupt

    create_run_folder(training.folder, training.cfg)
    with pytest.raises(KeyboardInterrupt):
        Interrupted(training.cfg, build_train_index(training.cfg), training.folder).run([])
    assert not is_finished(training)
    assert main(words) == 0
    told = (training.folder / "train.log").read_text()
    assert "epoch 2: loss" in told and "epoch 1: loss" not in told
    assert all(is_finished(run) for run in runs.values())
    before = stamps(folder)
    shutil.rmtree(second.folder)
    assert main(words) == 0
    after = stamps(folder)
    assert {name for name in after if after[name] != before[name]} == {
        f"{second.name}/metrics.json"
    }
    assert main([*words[:4], "3", *words[6:]]) == 0, "another shot"
    assert stamps(folder).items() > after.items() and len(stamps(folder)) == len(after) + 1
    assert first.training is second.training is training


def test_the_tests_of_a_new_training_are_done_again(small):
    _, folder, runs = small
    training, first, second = runs.values()
    carry_out(list(runs.values()))
    before = stamps(folder)
    shutil.rmtree(training.folder)
    carry_out(list(runs.values()))
    assert not training.folder.exists(), "not needed: its tests are there"
    shutil.rmtree(second.folder)
    carry_out(list(runs.values()))
    after = stamps(folder)
    assert set(after) == set(before) and all(after[name] > before[name] for name in before)
    assert metrics(first.folder)["methods"]["SOFS"]["miou"]["mean"] is not None


@pytest.mark.parametrize("fault", ["cut off", "failed", "another head"])
def test_a_test_that_is_not_whole_is_done_again(small, fault):
    """And what it had found moves beside its folder."""
    _, folder, runs = small
    training, first, second = runs.values()
    carry_out([training, first])
    if fault == "cut off":
        (first.folder / "run.json").unlink()
    elif fault == "failed":
        (first.folder / "run.json").write_text(
            json.dumps({"failed": ["original could not be tested"]})
        )
    else:
        metrics_file = first.folder / "metrics.json"
        metrics_file.write_text(json.dumps(metrics(first.folder) | {"head_sha256": "0" * 64}))
    assert is_finished(training) and not is_finished(first) and not is_finished(second)
    carry_out(list(runs.values()))
    assert all(is_finished(run) for run in runs.values())
    assert (folder / f"{first.name}.1" / "metrics.json").is_file() and not (
        folder / f"{second.name}.1"
    ).exists()


def test_the_best_head_is_tested_where_there_is_one(small):
    words, _, runs = small
    training, first, second = runs.values()
    carry_out([training, first])
    shutil.copy(training.head, training.head.with_name("best.safetensors"))
    carry_out(list(runs.values()))
    used = [load_config(run.folder / "config.yaml").TEST.load_model_path for run in (first, second)]
    assert used == [
        str(training.folder / "checkpoints" / f"{n}.safetensors") for n in ("head", "best")
    ]
    check_folders(list(runs.values()))
    assert main(words) == 0


def test_a_training_that_validates_gives_its_best_head_to_the_tests(small, plan):
    words, _, _ = small
    runs = plan(
        *words,
        "TRAIN_SETUPS.TEST_SETUPS.val_state",
        "True",
        "TRAIN_SETUPS.TEST_SETUPS.val_share",
        "0.4",
    )
    training, *tests = runs.values()
    carry_out(list(runs.values()))
    assert is_finished(training) and (training.folder / "metrics_validation.json").is_file()
    assert not (training.folder / "metrics.json").exists(), "its test is that of the sweep"
    for run in tests:
        used = load_config(run.folder / "config.yaml").TEST.load_model_path
        assert used == str(training.folder / "checkpoints" / "best.safetensors")


def test_a_broken_state_names_file_and_remedy(small):
    _, _, runs = small
    training = next(iter(runs.values()))
    (training.folder / "checkpoints").mkdir(parents=True)
    (training.folder / "checkpoints" / "state.pth").write_bytes(b"junk")
    with pytest.raises(
        WeightsError, match=rf"{training.folder}.*state\.pth .*remove it to train anew"
    ):
        carry_out(list(runs.values()))


def test_another_config_in_the_same_folder_is_refused(finished, capsys):
    """Before anything runs: the split that is missing, too."""
    words, folder = finished
    before = stamps(folder)
    assert main(["vision_v1", "--splits", "1", "2", *words[4:], "DATASET.s_in_shot", "3"]) == 2
    error = capsys.readouterr().err
    for word in ("train_split2_seed54/config.yaml", "DATASET.s_in_shot is 2", "has 3", "--name"):
        assert word in error
    assert stamps(folder) == before and not (folder / "train_split1_seed54").exists()


def test_only_the_head_of_the_own_training_may_differ(finished, plan, tmp_path):
    """A test of another head has another result."""
    words, _ = finished
    check_folders(list(plan(*words).values()))
    (tmp_path / "head.safetensors").touch()
    with pytest.raises(ConfigError, match=r"TEST\.load_model_path is .*train_split0"):
        check_folders(list(plan(*words, "--heads", tmp_path / "head.safetensors").values()))


# --- Defect Spectrum ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spectrum(tmp_path_factory):
    """All objects of Defect Spectrum as downloaded, three images each, in the two layouts."""
    root = tmp_path_factory.mktemp("DS_Spectrum")
    for name in {name for group in DS_SPECTRUM_TEST for name in group}:
        nested = not name.startswith("DS-") and not name.endswith("_VISION")
        place = "DS-MVTec" if nested else "DS-VISION" if name.endswith("_VISION") else ""
        folder, rng = root / place / name.removesuffix("_VISION"), np.random.default_rng(len(name))
        for number in range(3):
            image, mask = surface((64, 80), rng), np.zeros((64, 80), np.uint8)
            top, bottom, left, right = draw_defect(image, "spot", rng)
            mask[top:bottom, left:right] = 1
            for kind, suffix, pixels in (("image", "", image), ("mask", "_mask", mask)):
                path = folder / kind / ("cut" if nested else "") / f"{number:03d}{suffix}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), pixels)
    return root


def test_defect_spectrum_by_the_prior(spectrum, tiny, tmp_path):
    words = [
        "ds_spectrum",
        "--splits",
        "1",
        "--shots",
        "1",
        *tiny(tmp_path, TEST__dataset_path=spectrum),
    ]
    assert main([*words, "TEST.method", "prior"]) == 0
    folder = tmp_path / "ds_spectrum"
    assert {path.name for path in folder.iterdir()} == {"test_split1_seed54_1shot"} | SUMMARY
    assert {f["class"] for f in figures(folder, metric="iou")} == {
        f"{name}/1" for name in DS_SPECTRUM_TEST[1]
    }
    assert {f["method"] for f in figures(folder)} == {"prior"}


def test_heads_of_vision_are_tested_on_defect_spectrum(finished, spectrum, tiny, tmp_path):
    heads = finished[1] / "train_split{split}_seed{seed}" / "checkpoints" / "head.safetensors"
    words = ["vision_to_ds", "--splits", "2", "--shots", "1", "--heads", str(heads)]
    opts = tiny(tmp_path, TEST__dataset_path=spectrum, DATASET__few_shot_repeated_multiple=1)
    assert main(words + opts) == 0
    folder = tmp_path / "vision_to_ds"
    content = metrics(folder / "test_split2_seed54_1shot")
    assert content["data_set"] == "DS_Spectrum_DS_ND"
    assert set(content["methods"]["SOFS"]["classes"]) == {f"{name}/1" for name in CROSS_DOMAIN_TEST}
    assert (folder / "summary.md").read_text().count("carpet/1") == 1


def test_a_sweep_is_no_process_of_torchrun(small, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert main(small[0]) == 2
    assert "without torchrun" in capsys.readouterr().err and not small[1].exists()
