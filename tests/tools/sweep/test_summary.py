from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest

from tools.sweep.summary import (
    ANOMALY_METRICS,
    as_csv,
    as_json,
    figures_of,
    markdown,
    overview,
    write_summary,
)
from utils.errors import DataError

SEEDS, SHOTS, SPLITS, METHODS, REPEATS = (54, 55), (1, 5), (0, 2), ("SOFS", "prior"), 3


def summary(values, key="mean"):
    return {
        key: None,
        "std": None,
        "repeats": values,
    }  # mean and std are those of one run, and not used


def segmentation(seed, shot, split, value):
    """A metrics file; `value(name)` gives the repeats of a quantity."""
    methods = {
        method: {
            "miou": summary(value(f"{method} miou")),
            "fb_iou": summary(value(f"{method} fb_iou")),
            "classes": {
                f"P{split}/{c}": summary(value(f"{method} {c}"), "iou") for c in ("rust", "nick")
            },
        }
        for method in METHODS
    }
    return {"seed": seed, "shot": shot, "split": split, "methods": methods}


def anomaly(seed, shot, value):
    objects = {
        name: {"images": 8} | {m: summary(value(f"{name} {m}")) for m in ANOMALY_METRICS}
        for name in ("nut", "cable")
    }
    mean = {m: summary([None]) for m in ANOMALY_METRICS}
    return {
        "data_set": "mvtec",
        "seed": seed,
        "shot": shot,
        "anomaly": {"objects": objects, "mean": mean},
    }


@pytest.fixture
def drawn():
    """Random repeats, kept by what they are of."""
    rng, kept = np.random.default_rng(0), {}

    def value(*keys):
        def draw(name):
            kept[(*keys, *name.split())] = rng.random(REPEATS).tolist()
            return kept[(*keys, *name.split())]

        return draw

    return value, kept


@pytest.fixture
def sweep(drawn):
    """Contents of all tests of two splits, shots and seeds, and the arrays (splits, seeds x repeats) that they hold."""
    value, kept = drawn
    keys = [(seed, shot, split) for seed in SEEDS for split in SPLITS for shot in SHOTS]
    contents = [segmentation(*key, value(*key)) for key in keys]

    def array(shot, method, metric):
        return np.array(
            [[kept[seed, shot, split, method, metric] for seed in SEEDS] for split in SPLITS]
        ).reshape(2, -1)

    return contents, array


def tables(text):
    """{title: rows of cells} of a Markdown text."""
    found = {}
    for title, body in re.findall(r"## (.*)\n\n((?:\|.*\n)+)", text):
        rows = [
            [cell.strip() for cell in line.strip("|\n ").split("|")] for line in body.splitlines()
        ]
        assert set(rows[1]) == {"---"} and len({len(row) for row in rows}) == 1
        found[title] = [rows[0], *rows[2:]]
    return found


def percent(values):
    return f"{100 * np.mean(values):.2f} +- {100 * np.std(values):.2f}"


def test_the_main_table_pools_seeds_and_repeats_and_averages_splits_within_each(sweep):
    contents, array = sweep
    found = tables(overview(figures_of(contents)))
    assert list(found) == ["mIoU", "FB-IoU"]
    for title, metric in (("mIoU", "miou"), ("FB-IoU", "fb_iou")):
        head, *rows = found[title]
        assert head == ["shot", "method", "split 0", "split 2", "mean"]
        assert [row[:2] for row in rows] == [
            [str(shot), method] for shot in SHOTS for method in METHODS
        ]
        for shot, method, *cells in rows:
            known = array(int(shot), method, metric)
            assert cells == [percent(known[0]), percent(known[1]), percent(known.mean(0))]


def test_classes_have_a_table_per_split(sweep):
    contents, array = sweep
    found = tables(markdown("x", figures_of(contents)))
    assert list(found)[2:] == ["Split 0, class IoU", "Split 2, class IoU"]
    for number, split in enumerate(SPLITS):
        head, *rows = found[f"Split {split}, class IoU"]
        assert head == ["class", "1-shot SOFS", "1-shot prior", "5-shot SOFS", "5-shot prior"]
        for name, row in zip(("rust", "nick"), rows, strict=True):
            expected = [
                percent(array(shot, method, name)[number]) for shot in SHOTS for method in METHODS
            ]
            assert row == [f"P{split}/{name}", *expected]


def test_json_and_csv_hold_the_fractions_of_every_figure(sweep):
    contents, array = sweep
    figures = figures_of(contents)
    content = json.loads(json.dumps(as_json("x", figures)))["figures"]
    rows = list(csv.DictReader(io.StringIO(as_csv(figures))))
    assert len(rows) == len(content) == 2 * 2 * (2 * (2 + 2) + 2), (
        "shots, methods, splits: 2 figures, 2 classes; means"
    )
    for row, known in zip(rows, content, strict=True):
        assert {key: row[key] for key in ("shot", "method", "split", "class", "metric")} == {
            key: str(known[key]) for key in ("shot", "method", "split", "class", "metric")
        }
        values = array(
            known["shot"], known["method"], (known["class"].split("/")[-1]) or known["metric"]
        )
        values = (
            values.mean(0) if known["split"] == "mean" else values[SPLITS.index(known["split"])]
        )
        assert [r["value"] for r in known["repeats"]] == pytest.approx(values)
        assert [(r["seed"], r["repeat"]) for r in known["repeats"]] == [
            (s, r) for s in SEEDS for r in range(REPEATS)
        ]
        assert (known["mean"], known["std"]) == pytest.approx((np.mean(values), np.std(values)))
        assert (float(row["mean"]), float(row["std"]), row["repeats"]) == (
            known["mean"],
            known["std"],
            "6",
        )


