from __future__ import annotations

import csv
import json

import cv2
import numpy as np
import pytest

from tests.helpers import tiny_config, write_product
from tools.gallery import (
    DETAIL,
    SIDE,
    SMALL,
    Entry,
    chosen,
    detail,
    query_panels,
    shrunk,
    support_panels,
    write_gallery,
)
from tools.prediction.answers import Prediction
from tools.results import Evaluation, QueryResult
from tools.tester import run_test

KEYS = [("Rod", 0), ("Rod", 1), ("Ring", 0), ("Ring", 1), ("Ring", 2)]


def result(key, number, hits, repeat=0, method="SOFS"):
    """A query of ten defect pixels, `hits` of them found; None: nothing to find, and nothing found."""
    counts = ((90, 0), (90, 0)) if hits is None else ((90, hits), (100 - hits, 10))
    return QueryResult(repeat, number, key, f"{number}.png", method, 0.1, 0.5, *counts)


def test_worst_median_and_best_of_each_class():
    """By the method that is asked, in the first repeat; the order of the results does not matter."""
    hits = {
        KEYS[0]: [5, 3, 9, 1, 7],
        KEYS[1]: [4, None, 2],
        KEYS[2]: [6],
        KEYS[3]: [None],
        KEYS[4]: [8, 8, 8, 2],
    }
    results = []
    for key, found in hits.items():
        for i, n in enumerate(found):
            number = 10 * KEYS.index(key) + i
            results.append(result(key, number, n))
            results.append(result(key, number, None if n is None else 10 - n, method="prior"))
            results.append(result(key, number, None if n is None else (3 * n) % 10, repeat=1))
    names = {key: f"{key[0]}/{key[1]}" for key in KEYS}
    for order in (results, results[::-1]):
        evaluation = Evaluation(names, ["SOFS", "prior"], 2, results=order)
        found = [(rank, r.number) for rank, r in chosen(evaluation, "SOFS")]
        assert found[:3] == [("worst", 3), ("median", 0), ("best", 2)]
        assert found[3:5] == [("worst", 12), ("best", 10)], "two are defined"
        assert found[5:6] == [("worst", 20)], "a class of one; the next has none that is defined"
        assert found[6:] == [("worst", 43), ("median", 41), ("best", 42)], (
            "equal ones in their order"
        )
        assert all((r.method, r.repeat) == ("SOFS", 0) for _, r in chosen(evaluation, "SOFS"))
        assert [(rank, r.number) for rank, r in chosen(evaluation, "prior")][:3] == [
            ("worst", 2), ("median", 0), ("best", 3)
        ]  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_a_detail_holds_all_that_is_marked_and_lies_in_the_image(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(300, 1500, 2))
    mask = np.zeros(shape, np.uint8)
    top, left = (int(rng.integers(0, n)) for n in shape)
    mask[top : top + rng.integers(1, 400), left : left + rng.integers(1, 400)] = 1
    box = detail(mask)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    sides = [
        min(n, max(DETAIL, 2 * (m[-1] - m[0] + 1)))
        for n, m in zip(shape, (rows, columns), strict=True)
    ]
    assert (box is None) == (sides[0] * sides[1] >= SMALL * mask.size)
    if box is not None:
        t, b, le, r = box
        assert 0 <= t < b <= shape[0] and 0 <= le < r <= shape[1]
        assert (b - t, r - le) == tuple(sides)
        assert mask[t:b, le:r].sum() == mask.sum()


def test_no_detail_of_nothing_of_a_large_defect_or_of_a_small_image():
    mask = np.zeros((1000, 1200), np.uint8)
    assert detail(mask) is None
    mask[100:200, 100:110] = 1
    assert detail(mask) is not None
    mask[900, 1100] = 1
    assert detail(mask) is None, "two defects far from each other"
    small = np.zeros((300, 300), np.uint8)
    small[7, 7] = 1
    assert detail(small) is None


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_a_detail_in_a_corner_is_as_large_as_elsewhere(corner):
    mask = np.zeros((1000, 1200), np.uint8)
    mask[corner] = 1
    top, bottom, left, right = detail(mask)
    assert (bottom - top, right - left) == (DETAIL, DETAIL) and mask[top:bottom, left:right].any()


@pytest.mark.parametrize(
    "size", [(480, 480), (481, 30), (30, 961), (2000, 3000), (5, 5000), (96, 128)]
)
def test_pictures_are_shrunk_to_the_longer_side(size):
    picture = shrunk(np.full((*size, 3), 7, np.uint8))
    assert (
        max(picture.shape) == min(SIDE, max(size))
        and min(picture.shape[:2]) >= 1
        and (picture == 7).all()
    )
    assert picture.shape[1] == pytest.approx(
        picture.shape[0] * size[1] / size[0], abs=1 + size[1] / size[0]
    )


def answers_of(mask):
    return {m: Prediction(mask, mask.astype(np.float32), 1, 0.5) for m in ("SOFS", "prior")}


