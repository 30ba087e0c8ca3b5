from __future__ import annotations

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datasets.build import build_test_index, view_settings
from datasets.episodes import EpisodeList
from datasets.images import read_image
from datasets.queries import EvaluationQueries
from datasets.readers.anomaly import draw_normal
from tests.helpers import SIZE, surface, tiny_config, untrained_predictor, write_product
from tools.evaluator import REPEATS_AT_ONCE, Protocol, evaluate
from utils.errors import DataError

METHODS = ("SOFS", "prior")


@pytest.fixture
def broken(surfaces, tmp_path):
    """The data set with one image cut off; returns its root and that image."""
    shutil.copytree(surfaces, tmp_path / "data")
    path = tmp_path / "data" / "Disk" / "train" / "line_1.png"
    path.write_bytes(path.read_bytes()[:300])
    return tmp_path / "data", path


def counts(result):
    return result.image, result.method, result.intersection, result.union


def run(predictor, root, tmp_path, protocol, **changes):
    cfg = tiny_config(root, tmp_path / "log", **changes)
    return evaluate(predictor, build_test_index(cfg), view_settings(cfg), protocol)


@pytest.mark.parametrize("scale_by", ["support", "query"])
def test_metrics_agree_with_the_masks_of_the_predictor(predictor, surfaces, tmp_path, scale_by):
    cfg = tiny_config(surfaces, tmp_path / "log", DATASET__area_resize_ratio=0.0055)
    index, settings = build_test_index(cfg), view_settings(cfg)
    report = evaluate(
        predictor, index, settings, Protocol(shot=2, seed=5, scale_by=scale_by)
    ).report()["methods"]
    queries = EvaluationQueries(EpisodeList(index, 2, 5), settings, scale_by=scale_by)
    pixels = {
        (method, name): np.zeros(4) for method in METHODS for name in ("Disk/spot", "Disk/line")
    }
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
        assert {n: c["queries"] for n, c in report[method]["classes"].items()} == {
            "Disk/spot": 4,
            "Disk/line": 4,
        }
        assert report[method]["miou"]["mean"] == pytest.approx(np.mean(list(ious.values())))
        assert report[method]["fb_iou"]["mean"] == pytest.approx(
            (total[0] / total[1] + total[2] / total[3]) / 2
        )


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
    single = [
        run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=3 + r)).report() for r in range(3)
    ]
    report, table = many.report()["methods"], many.table()
    for method in METHODS:
        mious = [s["methods"][method]["miou"]["mean"] for s in single]
        assert report[method]["miou"]["repeats"] == mious and len(set(mious)) > 1
        assert report[method]["miou"]["mean"] == pytest.approx(np.mean(mious)) == many.miou(method)
        assert report[method]["miou"]["std"] == pytest.approx(np.std(mious))
        assert report[method]["classes"]["Disk/spot"]["queries"] == 12
        assert f"{100 * np.mean(mious):6.2f} +-{100 * np.std(mious):5.2f}" in table


@pytest.mark.parametrize("repeats", [1, 3, REPEATS_AT_ONCE + 2])
def test_repeats_share_encoded_queries(predictor, surfaces, tmp_path, repeats):
    """Without windows each of the eight queries is a view, and each of its supports in a repeat another."""
    encoded = []
    hook = predictor.backbone.register_forward_pre_hook(
        lambda _, args: encoded.append(len(args[0]))
    )
    changes = {"DATASET__area_resize_ratio": 0.0}
    run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=3, repeats=repeats), **changes)
    hook.remove()
    assert sum(encoded) == 8 * (-(-repeats // REPEATS_AT_ONCE) + repeats)


def test_repeats_that_share_nothing_find_the_same(predictor, surfaces, tmp_path):
    repeats = REPEATS_AT_ONCE + 2
    many = run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=3, repeats=repeats))
    for repeat in range(repeats):
        single = run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=3 + repeat))
        assert [replace(r, repeat=0) for r in many.results if r.repeat == repeat] == single.results


@pytest.fixture
def cleaned(tmp_path):
    """Root of two products, Disk and Ring, and three normal images of each, none like the other."""
    rng = np.random.default_rng(3)
    for name in ("Disk", "Ring"):
        write_product(tmp_path / "data", name, {"spot": 2})
    normal = [tmp_path / f"{n}.png" for n in range(3)]
    for number, path in enumerate(normal):
        image = surface(SIZE, rng)
        image[:: number + 2] = 250
        Image.fromarray(image).save(path)
    return tmp_path / "data", normal


def test_normal_images_are_drawn_by_repeat_and_object(predictor, cleaned, tmp_path):
    """The rows of each repeat and object are those of a test that has no choice but what the draw gives. With two
    images of a class, seen whole, there is nothing else to draw."""
    (root, pool), names = cleaned, ("Disk", "Ring")
    changes = {"DATASET__test_objects": list(names), "DATASET__area_resize_ratio": 0.0}
    protocol = Protocol(shot=1, seed=5, repeats=3, normal_shot=1, normal=dict.fromkeys(names, pool))
    many = run(predictor, root, tmp_path, protocol, **changes).results
    draws = {
        (repeat, name): draw_normal(pool, name, 1, 5 + repeat)
        for repeat in range(3)
        for name in names
    }
    assert any(draws[0, name] != draws[repeat, name] for repeat, name in draws)
    assert any(draws[repeat, "Disk"] != draws[repeat, "Ring"] for repeat in range(3))
    for (repeat, name), drawn in draws.items():
        one = Protocol(shot=1, seed=0, normal_shot=1, normal={name: drawn})
        single = run(
            predictor, root, tmp_path, one, **changes | {"DATASET__test_objects": [name]}
        ).results
        assert [counts(r) for r in many if (r.repeat, r.key[0]) == (repeat, name)] == [
            counts(r) for r in single
        ]


