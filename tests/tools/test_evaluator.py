from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datasets.build import build_test_index, view_settings
from datasets.episodes import EpisodeList
from datasets.queries import EvaluationQueries
from tests.helpers import evaluate_into, tiny_config, untrained_predictor, write_product
from tools.evaluator import Protocol, evaluate
from utils.distributed import launch
from utils.errors import DataError

METHODS = ("SOFS", "prior")


@pytest.fixture
def broken(surfaces, tmp_path):
    """The data set with one image cut off; returns its root and that image."""
    shutil.copytree(surfaces, tmp_path / "data")
    path = tmp_path / "data" / "Disk" / "train" / "line_1.png"
    path.write_bytes(path.read_bytes()[:300])
    return tmp_path / "data", path


def run(predictor, root, tmp_path, protocol, **changes):
    cfg = tiny_config(root, tmp_path / "log", **changes)
    return evaluate(predictor, build_test_index(cfg), view_settings(cfg), protocol)


@pytest.mark.parametrize("scale_by", ["support", "query"])
def test_metrics_agree_with_the_masks_of_the_predictor(predictor, surfaces, tmp_path, scale_by):
    cfg = tiny_config(surfaces, tmp_path / "log", DATASET__area_resize_ratio=0.0055)
    index, settings = build_test_index(cfg), view_settings(cfg)
    report = evaluate(predictor, index, settings, Protocol(shot=2, seed=5, scale_by=scale_by)).report()["methods"]
    queries = EvaluationQueries(EpisodeList(index, 2, 5), settings, scale_by=scale_by)
    pixels = {(method, name): np.zeros(4) for method in METHODS for name in ("Disk/spot", "Disk/line")}
    windowed = set()
    for number in range(len(queries)):
        query = queries[number]
        windowed.add(query.supports[0].windowed)
        memory = predictor.remember(query.supports[0])
        for method, answer in next(predictor.segment([query.image], memory)).answers.items():
            found, truth = answer.score > 0.5, query.target > 0
            pixels[method, query.sample.class_name] += [
                (found & truth).sum(), (found | truth).sum(), (~found & ~truth).sum(), (~found | ~truth).sum()
            ]  # fmt: skip
    assert windowed == {True, False}, "spots cover less than 0.55 percent, lines more"
    for method in METHODS:
        mine = {name: counts for (m, name), counts in pixels.items() if m == method}
        ious = {name: counts[0] / counts[1] for name, counts in mine.items()}
        total = sum(mine.values())
        assert {n: c["iou"] for n, c in report[method]["classes"].items()} == pytest.approx(ious)
        assert {n: c["queries"] for n, c in report[method]["classes"].items()} == {"Disk/spot": 4, "Disk/line": 4}
        assert report[method]["miou"]["mean"] == pytest.approx(np.mean(list(ious.values())))
        assert report[method]["fb_iou"]["mean"] == pytest.approx((total[0] / total[1] + total[2] / total[3]) / 2)


def test_one_and_three_processes_find_the_same(broken, tmp_path):
    """Also with an image that cannot be read: each process reports what it met, all get the whole."""
    root, path = broken
    cfg = tiny_config(root, tmp_path / "log")
    protocol = {"shot": 2, "seed": 5, "repeats": 2}
    for processes in (1, 3):
        launch(evaluate_into, processes, "gloo", cfg, protocol, tmp_path / f"{processes}.json")
    one, three = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 3))
    assert one["methods"] == three["methods"]
    assert one["failed_queries"] == three["failed_queries"] == 2
    assert sorted(one["unreadable"]) == sorted(three["unreadable"])
    assert len(one["unreadable"]) == 1 and str(path) in one["unreadable"][0]


def test_a_bad_image_is_reported_and_the_rest_goes_on(predictor, broken, tmp_path, caplog):
    root, path = broken
    result = run(predictor, root, tmp_path, Protocol(shot=1, seed=0))
    report = result.report()
    assert report["failed_queries"] == 1
    assert [str(path) in fault for fault in report["unreadable"]] == [True]
    assert sum(str(path) in r.message and r.levelname == "WARNING" for r in caplog.records) == 1
    queries = {name: c["queries"] for name, c in report["methods"]["prior"]["classes"].items()}
    assert queries == {"Disk/spot": 4, "Disk/line": 3}


def test_nothing_readable_is_an_error(predictor, surfaces, tmp_path):
    shutil.copytree(surfaces, tmp_path / "data")
    for path in (tmp_path / "data" / "Disk").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"no query could be evaluated.*Disk/.*\.png"):
        run(predictor, tmp_path / "data", tmp_path, Protocol(shot=1, seed=0))


def test_repeats_give_mean_and_spread(predictor, surfaces, tmp_path):
    many = run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=3, repeats=3))
    single = [run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=3 + r)).report() for r in range(3)]
    report, table = many.report()["methods"], many.table()
    for method in METHODS:
        mious = [s["methods"][method]["miou"]["mean"] for s in single]
        assert report[method]["miou"]["repeats"] == mious and len(set(mious)) > 1
        assert report[method]["miou"]["mean"] == pytest.approx(np.mean(mious)) == many.miou(method)
        assert report[method]["miou"]["std"] == pytest.approx(np.std(mious))
        assert report[method]["classes"]["Disk/spot"]["queries"] == 12
        assert f"{100 * np.mean(mious):6.2f} +-{100 * np.std(mious):5.2f}" in table


def test_a_left_out_category_is_warned_of_once_for_all_repeats(predictor, tmp_path, caplog):
    write_product(tmp_path, "Disk", {"spot": 2, "line": 1})
    result = run(predictor, tmp_path, tmp_path, Protocol(shot=1, seed=0, repeats=3))
    assert list(result.report()["methods"]["prior"]["classes"]) == ["Disk/spot"]
    assert sum("Disk/line" in record.message for record in caplog.records) == 1


def test_the_same_seed_gives_the_same_report_with_any_loader(predictor, surfaces, tmp_path):
    reports = [
        run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=8, multiple=2, num_workers=w, batch_size=b)).report()
        for w, b in ((0, 1), (2, 3))
    ]
    assert reports[0] == reports[1]
    assert reports[0]["methods"]["prior"]["classes"]["Disk/spot"]["queries"] == 8
    assert reports[0] != run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=9, multiple=2)).report()


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.4, 2, 12), (1.0, 16, 16)])
def test_figures_come_for_the_share_asked_in_the_first_repeat(predictor, surfaces, tmp_path, share, low, high):
    figures = tmp_path / "figures"
    options = {"shot": 1, "seed": 0, "multiple": 2, "figure_probability": share}
    run(predictor, surfaces, tmp_path, Protocol(repeats=2, figures=figures, **options))
    run(predictor, surfaces, tmp_path, Protocol(figures=tmp_path / "once", **options))
    files = sorted(figures.glob("*.png")) if figures.exists() else []
    assert all(file.read_bytes() == (tmp_path / "once" / file.name).read_bytes() for file in files)
    assert low <= len(files) <= high
    for file in files[:1]:
        picture = np.array(Image.open(file))
        assert picture.shape == (640 + 28, 5 * (round(640 * 128 / 96) + 4), 3), "truth, and per method mask and score"
        assert "Disk" in file.name and picture.std() > 10


def test_an_untrained_head_is_the_same_every_time(predictor, surfaces, tmp_path):
    other = untrained_predictor(tiny_config(surfaces, tmp_path))
    protocol = Protocol(shot=1, seed=0)
    reports = [run(p, surfaces, tmp_path, protocol).report() for p in (predictor, other)]
    assert reports[0] == reports[1]
