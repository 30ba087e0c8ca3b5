from __future__ import annotations

import csv
import itertools
import json
import re
import zlib

import numpy as np
import pytest

from tools.sweep_summary import write_summary
from utils.errors import DataError
from utils.metrics import ANOMALY, NORMAL, SEGMENTATION, TOLERANT
from utils.metrics.sizes import SizeMeter

SEEDS, SHOTS, SPLITS, METHODS, REPEATS = (54, 55), (1, 5), (0, 2), ("SOFS", "prior"), 3
CLASSES = ("rust", "nick")
TOTALS = [measure.name for measure in (*SEGMENTATION, *NORMAL)]
OF_CLASS = [measure.name for measure in (*TOLERANT.values(), *NORMAL)]
BY_SIZE = ["IoU by size", "found defects by size", "false alarms per image by size"]


def segmentation(seed, shot, split, value):
    """A metrics file; `value(method, name)` gives the repeats of a figure, of a class
    `value(method, "rust")` its IoU and `value(method, "rust iou_1px")` another one."""
    methods = {}
    for m in METHODS:
        of = {name: {"repeats": value(m, name)} for name in TOTALS}
        classes = {f"P{split}/{c}": {"repeats": value(m, c)} for c in CLASSES}
        for name, c in itertools.product(OF_CLASS, CLASSES):
            classes[f"P{split}/{c}"][name] = {"repeats": value(m, f"{c} {name}")}
        normal = {name: of.pop(name) for name in TOTALS if name.startswith("normal")}
        methods[m] = of | {"classes": classes, "normal": normal | {"classes": classes}}
        methods[m]["sizes"] = sizes(seed, shot, split, m).report()
    return {"seed": seed, "shot": shot, "split": split, "methods": methods}


def sizes(*numbers):
    """Counts of a test, others for others."""
    meter = SizeMeter()
    rng = np.random.default_rng([zlib.crc32(str(number).encode()) for number in numbers])
    meter.counts[:] = rng.integers(1, 1000, meter.counts.shape)
    return meter


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


def percent(values):
    return f"{100 * np.mean(values):.2f} +- {100 * np.std(values):.2f}"


def test_seeds_and_repeats_are_pooled_and_splits_averaged_within_each(summed):
    """In the tables, and as fractions in JSON and CSV."""
    kept = {}  # (shot, method, name): values by split, seed and repeat
    others = [" ".join(names) for names in itertools.product(CLASSES, OF_CLASS)]
    for key in itertools.product(SHOTS, METHODS, (*TOTALS, *CLASSES, *others)):
        kept[key] = np.random.default_rng(len(kept)).random((len(SPLITS), len(SEEDS), REPEATS))
    contents = [
        segmentation(seed, shot, split, lambda *key, s=s, i=i, shot=shot: [*kept[shot, *key][s, i]])
        for i, seed in enumerate(SEEDS)
        for s, split in enumerate(SPLITS)
        for shot in SHOTS
    ]
    tables, _, figures, rows = summed(contents)
    pairs = list(itertools.product(SHOTS, METHODS))
    labels = [measure.label for measure in (*SEGMENTATION, *NORMAL)]
    assert list(tables) == [*labels, *BY_SIZE, *(f"Split {n}, class IoU" for n in SPLITS)]
    assert tables["mIoU"][0] == ["shot", "method", "split 0", "split 2", "mean"]
    for label, name in zip(labels, TOTALS, strict=True):
        for (shot, method), cells in zip(pairs, tables[label][1:], strict=True):
            values = kept[shot, method, name]
            assert cells == [str(shot), method, *map(percent, (*values, values.mean(0)))]
    assert tables["Split 2, class IoU"] == [
        ["class", *(f"{shot}-shot {method}" for shot, method in pairs)],
        *([f"P2/{c}", *(percent(kept[*pair, c][1]) for pair in pairs)] for c in CLASSES),
    ]
    of_split = len(TOTALS) + len(CLASSES) * (1 + len(OF_CLASS))
    assert len(rows) == len(figures) == len(pairs) * (2 * of_split + len(TOTALS))
    draws = list(itertools.product(SEEDS, range(REPEATS)))
    for row, figure in zip(rows, figures, strict=True):
        shot, method, split, label, metric = list(figure.values())[:5]
        assert [*row.values()][:5] == [str(shot), method, str(split), label, metric]
        name = label.split("/")[-1] + (f" {metric}" if metric != "iou" else "")
        values = kept[shot, method, name.strip()]
        values = (values.mean(0) if split == "mean" else values[SPLITS.index(split)]).ravel()
        assert [(r["seed"], r["repeat"]) for r in figure["repeats"]] == draws
        assert [r["value"] for r in figure["repeats"]] == pytest.approx(values)
        assert (figure["mean"], figure["std"]) == pytest.approx((np.mean(values), np.std(values)))
        expected = (figure["mean"], figure["std"], "6")
        assert (float(row["mean"]), float(row["std"]), row["repeats"]) == expected