@pytest.mark.parametrize("count", [1, 2])
def test_normal_images_reach_the_memory(predictor, cleaned, tmp_path, count):
    """Scores are those of a memory that is made of the supports and of all normal images drawn."""
    root, pool = cleaned
    cfg = tiny_config(root, tmp_path / "log", DATASET__area_resize_ratio=0.0)
    index, settings = build_test_index(cfg), view_settings(cfg)
    protocol = Protocol(shot=1, seed=0, normal_shot=count, normal={"Disk": pool})
    found = evaluate(predictor, index, settings, protocol)
    drawn = [read_image(path) for path in draw_normal(pool, "Disk", count, 0)]
    normal = predictor.normality(drawn, windowed=False)
    assert len(normal) == count
    for query in EvaluationQueries(EpisodeList(index, 1, 0), settings):
        memory = predictor.remember(query.supports[0], normal)
        for method, answer in next(predictor.segment([query.image], memory)).answers.items():
            (row,) = (r for r in found.results if (r.number, r.method) == (query.number, method))
            assert row.intersection[1] == (answer.mask & (query.target > 0)).sum()
            assert row.union[1] == (answer.mask | (query.target > 0)).sum()
    without = evaluate(predictor, index, settings, Protocol(shot=1, seed=0))
    assert [r.union for r in found.results if r.method == "prior"] != [
        r.union for r in without.results if r.method == "prior"
    ]


def test_a_normal_image_that_cannot_be_read_is_named(predictor, cleaned, tmp_path):
    root, pool = cleaned
    pool[1].write_bytes(b"")
    with pytest.raises(DataError, match=str(pool[1])):
        run(
            predictor,
            root,
            tmp_path,
            Protocol(shot=1, seed=0, normal_shot=3, normal={"Disk": pool}),
        )


def test_thresholds_of_the_supports_arrive_in_the_queries(surfaces, tmp_path):
    cfg = tiny_config(surfaces, tmp_path, TEST__threshold="auto")
    predictor, index, settings = untrained_predictor(cfg), build_test_index(cfg), view_settings(cfg)
    result = evaluate(predictor, index, settings, Protocol(shot=2, seed=5, repeats=2))
    result.write_queries(tmp_path / "queries.csv")
    with (tmp_path / "queries.csv").open() as file:
        found = {
            tuple(row[k] for k in ("repeat", "query", "method")): row["threshold"]
            for row in csv.DictReader(file)
        }
    queries = EvaluationQueries(EpisodeList(index, 2, 5), settings, repeats=(0, 1), keep_pairs=True)
    expected = {
        (str(repeat), str(query.number), method): str(threshold)
        for query in queries
        for repeat, supports in query.supports.items()
        for method, threshold in predictor.remember(supports).thresholds.items()
    }
    assert found == expected and len(set(found.values())) > 8
    report = result.report()["methods"]["prior"]["threshold"]
    for repeat, mean in enumerate(report["repeats"]):
        own = [
            float(t) for (r, _, method), t in found.items() if (r, method) == (str(repeat), "prior")
        ]
        assert mean == pytest.approx(np.mean(own))


def test_a_left_out_category_is_warned_of_once_for_all_repeats(predictor, tmp_path, caplog):
    write_product(tmp_path, "Disk", {"spot": 2, "line": 1})
    result = run(predictor, tmp_path, tmp_path, Protocol(shot=1, seed=0, repeats=3))
    assert list(result.report()["methods"]["prior"]["classes"]) == ["Disk/spot"]
    assert sum("Disk/line" in record.message for record in caplog.records) == 1


def test_the_same_seed_gives_the_same_report_with_any_loader(predictor, surfaces, tmp_path):
    reports = [
        run(
            predictor,
            surfaces,
            tmp_path,
            Protocol(shot=1, seed=8, multiple=2, num_workers=w, batch_size=b),
        ).report()
        for w, b in ((0, 1), (2, 3))
    ]
    assert reports[0] == reports[1]
    assert reports[0]["methods"]["prior"]["classes"]["Disk/spot"]["queries"] == 8
    assert (
        reports[0]
        != run(predictor, surfaces, tmp_path, Protocol(shot=1, seed=9, multiple=2)).report()
    )


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.4, 2, 12), (1.0, 16, 16)])
def test_figures_come_for_the_share_asked_in_the_first_repeat(
    predictor, surfaces, tmp_path, share, low, high
):
    figures = tmp_path / "figures"
    options = {"shot": 1, "seed": 0, "multiple": 2, "figure_probability": share}
    run(predictor, surfaces, tmp_path, Protocol(repeats=2, figures=figures, **options))
    run(predictor, surfaces, tmp_path, Protocol(figures=tmp_path / "once", **options))
    files = sorted(figures.glob("*.png")) if figures.exists() else []
    assert all(file.read_bytes() == (tmp_path / "once" / file.name).read_bytes() for file in files)
    assert low <= len(files) <= high
    for file in files[:1]:
        picture = np.array(Image.open(file))
        assert picture.shape == (640 + 28, 5 * (round(640 * 128 / 96) + 4), 3), (
            "truth, and per method mask and score"
        )
        assert "Disk" in file.name and picture.std() > 10


def test_an_untrained_head_is_the_same_every_time(predictor, surfaces, tmp_path):
    other = untrained_predictor(tiny_config(surfaces, tmp_path))
    protocol = Protocol(shot=1, seed=0)
    reports = [run(p, surfaces, tmp_path, protocol).report() for p in (predictor, other)]
    assert reports[0] == reports[1]
