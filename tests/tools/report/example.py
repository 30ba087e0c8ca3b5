"""A run's folder as the jobs leave it, with invented figures, and a parser of its report."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = {"br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
RANGES = [
    ("under 0.03 %", 0.0, 3e-4),
    ("0.03-0.3 %", 3e-4, 3e-3),
    ("0.3-3 %", 3e-3, 3e-2),
    ("over 3 %", 3e-2, 1.0),
]
COUNTS = "intersection_background,intersection,union_background,union"
HEADER = f"repeat,query,class,image,method,share,threshold,{COUNTS}".split(",")
RANKS = ("worst", "median", "best")


class Page(HTMLParser):
    """html: as it is.  tags: (name, attributes).  tables: rows of the texts of their cells.  text: all of it."""

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


def summary(rng, key, repeats, **more):
    values = rng.random(repeats).tolist()
    return {key: float(np.mean(values)), "std": float(np.std(values)), "repeats": values} | more


def metrics(classes, repeats=3, seed=0, methods=("SOFS", "prior")):
    """metrics.json of a split test."""
    rng = np.random.default_rng(seed)
    measures = ("iou", "recall", "false_positive_area", "found", "false_alarms")
    found = {
        method: {
            "miou": summary(rng, "mean", repeats),
            "fb_iou": summary(rng, "mean", repeats),
            "classes": {
                name: summary(rng, "iou", repeats, queries=7 + i) for i, name in enumerate(classes)
            },
            "sizes": [
                {"name": n, "low": a, "high": b, "queries": 4, "defects": 9}
                | {m: rng.random() for m in measures}
                for n, a, b in RANGES
            ],
            "threshold": summary(rng, "mean", repeats),
        }
        for method in methods
    }
    head = {
        "data_set": "VISION_V1_ND",
        "split": 2,
        "shot": 1,
        "seed": 54,
        "backbone": "tiny",
        "torch": "2.0",
    }
    more = {"unreadable": ["a.jpg: cut short"], "failed_queries": 2}
    return head | more | {"methods": found}


def query_rows(classes, repeats=3, seed=0):
    rng = np.random.default_rng(seed)
    for repeat in range(repeats):
        for query in range(3 * len(classes)):
            share = 10.0 ** -(1 + query % 4) if query else 0.0
            for method, threshold in (("SOFS", 0.5), ("prior", 0.6 + 0.1 * repeat)):
                hit = int(rng.integers(0, 90))
                name = classes[query % len(classes)]
                yield [
                    repeat,
                    query,
                    name,
                    f"{query}.jpg",
                    method,
                    share,
                    threshold,
                    500,
                    hit,
                    600,
                    100,
                ]


def write_queries(file, rows):
    with file.open("w", encoding="utf-8", errors="replace", newline="") as target:
        csv.writer(target).writerows([HEADER, *rows])


def write_gallery(folder, classes, side=24, captions=("support", "query", "truth")):
    """Best first in the file; every panel another picture."""
    folder.mkdir()
    rng, index = np.random.default_rng(0), []
    for name in classes:
        for rank in reversed(RANKS):
            panels = []
            for caption in captions:
                file = f"{len(index):04d}_{len(panels)}.jpg"
                Image.fromarray(rng.integers(0, 255, (side, side + 2, 3), np.uint8)).save(
                    folder / file, quality=95
                )
                panels.append({"caption": caption, "file": file})
            scores = {"SOFS": 0.1234, "prior": None}
            index.append(
                {
                    "class": name,
                    "rank": rank,
                    "caption": "x.jpg",
                    "scores": scores,
                    "panels": panels,
                }
            )
    (folder / "index.json").write_text(json.dumps(index))


def curves(names=("SOFS", "prior")):
    columns = {
        "threshold": [0.0, 0.5, 1.0],
        "precision": [0.1, 0.5, None],
        "recall": [1.0, 0.5, 0.0],
    }
    return {
        "curves": [
            columns | {"name": n, "iou": [0.1, 0.4, 0.0], "average_precision": 0.3} for n in names
        ]
    }


HISTORY = [
    {"epoch": 1, "loss": 0.5, "learning_rate": 1e-3},
    {
        "epoch": 2,
        "loss": 0.4,
        "learning_rate": 5e-4,
        "train_miou": 0.3,
        "validation": {"SOFS": 0.2, "prior": 0.1},
    },
]


RUN = {"finished": "2026-01-02T03:04:05+0000", "seconds": 61.8, "processes": 2, "device": "cpu"}


def write_run(folder, classes=("Ring/rust", "Ring/dent", "Wood/hole"), suffix=""):
    """Everything that a run may leave."""
    folder.mkdir(exist_ok=True)
    (folder / f"metrics{suffix}.json").write_text(json.dumps(metrics(classes)))
    write_queries(folder / f"queries{suffix}.csv", query_rows(classes))
    (folder / f"curves{suffix}.json").write_text(json.dumps(curves()))
    (folder / "history.json").write_text(json.dumps(HISTORY))
    (folder / "run.json").write_text(json.dumps(RUN))
    (folder / "config.yaml").write_text(
        "DATASET:\n  name: other\nTRAIN:\n  backbone: other\nRNG_SEED: 3\n"
    )
    write_gallery(folder / f"gallery{suffix}", classes)
    return folder
