"""Invented annotation files of VISION V1 that are odd or broken."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from datasets.rle import rle_of_annotation
from tests.fuzz.trees import changed, spoilt


def annotations(size=(12, 16), names=("a.png", "b.png", "c.png", "gone.png")):
    """COCO of some images, with polygons and both forms of run lengths."""
    height, width = size
    runs = {"size": [height, width], "counts": [height + 2, 5, height * width - height - 7]}
    shapes = [[[2, 2, 8, 2, 8, 8, 2, 8]], [[1.5, 1, 4, 1], [0, 0]]]
    shapes += [runs, rle_of_annotation(runs, size)]
    listed = {"height": height, "width": width}
    return {
        "images": [{"id": i, "file_name": name} | listed for i, name in enumerate(names)],
        "categories": [{"id": 0, "name": "spot"}, {"id": 7, "name": "line"}],
        "annotations": [
            {"id": i, "image_id": i % len(names), "category_id": 7 * (i % 2)}
            | {"segmentation": shapes[i % 4]}
            for i in range(6)
        ],
    }


def contents(tree):
    """Content of an annotation file: a changed tree, or a spoilt text."""
    odd = changed(tree).map(lambda found: json.dumps(found).encode())
    return st.one_of(odd, odd, spoilt(json.dumps(tree)))
