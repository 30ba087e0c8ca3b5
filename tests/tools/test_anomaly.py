from __future__ import annotations

import csv
import json
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from datasets.build import build_anomaly_objects, view_settings
from datasets.readers.anomaly import AnomalyImage, AnomalyObject, draw_normal
from models.backbone import Backbone
from models.build import build_prior_method
from models.prior_method import PriorMethod
from tests.anomaly_data import write_converted_visa, write_mvtec, write_visa
from tests.helpers import JOBS, tiny_config
from tests.utils.metrics.plain_measures import plain_measures
from tools.anomaly import MEASURES, AnomalyTest
from tools.cli import run_main
from tools.methods import PRIOR
from tools.open_domain_files import write_answers
from tools.predictor import Predictor
from tools.tester import run_test
from utils.errors import DataError, OutputError
from utils.metrics.score_curves import ScoreCounts

SIZE, CROP = (40, 48), 32  # four windows
SEED = 54
LAYOUTS = {"mvtec": (write_mvtec, ["bottle", "cable"]), "visa": (write_visa, ["candle", "pcb1"])}
RANKS = ("worst", "median", "best", "highest of the normal ones")


@pytest.fixture(scope="module")
def bottles(tmp_path_factory):
    """Root of two objects in the layout of MVTec AD; only to be read."""
    root = tmp_path_factory.mktemp("MVTec_AD")
    write_mvtec(root, ["bottle", "cable"], size=SIZE)
    return root


@pytest.fixture
def data(bottles, tmp_path):
    """The same, which may be damaged."""
    return shutil.copytree(bottles, tmp_path / "data")


def config(root, tmp_path, name="mvtec", objects=("bottle", "cable"), **changes):
    options = {
        "DATASET__test_objects": list(objects),
        "TEST__method": PRIOR,
        "DATASET__crop_size": CROP,
    }
    return tiny_config(root, tmp_path / "log", **(options | {"DATASET__name": name} | changes))


def run(root, tmp_path, *names, **changes):
    return run_test(config(root, tmp_path, *names, **changes), "")


def read(folder, name="metrics"):
    return json.loads((folder / f"{name}.json").read_text())