def test_panels_show_a_small_defect_as_a_detail():
    image = np.random.default_rng(0).integers(0, 256, (900, 1100, 3)).astype(np.uint8)
    mask = np.zeros((900, 1100), np.uint8)
    mask[400:420, 300:330] = 1
    panels = query_panels(image, mask, answers_of(mask))
    assert [caption for caption, _ in panels] == [
        *("query", "SOFS, whole", "truth, detail"),
        *("SOFS, detail", "SOFS score, detail", "prior, detail", "prior score, detail"),
    ]
    top, bottom, left, right = detail(mask)
    outside = np.ones(mask.shape, bool)
    outside[max(0, top - 4) : bottom + 4, max(0, left - 4) : right + 4] = False
    assert np.array_equal(panels[0][1][outside], image[outside]) and not np.array_equal(
        panels[0][1], image
    )
    for _, picture in panels[2:]:
        assert picture.shape == (bottom - top, right - left, 3)
    pairs = [(image, mask), (image, np.ones_like(mask)), (image, mask)]
    assert [caption for caption, _ in support_panels(pairs)] == ["support, detail", "support"]


@pytest.mark.parametrize("known", [True, False])
def test_panels_of_a_large_defect_and_without_a_truth(known):
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    mask[20:50, 10:60] = 1
    panels = query_panels(image, mask if known else None, answers_of(mask))
    assert [caption for caption, _ in panels] == ["query", *(["truth"] if known else []), "SOFS", "SOFS score",
                                                  "prior", "prior score"]  # fmt: skip
    assert all(picture.shape == image.shape for _, picture in panels)


def test_the_index_lists_the_pictures(tmp_path):
    picture = np.full((700, 900, 3), (250, 20, 20), np.uint8)
    entries = [
        Entry(
            "Rod/dent",
            "worst",
            "a.png",
            {"SOFS": 0.25, "prior": None},
            [("query", picture), ("truth", picture)],
        ),
        Entry("Rod/pit", "worst", "b.png", {}, [("query", picture[:50, :60])]),
    ]
    write_gallery(tmp_path / "gallery", iter(entries))
    index = json.loads((tmp_path / "gallery" / "index.json").read_text())
    assert [(e["class"], e["rank"], e["caption"], e["scores"]) for e in index] == [
        ("Rod/dent", "worst", "a.png", {"SOFS": 0.25, "prior": None}), ("Rod/pit", "worst", "b.png", {})
    ]  # fmt: skip
    assert [[p["caption"] for p in e["panels"]] for e in index] == [["query", "truth"], ["query"]]
    files = [p["file"] for e in index for p in e["panels"]]
    assert len(set(files)) == 3 and {*files, "index.json"} == {
        p.name for p in (tmp_path / "gallery").iterdir()
    }
    for file, size in zip(files, [(373, 480), (373, 480), (50, 60)], strict=True):
        read = cv2.imread(str(tmp_path / "gallery" / file))
        assert read.shape[:2] == size and read[..., 2].mean() > 240, "RGB"
        assert (tmp_path / "gallery" / file).read_bytes()[:2] == b"\xff\xd8", "JPEG"


def test_without_an_entry_there_is_no_gallery(tmp_path):
    write_gallery(tmp_path / "gallery", iter([]))
    assert not (tmp_path / "gallery").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run folder of a test with two repeats, in which a query image of two cannot be read."""
    root = tmp_path_factory.mktemp("data")
    write_product(root, "Disk", {"spot": 5, "line": 3, "stain": 2}, size=(700, 600))
    (root / "Disk" / "train" / "line_0.png").write_bytes(b"")
    options = {
        "DATASET__few_shot_repeated_multiple": 2,
        "TEST__threshold": "auto",
        "DATASET__crop_size": 256,
    }
    return run_test(tiny_config(root, tmp_path_factory.mktemp("log"), **options), "")


def test_a_run_shows_the_queries_that_its_counts_rank(finished):
    with (finished / "queries.csv").open() as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if r["repeat"] == "0" and r["method"] == "prior" and int(r["union"])
        ]
    classes = {}
    for row in rows:
        iou = int(row["intersection"]) / int(row["union"])
        classes.setdefault(row["class"], []).append((iou, int(row["query"]), row["image"]))
    expected = []
    for name, found in classes.items():
        found.sort()
        places = (
            {"worst": 0, "median": len(found) // 2, "best": -1}
            if len(found) > 2
            else {"worst": 0, "best": -1}
        )
        expected += [
            (name, rank, found[place][2], {"prior": found[place][0]})
            for rank, place in places.items()
        ]
    index = json.loads((finished / "gallery" / "index.json").read_text())
    assert [(e["class"], e["rank"], e["caption"], e["scores"]) for e in index] == expected
    assert len(index) == 3 + 2 + 2, "five spots, two lines that can be read, two stains"
    for entry in index:
        captions = [panel["caption"] for panel in entry["panels"]]
        assert captions[0].startswith("support") and "query" in captions
        for panel in entry["panels"]:
            picture = cv2.imread(str(finished / "gallery" / panel["file"]))
            assert max(picture.shape) <= SIDE