def test_figures_by_size_pool_the_counts_of_all_seeds_and_splits(summed, tmp_path):
    """In a table over all splits, in JSON also for each; the seconds of each test are averaged."""
    contents, keys = [], list(itertools.product(SEEDS, SPLITS))
    for seed, split in keys:
        contents.append(segmentation(seed, 1, split, lambda *_: [0.5]))
    tables, *_ = summed(contents)
    assert "rough seconds per image" not in tables
    entries = json.loads((tmp_path / "mine" / "summary.json").read_text())["sizes"]
    assert [(e["split"], e["method"]) for e in entries] == [
        *itertools.product(SPLITS, METHODS), *itertools.product(["mean"], METHODS)
    ]  # fmt: skip
    for entry in entries:
        splits = SPLITS if entry["split"] == "mean" else [entry["split"]]
        pooled = SizeMeter()
        for seed, split in itertools.product(SEEDS, splits):
            pooled.counts += sizes(seed, 1, split, entry["method"]).counts
        assert entry["sizes"] == pooled.report()
        factors = {"iou": 100, "found": 100, "false_alarms": 1}
        for title, (name, factor) in zip(BY_SIZE, factors.items(), strict=True):
            head, *rows = tables[title]
            assert head[2:] == [part["name"] for part in entry["sizes"]]
            cells = [f"{factor * part[name]:.2f}" for part in entry["sizes"]]
            assert (["1", entry["method"], *cells] in rows) == (entry["split"] == "mean")


def test_the_seconds_of_each_test_are_averaged_over_splits(tmp_path):
    files, seconds = [], {(54, 0): 1.0, (54, 2): 2.0, (55, 0): 3.0, (55, 2): 6.0}
    for (seed, split), value in seconds.items():
        folder = tmp_path / f"{seed}_{split}"
        folder.mkdir()
        files.append(folder / "metrics.json")
        files[-1].write_text(json.dumps(segmentation(seed, 1, split, lambda *_: [0.5, 0.25])))
        timing = {"images": 1, "seconds": value, "rough_seconds_per_image": value}
        (folder / "timing.json").write_text(json.dumps(timing))
    text = write_summary(tmp_path, files)
    row = "| 1 | all | 2.00 +- 1.00 | 4.00 +- 2.00 | 3.00 +- 1.50 |"
    assert row in text.partition("## rough seconds per image")[2]


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


def test_anomaly_detection_is_averaged_over_objects_within_each_repeat(summed):
    kept = np.random.default_rng(2).random((2, len(ANOMALY), len(SEEDS), REPEATS))

    def measured(number, i):
        pairs = zip(ANOMALY, kept[number, :, i].tolist(), strict=True)
        return {"images": 8} | {m.name: {"repeats": values} for m, values in pairs}

    contents = [
        {"objects": {"nut": measured(0, i), "cable": measured(1, i)}} for i in range(len(SEEDS))
    ]
    tables, _, _, rows = summed(
        [{"seed": s, "shot": 2, "anomaly": c} for s, c in zip(SEEDS, contents, strict=True)]
    )
    labels = [measure.label for measure in ANOMALY]
    nut, cable, mean = ([*map(percent, values)] for values in (*kept, kept.mean(0)))
    assert tables["Means over objects"] == [["shot", *labels], ["2", *mean]]
    assert tables["2-shot, objects"] == [
        ["object", *labels], ["nut", *nut], ["cable", *cable], ["mean", *mean]
    ]  # fmt: skip
    assert list(rows[0]) == ["shot", "object", "metric", "mean", "std", "repeats"]


def test_a_file_without_counts_by_size_is_named(tmp_path):
    content = segmentation(54, 1, 0, lambda *_: [0.5])
    del content["methods"]["prior"]["sizes"][1]["counts"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"old\.json: .* no counts by size; remove its folder"):
        write_summary(tmp_path, [tmp_path / "old.json"])


def test_a_test_of_another_kind_is_named(tmp_path):
    (tmp_path / "bad.json").write_text('{"objects": {}}')
    with pytest.raises(DataError, match=r"bad\.json: a sweep sums up splits and anomaly"):
        write_summary(tmp_path, [tmp_path / "bad.json"])