def rows(folder):
    with (folder / "images.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def predictor_of(cfg):
    return Predictor.from_config(cfg, {PRIOR: build_prior_method(cfg)}, torch.device("cpu"))


def score_maps(predictor, item, supports):
    """(scores, mask) of every test image, by what the Predictor alone says."""
    predictor.set_support(supports, [None] * len(supports))
    scores = [p.score for p in predictor.predict_many(test.image for test in item.test)]
    masks = [
        None if test.mask is None else np.array(Image.open(test.mask)) > 0 for test in item.test
    ]
    return [
        (s, np.zeros(s.shape, bool) if m is None else m) for s, m in zip(scores, masks, strict=True)
    ]


@pytest.fixture
def encoded():
    """How many images have gone through a backbone so far."""
    count = Counter()

    def add(module, args):
        if isinstance(module, Backbone):
            count["images"] += len(args[0])

    hook = torch.nn.modules.module.register_module_forward_pre_hook(add)
    yield count
    hook.remove()


# --- Figures -----------------------------------------------------------------------------------------------------


def layout(root, kind):
    """Write two objects; returns the name of the data set and of the objects."""
    if kind == "converted visa":
        write_converted_visa(root, ["candle", "pcb1"], size=SIZE)
        return "visa", ["candle", "pcb1"]
    write, objects = LAYOUTS[kind.removesuffix("_ND")]
    write(root, objects, size=SIZE)
    return kind, objects


@pytest.mark.parametrize("kind", ["mvtec", "mvtec_ND", "visa", "visa_ND", "converted visa"])
def test_every_figure_is_that_of_the_score_maps(tmp_path, kind):
    name, objects = layout(tmp_path / "data", kind)
    cfg = config(
        tmp_path / "data",
        tmp_path,
        name,
        objects,
        DATASET__few_shot_repeated_multiple=2,
        DATASET__shot=2,
    )
    folder = run_test(cfg, "")
    predictor, found = predictor_of(cfg), read(folder)
    maps = {
        o.name: [
            score_maps(predictor, o, draw_normal(o.normal, o.name, 2, SEED + repeat))
            for repeat in range(2)
        ]
        for o in build_anomaly_objects(cfg)
    }
    assert (found["data_set"], found["shot"], found["seed"], found["unreadable"]) == (
        name,
        2,
        SEED,
        [],
    )
    assert list(found["anomaly"]["objects"]) == objects
    known = {o: [plain_measures(repeat) for repeat in maps[o]] for o in objects}
    for item, report in found["anomaly"]["objects"].items():
        assert report["images"] == 6 and list(report)[1:] == list(MEASURES)
        for measure in MEASURES:
            check(report[measure], [repeat[measure] for repeat in known[item]])
    for measure, report in found["anomaly"]["mean"].items():
        check(report, np.mean([[repeat[measure] for repeat in known[o]] for o in objects], axis=0))
    assert list(found["anomaly"]["mean"]) == list(MEASURES)
    check_images(cfg, rows(folder), maps)
    check_curves(
        read(folder, "curves")["curves"], {name: repeats[0] for name, repeats in maps.items()}
    )


def check(report, repeats):
    assert report["repeats"] == pytest.approx(repeats, abs=5e-4)
    assert (report["mean"], report["std"]) == pytest.approx(
        (np.mean(repeats), np.std(repeats)), abs=5e-4
    )


def check_images(cfg, found, maps):
    assert list(found[0]) == ["object", "image", "defect", "repeat", "score"]
    expected = [
        (o.name, test.image.relative_to(cfg.TEST.dataset_path).as_posix(), test.defect, str(repeat))
        for o in build_anomaly_objects(cfg)
        for test in o.test
        for repeat in range(2)
    ]
    assert [tuple(row.values())[:4] for row in found] == expected
    scores = [m[i][0].max() for repeats in maps.values() for i in range(6) for m in repeats]
    assert [float(row["score"]) for row in found] == pytest.approx(scores, abs=1e-6)


def check_curves(found, maps):
    assert [curve["name"] for curve in found] == list(maps)
    for curve in found:
        pixels = maps[curve["name"]]
        scores, labels = (np.concatenate([m[i].ravel() for m in pixels]) for i in (0, 1))
        assert curve["average_precision"] == pytest.approx(
            average_precision_score(labels, scores), abs=5e-4
        )
        assert curve["recall"][-1] == 1 and len(curve["threshold"]) > 20
        for place in (0, 10, len(curve["threshold"]) - 1):
            said = scores >= curve["threshold"][place] - 1e-6
            hits = (said & labels).sum()
            point = [hits / said.sum(), hits / labels.sum(), hits / (said | labels).sum()]
            assert [curve[k][place] for k in ("precision", "recall", "iou")] == pytest.approx(
                point, abs=1e-2
            )


def test_defects_of_tiny_images_are_found(bottles, tmp_path):
    """The data are easy: a method that scores the wrong way round, or looks at the wrong image, is far below."""
    mean = read(run(bottles, tmp_path))["anomaly"]["mean"]
    assert mean["image_auroc"]["mean"] > 0.9 and mean["pixel_auroc"]["mean"] > 0.9
    assert mean["aupro"]["mean"] > 0.7 and mean["pixel_ap"]["mean"] > 0.2


def test_without_an_abnormal_image_figures_are_undefined(data, tmp_path):
    for kind in ("spot", "line"):
        shutil.rmtree(data / "cable" / "test" / kind)
    folder = run(data, tmp_path)
    report = read(folder)["anomaly"]
    assert {report["objects"]["cable"][m]["mean"] for m in MEASURES} == {None}
    assert report["mean"]["aupro"] == report["objects"]["bottle"]["aupro"], (
        "of the other object alone"
    )
    assert [e["rank"] for e in read(folder / "gallery", "index") if e["class"] == "cable"] == [
        RANKS[3]
    ]


# --- Files -------------------------------------------------------------------------------------------------------


def test_gallery_of_the_extremes(bottles, tmp_path):
    folder = run(bottles, tmp_path, DATASET__few_shot_repeated_multiple=2)
    entries = read(folder / "gallery", "index")
    assert [(e["class"], e["rank"]) for e in entries] == [
        (o, rank) for o in ("bottle", "cable") for rank in RANKS
    ]
    first = [row for row in rows(folder) if row["repeat"] == "0"]
    for entry in entries:
        own = [
            r
            for r in first
            if r["object"] == entry["class"]
            and (r["defect"] == "good") == (entry["rank"] == RANKS[3])
        ]
        own.sort(key=lambda row: float(row["score"]))
        place = {"worst": 0, "median": len(own) // 2}.get(entry["rank"], -1)
        assert entry["caption"] == own[place]["image"]
        assert entry["scores"] == {"image score": float(own[place]["score"])}
        truth = [] if entry["rank"] == RANKS[3] else ["truth"]
        assert [panel["caption"] for panel in entry["panels"]] == [
            "support",
            "query",
            *truth,
            "score",
        ]
        for panel in entry["panels"]:
            assert np.array(Image.open(folder / "gallery" / panel["file"])).shape == (*SIZE, 3)
    support = np.array(
        Image.open(
            draw_normal(sorted((bottles / "cable/train/good").iterdir()), "cable", 1, SEED)[0]
        )
    )
    shown = np.array(Image.open(folder / "gallery" / entries[-1]["panels"][0]["file"]))
    assert np.abs(shown.astype(int) - support).mean() < 8, "but for JPEG"
    assert {p.name for p in folder.iterdir()} >= {
        "config.yaml",
        "test.log",
        "images.csv",
        "curves.json",
    }


# --- What is encoded and drawn -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "windows"), [("mvtec", 1), ("mvtec_ND", 4)])
def test_repeats_share_test_images_which_nd_sees_in_windows(
    bottles, tmp_path, encoded, name, windows
):
    """Of each object six test images, once; the supports of each repeat; for the gallery one such set and four."""
    for repeats in (1, 3):
        encoded.clear()
        run(
            bottles,
            tmp_path,
            name,
            RUN_NAME=str(repeats),
            DATASET__shot=2,
            DATASET__few_shot_repeated_multiple=repeats,
        )
        assert encoded["images"] == windows * 2 * (6 + 2 * repeats + 2 + 4)
    one, three = (read(tmp_path / "log" / n)["anomaly"]["objects"] for n in "13")
    for item in one:
        for measure in MEASURES:
            assert three[item][measure]["repeats"][0] == pytest.approx(
                one[item][measure]["mean"], abs=1e-6
            )
        assert len(set(three[item]["pixel_ap"]["repeats"])) == 3, "other supports, other figures"


def test_supports_of_fewer_shots_come_first_in_those_of_more(data, tmp_path):
    """An image that is broken fails the shots that draw it, by its name, and no others."""
    drawn = draw_normal(sorted((data / "bottle/train/good").iterdir()), "bottle", 4, SEED)
    for shot in (3, 2, 1):
        drawn[shot].write_bytes(b"")
        run(data, tmp_path, "mvtec", ["bottle"], DATASET__shot=shot, RUN_NAME=str(shot))
        with pytest.raises(DataError, match=str(drawn[shot])):
            run(data, tmp_path, "mvtec", ["bottle"], DATASET__shot=shot + 1, RUN_NAME="more")
    assert not (tmp_path / "log" / "more").exists()


def test_three_processes_find_what_one_does(bottles, tmp_path):
    """Also one that has no object to test, and with a broken image that another process reports."""
    root = shutil.copytree(bottles, tmp_path / "data")
    (root / "cable" / "test" / "spot" / "001.png").write_bytes(b"")
    folders = [run(root, tmp_path, NUM_GPUS=n, RUN_NAME=str(n)) for n in (1, 3)]
    first, other = [
        (read(f)["anomaly"], read(f)["unreadable"], rows(f), read(f, "curves")) for f in folders
    ]
    assert other == first
    assert first[0]["objects"]["cable"]["images"] == 5 and "spot/001.png" in first[1][0]


# --- Scores beyond 1 ---------------------------------------------------------------------------------------------


class Colours(torch.nn.Module):
    """A backbone whose tokens are mean colours, below zero where it is darker than the mean of ImageNet."""

    stride = 8

    def forward(self, images):
        return [torch.nn.functional.avg_pool2d(images, self.stride)]


@pytest.fixture
def tile(tmp_path):
    """An object of black images, and of a white spot on one of them."""
    image = np.zeros((64, 64, 3), np.uint8)
    for name in ("normal", "good", "bad"):
        image[16:32, 32:48] = 255 * (name == "bad")
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    Image.fromarray(image.any(2)).save(tmp_path / "mask.png")
    tests = [AnomalyImage(tmp_path / "bad.png", "spot", tmp_path / "mask.png")]
    tests.append(AnomalyImage(tmp_path / "good.png", "good", None))
    return AnomalyObject("tile", [tmp_path / "normal.png"], tests)


@pytest.fixture
def colourist(tmp_path):
    """An anomaly test by colours."""
    cfg = config(tmp_path, tmp_path)
    return AnomalyTest(
        cfg, Predictor({PRIOR: PriorMethod(Colours())}, view_settings(cfg), torch.device("cpu"))
    )


def test_figures_of_scores_over_1(tile, colourist):
    """White among black is as unlike as can be: 2."""
    result, maps = colourist.run(tile), score_maps(colourist.predictor, tile, tile.normal)
    assert 1.9 < maps[0][0].max() <= 2 and maps[1][0].max() < 0.01
    assert {m: v for m, (v,) in result.measures.items()} == pytest.approx(
        plain_measures(maps), abs=1e-6
    )
    assert result.measures["pixel_auroc"] == [pytest.approx(1, abs=0.01)]
    assert [score for *_, score in result.scores] == [maps[0][0].max(), maps[1][0].max()]
    assert result.curve["threshold"][0] > 1.9


def test_pictures_of_scores_over_1(tile, colourist, tmp_path):
    worst, normal = colourist.entries(tile, colourist.run(tile))
    (score, _), _ = score_maps(colourist.predictor, tile, tile.normal)
    levels = [entry.panels[-1][1].astype(int).sum(2) for entry in (worst, normal)]
    bright = levels[0] == levels[0].max()
    assert bright[score == score.max()].all() and not bright[score < 0.9 * score.max()].any()
    assert ((score > 1) & ~bright).any(), "what is over 1 is not cut off"
    assert (levels[1] == levels[0].min()).all(), "nothing in a normal image"
    answer = colourist.predictor.predict(tile.test[0].image)
    assert np.array_equal(answer.mask, score > 0.5)
    outcome = next(colourist.predictor.segment([tile.test[0].image], colourist.predictor.memory))
    write_answers(tmp_path / "out", "bad", outcome.image, {"": answer})
    kept = {
        kind: np.array(Image.open(tmp_path / "out" / kind / "bad.png"))
        for kind in ("scores", "masks")
    }
    assert np.array_equal(kept["scores"] == 65535, score >= 1 - 0.5 / 65535), (
        "what is over 1 is 1 in 16 bits"
    )
    assert np.array_equal(kept["masks"] > 0, answer.mask)
    histogram = ScoreCounts()
    histogram.update(score, answer.mask)
    assert histogram.counts.sum() == score.size and histogram.counts[1, -1] == (score >= 1).sum()


# --- Faults ------------------------------------------------------------------------------------------------------


def test_another_method_is_answered_by_the_prior_and_told_so(bottles, tmp_path, capsys):
    figures = [
        read(run(bottles, tmp_path, "mvtec", ["bottle"], TEST__method=method, RUN_NAME=method))[
            "anomaly"
        ]
        for method in ("SOFS", PRIOR)
    ]
    assert figures[0] == figures[1]
    assert capsys.readouterr().out.count("TEST.method is SOFS") == 1


def test_a_broken_test_image_is_left_out(data, tmp_path, capsys):
    """Also one whose mask is broken; the figures are those of the rest."""
    image, mask = data / "bottle/test/line/001.png", data / "bottle/ground_truth/spot/000_mask.png"
    for path in (image, mask):
        path.write_bytes(path.read_bytes()[:60])
    folder = run(data, tmp_path, DATASET__few_shot_repeated_multiple=2)
    report = read(folder)
    assert len(report["unreadable"]) == 2
    assert all(
        str(path) in fault for path, fault in zip((image, mask), report["unreadable"], strict=True)
    )
    told = capsys.readouterr().out
    assert all(told.count(str(path)) == 1 for path in (image, mask))
    assert {name: o["images"] for name, o in report["anomaly"]["objects"].items()} == {
        "bottle": 4,
        "cable": 6,
    }
    for path in (
        image,
        mask,
        data / "bottle/test/spot/000.png",
        data / "bottle/ground_truth/line/001_mask.png",
    ):
        path.unlink()
    again = run(data, tmp_path, DATASET__few_shot_repeated_multiple=2, RUN_NAME="again")
    assert [row["image"] for row in rows(again)] == [row["image"] for row in rows(folder)]
    for name in MEASURES:
        figure, known = (read(f)["anomaly"]["mean"][name]["mean"] for f in (again, folder))
        assert figure == pytest.approx(known, abs=1e-6)


@pytest.fixture
def fault(data, tmp_path, monkeypatch, capsys):
    """Run a job by its command line, with some --opts; return the error."""

    def fault(job, *opts):
        (tmp_path / "my.yaml").write_text(config(data, tmp_path).dump())
        monkeypatch.setattr(
            sys, "argv", ["job", "--cfg", str(tmp_path / "my.yaml"), "--opts", *map(str, opts)]
        )
        assert run_main("", JOBS[job]) == 2
        output = capsys.readouterr()
        (line,) = [line for line in output.err.splitlines() if line.startswith("error: ")]
        assert "Traceback" not in output.err + output.out
        log = tmp_path / "log"
        assert not (log.exists() and any(log.iterdir())), "no run folder is left"
        return line

    return fault


def says(line, *parts):
    return all(str(part) in line for part in parts)


@pytest.mark.parametrize("broken", ["test", "train"])
def test_an_object_that_cannot_be_tested_takes_nothing_from_the_others(data, tmp_path, broken):
    """Its fault ends the job with what was found on the others, report and all; where nothing was found, nothing is
    left."""
    alone = read(run(data, tmp_path, RUN_NAME="alone", DATASET__test_objects=["bottle"]))
    for path in (data / "cable" / broken).rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    words = (
        "cable: no test image could be read"
        if broken == "test"
        else r"cable: .*cable/train/good/\d+\.png"
    )
    with pytest.raises(DataError, match=rf"{words}.*\(the results of the rest are in .*log/run\)"):
        run(data, tmp_path)
    report = read(tmp_path / "log" / "run")
    assert report["anomaly"]["objects"] == alone["anomaly"]["objects"]
    assert any(fault.startswith("cable") for fault in report["unreadable"])
    assert {"report.html", "images.csv", "run.json"} <= {
        path.name for path in (tmp_path / "log" / "run").iterdir()
    }
    with pytest.raises(DataError, match=words):
        run(data, tmp_path, RUN_NAME="none", DATASET__test_objects=["cable"])
    assert not (tmp_path / "log" / "none").exists()


def test_a_disk_that_is_full_for_one_object_takes_nothing_from_the_others(
    data, tmp_path, monkeypatch
):
    def refuse(detection, item, before=AnomalyTest.run):
        if item.name == "cable":
            raise OutputError("a score map cannot be written (No space left on device)")
        return before(detection, item)

    monkeypatch.setattr(AnomalyTest, "run", refuse)
    with pytest.raises(
        DataError, match=r"^cable: a score map cannot be written .*the results of the rest are in"
    ):
        run(data, tmp_path)
    assert list(read(tmp_path / "log" / "run")["anomaly"]["objects"]) == ["bottle"]


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("spot line", "with a defect, so no figure can"),
        ("good", "without a defect, so no figure of whole images can"),
    ],
)
def test_a_test_of_one_kind_alone_says_what_figure_is_lacking(data, tmp_path, capsys, gone, words):
    for kind in gone.split():
        shutil.rmtree(data / "cable" / "test" / kind)
    run(data, tmp_path, DATASET__test_objects=["cable"])
    assert f"cable: there is no test image {words} be given" in capsys.readouterr().out


