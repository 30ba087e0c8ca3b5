from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest

from tools.sweep_summary import write_summary
from utils.errors import DataError
from utils.metrics import ANOMALY

SEEDS, SHOTS, SPLITS, METHODS, REPEATS = (54, 55), (1, 5), (0, 2), ("SOFS", "prior"), 3
LABELS = [measure.label for measure in ANOMALY]


def repeats(values, key="mean"):
    """Mean and std of one run are not used."""
    return {key: None, "std": None, "repeats": values}


def segmentation(seed, shot, split, value):
    """A metrics file; `value(method, name)` gives the repeats of a quantity."""
    methods = {}
    for m in METHODS:
        classes = {f"P{split}/{c}": repeats(value(m, c), "iou") for c in ("rust", "nick")}
        figures = {name: repeats(value(m, name)) for name in ("miou", "fb_iou")}
        methods[m] = figures | {"classes": classes}
    return {"seed": seed, "shot": shot, "split": split, "methods": methods}


def anomaly(seed, shot, value):
    objects = {
        name: {"images": 8} | {m.name: repeats(value(name, m.name)) for m in ANOMALY}
        for name in ("nut", "cable")
    }
    return {"seed": seed, "shot": shot, "anomaly": {"objects": objects, "mean": {}}}


@pytest.fixture
def summed(tmp_path):
    """Sums up metrics files: {title: rows of cells}, text, figures of JSON, rows of CSV."""

    def summed(contents):
        files = [tmp_path / f"{number}.json" for number in range(len(contents))]
        for file, content in zip(files, contents, strict=True):
            file.write_text(json.dumps(content))
        shown = write_summary(tmp_path / "mine", files)
        text = (tmp_path / "mine" / "summary.md").read_text()
        assert shown in text and text.startswith("# mine\n")
        tables = {}
        for title, body in re.findall(r"## (.*)\n\n((?:\|.*\n)+)", text):
            lines = [line.strip("|\n ").split(" | ") for line in body.splitlines()]
            assert len({len(line) for line in lines}) == 1 and set(lines.pop(1)) == {"---"}
            tables[title] = lines
        figures = json.loads((tmp_path / "mine" / "summary.json").read_text())["figures"]
        with (tmp_path / "mine" / "summary.csv").open(newline="") as file:
            return tables, text, figures, list(csv.DictReader(file))

    (tmp_path / "mine").mkdir()
    return summed


@pytest.fixture
def drawn():
    """Random values: contents of all tests of two seeds, shots and splits; and by shot, method and
    name the array (splits, seeds x repeats) of what they hold."""
    rng, kept = np.random.default_rng(0), {}

    def value_of(seed, shot, split):
        def value(method, name):
            kept[seed, shot, split, method, name] = rng.random(REPEATS).tolist()
            return kept[seed, shot, split, method, name]

        return value

    keys = [(seed, shot, split) for seed in SEEDS for split in SPLITS for shot in SHOTS]
    contents = [segmentation(*key, value_of(*key)) for key in keys]

    def array(shot, method, name):
        rows = [[kept[seed, shot, split, method, name] for seed in SEEDS] for split in SPLITS]
        return np.array(rows).reshape(len(SPLITS), -1)

    return contents, array


def percent(values):
    return f"{100 * np.mean(values):.2f} +- {100 * np.std(values):.2f}"


def test_tables_pool_seeds_and_repeats_and_average_splits_within_each(summed, drawn):
    contents, array = drawn
    tables, *_ = summed(contents)
    pairs = [(shot, method) for shot in SHOTS for method in METHODS]
    for title, name in (("mIoU", "miou"), ("FB-IoU", "fb_iou")):
        expected = [["shot", "method", "split 0", "split 2", "mean"]]
        for shot, method in pairs:
            values = array(shot, method, name)
            cells = [percent(values[0]), percent(values[1]), percent(values.mean(0))]
            expected.append([str(shot), method, *cells])
        assert tables.pop(title) == expected
    for number, split in enumerate(SPLITS):
        expected = [["class", *(f"{shot}-shot {method}" for shot, method in pairs)]]
        for name in ("rust", "nick"):
            cells = [percent(array(*pair, name)[number]) for pair in pairs]
            expected.append([f"P{split}/{name}", *cells])
        assert tables.pop(f"Split {split}, class IoU") == expected
    assert not tables


def test_json_and_csv_hold_the_fractions_of_every_figure(summed, drawn):
    contents, array = drawn
    _, _, figures, rows = summed(contents)
    assert len(rows) == len(figures) == len(SHOTS) * len(METHODS) * (2 * (2 + 2) + 2)
    for row, figure in zip(rows, figures, strict=True):
        for key in ("shot", "method", "split", "class", "metric"):
            assert row[key] == str(figure[key])
        name = figure["class"].split("/")[-1] or figure["metric"]
        values = array(figure["shot"], figure["method"], name)
        is_mean = figure["split"] == "mean"
        values = values.mean(0) if is_mean else values[SPLITS.index(figure["split"])]
        draws = [(r["seed"], r["repeat"]) for r in figure["repeats"]]
        assert draws == [(seed, number) for seed in SEEDS for number in range(REPEATS)]
        assert [r["value"] for r in figure["repeats"]] == pytest.approx(values)
        assert (figure["mean"], figure["std"]) == pytest.approx((np.mean(values), np.std(values)))
        own = (figure["mean"], figure["std"], "6")
        assert (float(row["mean"]), float(row["std"]), row["repeats"]) == own


