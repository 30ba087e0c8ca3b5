"""A run's folder as the jobs leave it, with invented values, and a parser of its report."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from utils.metrics import BY_SIZE, NORMAL, SEGMENTATION

VOID = {"img", "link", "meta", "source", "wbr"}
RANGES = [("under 0.03 %", 0.0, 3e-4), ("0.03-0.3 %", 3e-4, 3e-3), ("over 0.3 %", 3e-3, 1.0)]
COUNTS = "intersection_background,intersection,union_background,union"
HEADER = f"repeat,query,class,image,method,share,threshold,{COUNTS}".split(",")
RUN = {"finished": "2026-01-02T03:04:05+0000", "seconds": 61.8, "processes": 2, "device": "cpu"}
HISTORY = [
    {"epoch": 1, "loss": 0.5, "learning_rate": 1e-3},
    {"epoch": 2, "loss": 0.4, "learning_rate": 5e-4, "train_miou": 0.3,
     "validation": {"SOFS": 0.2, "prior": 0.1}},
]  # fmt: skip
CURVE = {"threshold": [0.0, 0.5, 1.0], "precision": [0.1, 0.5, None], "recall": [1.0, 0.6, 0.2],
         "iou": [0.1, 0.4, 0.0], "average_precision": 0.345}  # fmt: skip
CURVES = [CURVE | {"name": name} for name in ("SOFS", "prior")]


class Page(HTMLParser):
    """`tags` are (name, attributes), `tables` rows of cells, `text` is all of it."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.tables, self.text, self.open = html, [], [], "", []
        self.feed(html)
        self.close()
        assert not self.open, "unclosed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]


def summary(key, *values):
    """A figure of metrics.json from its repeats."""
    mean, std = (float(np.mean(values)), float(np.std(values))) if values else (None, None)
    return {key: mean, "std": std, "repeats": list(values) or [None]}


def metrics(classes, repeats=3):
    """metrics.json of a split test."""
    rng, methods = np.random.default_rng(0), {}
    for method in ("SOFS", "prior"):
        random = {m.name: summary("mean", *rng.random(repeats)) for m in (*SEGMENTATION, *NORMAL)}
        normal = {measure.name: random.pop(measure.name) for measure in NORMAL}
        methods[method] = random | {"normal": normal}
        methods[method]["classes"] = {
            name: summary("iou", *rng.random(repeats)) | {"queries": 7} for name in classes
        }
        methods[method]["sizes"] = [
            {"name": name, "low": low, "high": high, "queries": 4, "defects": 9}
            | {measure.name: rng.random() for measure in BY_SIZE}
            for name, low, high in RANGES
        ]
    head = {"data_set": "VISION_V1_ND", "split": 2, "shot": 1, "seed": 54, "backbone": "tiny"}
    faults = {"unreadable": ["a.jpg: cut short"], "failed_queries": 2}
    return head | {"torch": "2.0"} | faults | {"methods": methods}


def query_rows(classes, repeats=3, gain=0, seed=0):
    """Rows of queries.csv, six queries per class; the first has no defect."""
    rng, n = np.random.default_rng(seed), len(classes)
    for repeat in range(repeats):
        for query in range(6 * n):
            share = 10.0 ** -(1 + query % 4) if query else 0.0
            about = [repeat, query, classes[query % n], f"{query // n}.jpg"]
            for method, threshold in (("SOFS", 0.5), ("prior", 0.6 + 0.1 * repeat)):
                counts = [500, int(rng.integers(40)) + gain, 600, 100]
                yield [*about, method, share, threshold, *counts]


def write_queries(file, rows):
    with file.open("w", encoding="utf-8", errors="replace", newline="") as target:
        csv.writer(target).writerows([HEADER, *rows])


def write_gallery(folder, classes):
    """Best first in the file; every panel another picture."""
    folder.mkdir()
    rng, index = np.random.default_rng(0), []
    for name in classes:
        for rank in ("best", "median", "worst"):
            panels = []
            for caption in ("support", "query", "truth"):
                panels.append({"caption": caption, "file": f"{len(index):04d}_{caption}.jpg"})
                picture = Image.fromarray(rng.integers(0, 255, (24, 26, 3), np.uint8))
                picture.save(folder / panels[-1]["file"], quality=95)
            about = {"class": name, "rank": rank, "caption": "x.jpg", "panels": panels}
            index.append(about | {"scores": {"SOFS": 0.1234, "prior": None}})
    (folder / "index.json").write_text(json.dumps(index))


def write_metrics(folder, content, suffix=""):
    """A run of nothing but its metrics."""
    folder.mkdir(exist_ok=True)
    (folder / f"metrics{suffix}.json").write_text(json.dumps(content))
    return folder


def write_run(folder, classes=("Ring/rust", "Ring/dent", "Wood/hole"), suffix=""):
    """Everything that a run may leave."""
    write_metrics(folder, metrics(classes), suffix)
    write_queries(folder / f"queries{suffix}.csv", query_rows(classes))
    (folder / f"curves{suffix}.json").write_text(json.dumps({"curves": CURVES}))
    (folder / "history.json").write_text(json.dumps(HISTORY))
    (folder / "run.json").write_text(json.dumps(RUN))
    timing = {"images": 9, "seconds": 2.0, "rough_seconds_per_image": 2 / 9}
    (folder / f"timing{suffix}.json").write_text(json.dumps(timing))
    config = "DATASET:\n  name: other\nTRAIN:\n  backbone: other\nRNG_SEED: 3\n"
    (folder / "config.yaml").write_text(config)
    write_gallery(folder / f"gallery{suffix}", classes)
    return folder