def test_a_draw_that_seeds_share_counts_once_where_it_gives_the_same():
    """Repeat k draws by RNG_SEED + k: without a head, seeds 54 and 55 share all draws but two."""
    by_draw = dict(zip(range(54, 58), np.random.default_rng(1).random(4).tolist(), strict=True))

    def values(seed):
        own = (
            np.random.default_rng(seed).random(REPEATS).tolist()
        )  # a head of each seed gives its own
        return lambda name: (
            [by_draw[seed + k] for k in range(REPEATS)] if name.startswith("prior") else own
        )

    figures = figures_of([segmentation(seed, 1, 0, values(seed)) for seed in SEEDS])
    known = {
        f.keys["method"]: f for f in figures if f.keys["metric"] == "miou" and f.keys["split"] == 0
    }
    assert sorted(known["prior"].values.values()) == sorted(by_draw.values())
    assert len(known["SOFS"].values) == 2 * REPEATS
    text = markdown("x", figures)
    assert "over 4 or 6 repeats" in text and "counts once" in text


def test_undefined_values_are_a_dash_and_no_part_of_a_mean():
    given = {0: {"SOFS miou": [0.5, None]}, 1: {"SOFS miou": [0.1, 0.3], "SOFS rust": [None, None]}}
    contents = [
        segmentation(54, 1, split, lambda name, split=split: given[split].get(name, [0.25, 0.75]))
        for split in (0, 1)
    ]
    figures = figures_of(contents)
    found = tables(markdown("x", figures))
    assert found["mIoU"][1] == ["1", "SOFS", "50.00", "20.00 +- 10.00", "30.00 +- 0.00"], (
        "means 0.3 and 0.3"
    )
    assert found["Split 1, class IoU"][1] == ["P1/rust", "-", "50.00 +- 25.00"]
    rust = next(r for r in csv.DictReader(io.StringIO(as_csv(figures))) if r["class"] == "P1/rust")
    assert (rust["mean"], rust["std"], rust["repeats"]) == ("", "", "0")
    assert as_json("x", figures)["figures"][0]["repeats"][1] == {
        "seed": 54,
        "repeat": 1,
        "value": None,
    }


def test_one_repeat_has_no_spread():
    text = markdown("x", figures_of([segmentation(54, 1, 0, lambda name: [0.5])]))
    assert "+-" not in text.replace("mean +-", "") and tables(text)["mIoU"][1] == [
        "1",
        "SOFS",
        "50.00",
        "50.00",
    ]


def test_anomaly_detection_is_averaged_over_objects_within_each_repeat(drawn):
    value, kept = drawn
    figures = figures_of(
        [anomaly(seed, shot, value(seed, shot)) for seed in SEEDS for shot in (1, 4)]
    )
    found = tables(markdown("mvtec", figures))
    assert list(found) == ["Means over objects", "1-shot, objects", "4-shot, objects"]
    labels = list(ANOMALY_METRICS.values())
    assert labels[:3] == ["image AUROC", "image AP", "image F1-max"] and labels[6] == "AUPRO"
    assert found["Means over objects"][0] == ["shot", *labels]
    for shot, row in zip((1, 4), found["Means over objects"][1:], strict=True):
        per_object = {
            name: np.array([[kept[seed, shot, name, m] for m in ANOMALY_METRICS] for seed in SEEDS])
            for name in ("nut", "cable")
        }
        mean = (per_object["nut"] + per_object["cable"]) / 2  # (seeds, metrics, repeats)
        assert row == [str(shot), *(percent(mean[:, m]) for m in range(7))]
        expected = {
            name: [percent(values[:, m]) for m in range(7)] for name, values in per_object.items()
        }
        head, *rows = found[f"{shot}-shot, objects"]
        assert head == ["object", *labels]
        assert {r[0]: r[1:] for r in rows} == expected | {"mean": row[1:]}


def test_anomaly_figures_may_be_undefined():
    def value(name):
        return (
            [None] * 2
            if name == "nut aupro"
            else [0.25, 0.75]
            if name.startswith("nut")
            else [0.5, 0.5]
        )

    figures = figures_of([anomaly(54, 1, value)])
    head, row = tables(overview(figures))["Means over objects"]
    cells = dict(zip(head, row, strict=True))
    assert cells["AUPRO"] == "50.00 +- 0.00", "of the other object alone"
    assert cells["image AUROC"] == "50.00 +- 12.50"
    rows = {(r["object"], r["metric"]): r for r in csv.DictReader(io.StringIO(as_csv(figures)))}
    assert list(rows["nut", "aupro"]) == ["shot", "object", "metric", "mean", "std", "repeats"]
    assert rows["nut", "aupro"]["mean"] == "" and rows["mean", "pixel_ap"]["mean"] == "0.5"


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"methods": {}}', '{"objects": {"a": {}}}', '{"anomaly": {}}']
)
def test_a_broken_file_is_named_with_the_remedy(tmp_path, content, sweep):
    (tmp_path / "good.json").write_text(json.dumps(sweep[0][0]))
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=rf"bad\.json: no metrics.*remove {tmp_path} to test again"):
        write_summary(tmp_path, [tmp_path / "good.json", tmp_path / "bad.json"])
    assert not list(tmp_path.glob("summary*"))