def test_a_draw_that_seeds_share_counts_once_where_it_gives_the_same(summed):
    """Repeat k draws by RNG_SEED + k: without a head, seeds 54 and 55 share all draws but two."""
    by_draw = dict(zip(range(54, 58), np.random.default_rng(1).random(4).tolist(), strict=True))

    def value_of(seed):
        of_head = np.random.default_rng(seed).random(REPEATS).tolist()
        of_draw = [by_draw[seed + k] for k in range(REPEATS)]
        return lambda method, name: of_draw if method == "prior" else of_head

    _, text, figures, _ = summed([segmentation(seed, 1, 0, value_of(seed)) for seed in SEEDS])
    chosen = [f for f in figures if f["metric"] == "miou" and f["split"] == 0]
    values = {f["method"]: sorted(r["value"] for r in f["repeats"]) for f in chosen}
    assert values["prior"] == sorted(by_draw.values()) and len(values["SOFS"]) == 2 * REPEATS
    assert "over 4 or 6 repeats" in text and "counts once" in text


def test_undefined_values_are_a_dash_and_no_part_of_a_mean(summed):
    first = {("SOFS", "miou"): [0.5, None]}
    second = {("SOFS", "miou"): [0.1, 0.3], ("SOFS", "rust"): [None, None]}
    contents = [
        segmentation(54, 1, split, lambda *key, given=given: given.get(key, [0.25, 0.75]))
        for split, given in enumerate((first, second))
    ]
    tables, _, figures, rows = summed(contents)
    assert tables["mIoU"][1] == ["1", "SOFS", "50.00", "20.00 +- 10.00", "30.00 +- 0.00"]
    assert tables["Split 1, class IoU"][1] == ["P1/rust", "-", "50.00 +- 25.00"]
    rust = next(row for row in rows if row["class"] == "P1/rust")
    assert (rust["mean"], rust["std"], rust["repeats"]) == ("", "", "0")
    assert figures[0]["repeats"][1] == {"seed": 54, "repeat": 1, "value": None}


def test_one_repeat_has_no_spread(summed):
    tables, text, *_ = summed([segmentation(54, 1, 0, lambda *_: [0.5])])
    assert "+-" not in text and tables["mIoU"][1] == ["1", "SOFS", "50.00", "50.00"]


def test_anomaly_detection_is_averaged_over_objects_within_each_repeat(summed):
    rng, kept = np.random.default_rng(2), {}

    def value_of(*key):
        return lambda *names: kept.setdefault((*key, *names), rng.random(REPEATS).tolist())

    contents = [anomaly(seed, shot, value_of(seed, shot)) for seed in SEEDS for shot in SHOTS]
    tables, *_ = summed(contents)
    assert list(tables) == ["Means over objects", "1-shot, objects", "5-shot, objects"]
    assert LABELS[0] == "image AUROC" and tables["Means over objects"][0] == ["shot", *LABELS]
    for number, shot in enumerate(SHOTS, 1):
        values = {
            name: [[kept[seed, shot, name, m.name] for seed in SEEDS] for m in ANOMALY]
            for name in ("nut", "cable")
        }
        values["mean"] = (np.array(values["nut"]) + values["cable"]) / 2
        expected = [[name, *map(percent, rows)] for name, rows in values.items()]
        assert tables[f"{shot}-shot, objects"] == [["object", *LABELS], *expected]
        assert tables["Means over objects"][number] == [str(shot), *expected[-1][1:]]


def test_anomaly_figures_may_be_undefined(summed):
    given = {("nut", m.name): [0.25, 0.75] for m in ANOMALY} | {("nut", "aupro"): [None, None]}
    tables, _, _, rows = summed([anomaly(54, 1, lambda *key: given.get(key, [0.5, 0.5]))])
    cells = dict(zip(*tables["Means over objects"], strict=True))
    assert cells["AUPRO"] == "50.00 +- 0.00", "of the other object alone"
    assert cells["image AUROC"] == "50.00 +- 12.50"
    by_keys = {(row["object"], row["metric"]): row for row in rows}
    assert list(rows[0]) == ["shot", "object", "metric", "mean", "std", "repeats"]
    assert by_keys["nut", "aupro"]["mean"] == "" and by_keys["mean", "pixel_ap"]["mean"] == "0.5"


@pytest.mark.parametrize("content", ["{", "[]", '{"methods": {}}', '{"anomaly": {}}'])
def test_a_broken_file_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "good.json").write_text(json.dumps(segmentation(54, 1, 0, lambda *_: [0.5])))
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=rf"bad\.json: no metrics.*remove {tmp_path} to test again"):
        write_summary(tmp_path, [tmp_path / "good.json", tmp_path / "bad.json"])
    assert not list(tmp_path.glob("summary*"))