def test_more_shots_than_images_are_told_before_anything_runs(fault, data, encoded):
    (data / "cable/train/good/003.png").unlink()
    line = fault("test", "DATASET.shot", 4)
    assert says(line, "cable has 3 normal images", "DATASET.shot is 4", "at most 3")
    assert not encoded["images"], "bottle would have had enough"


def test_objects_that_are_not_there(fault, data):
    line = fault("test", "DATASET.test_objects", "[bottle, botle]")
    assert says(
        line,
        data / "botle",
        "check the object's name and TEST.dataset_path",
        "holds: bottle, cable",
    )
    line = fault("test", "DATASET.test_objects", "[]")
    assert says(
        line, data, "not all objects of mvtec", "lacks capsule, carpet", "DATASET.test_objects"
    )
    line = fault("test", "TEST.dataset_path", data / "gone")
    assert says(line, f"{data / 'gone'}: no such folder", "set TEST.dataset_path")
    line = fault(
        "test",
        "DATASET.name",
        "visa",
        "TEST.dataset_path",
        data / "bottle",
        "DATASET.test_objects",
        "[test]",
    )
    assert says(line, data / "bottle/split_csv/1cls.csv", "set TEST.dataset_path")


@pytest.mark.parametrize("folder", ["train/good", "test"])
def test_folders_that_are_not_there(fault, data, folder):
    shutil.rmtree(data / "cable" / folder)
    assert says(fault("test"), f"{data / 'cable' / folder}: no images")


@pytest.mark.parametrize("name", ["mvtec", "visa_ND"])
@pytest.mark.parametrize("objects", ["[]", "[capsule]"])
def test_there_is_nothing_to_train(fault, name, objects):
    line = fault("train", "DATASET.name", name, "DATASET.train_objects", objects)
    assert says(line, f"DATASET.name is {name}", "nothing to train on", "VISION_V1", "test.py")
