from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.tools.report.example import query_rows, write_gallery, write_queries
from tools.report import write_report
from tools.report.read import read_gallery, read_queries
from utils.errors import DataError

COLUMNS = "repeat,query,class,image,method,share,threshold,intersection,union\n"
OBJECT = '{"objects": {"a": {"queries": 1, "iou": {"SOFS": %s}}}}'


def test_queries_pool_their_pixels_over_the_repeats(tmp_path):
    rows = list(query_rows(["a", 'b,\n"c"']))
    write_queries(tmp_path / "queries.csv", rows)
    points, without_defect, thresholds = read_queries(tmp_path / "queries.csv")
    pooled = defaultdict(lambda: np.zeros(2))
    for _, query, name, _, method, share, _, _, intersection, _, union in rows:
        pooled[method, name, query, share] += intersection, union
    for method in ("SOFS", "prior"):
        expected = [
            (share, part / whole)
            for (m, _, _, share), (part, whole) in pooled.items()
            if m == method and share
        ]
        np.testing.assert_allclose(points[method], expected)
    assert without_defect == 1
    assert thresholds == pytest.approx({"SOFS": 0.5, "prior": 0.7})


def test_a_query_without_a_threshold_has_none_in_the_mean(tmp_path):
    rows = [[0, i, "a", "a.jpg", "SOFS", 0.1, t, 1, 1, 1, 1] for i, t in enumerate([0.4, ""])]
    write_queries(tmp_path / "q.csv", rows)
    assert read_queries(tmp_path / "q.csv")[2] == {"SOFS": 0.4}


def test_the_gallery_is_sorted_within_its_classes_in_their_order(tmp_path):
    """Other ranks than worst, median and best, as of normal images, come last."""
    write_gallery(tmp_path / "gallery", ["b", "a"])
    file = tmp_path / "gallery" / "index.json"
    index = json.loads(file.read_text())
    others = [index[0] | {"rank": rank} for rank in ("", "highest of the normal ones", "")]
    file.write_text(json.dumps([*others, *index[::2], *index[1::2]]))
    ranks = {name: [item["rank"] for item in items] for name, items in read_gallery(file).items()}
    three = ["worst", "median", "best"]
    assert ranks == {"b": [*three, "", "highest of the normal ones", ""], "a": three}
    assert list(ranks) == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{"),
        ("metrics.json", "[]"),
        ("metrics.json", "[" * 200_000),
        ("metrics.json", "{}"),
        ("metrics.json", '{"methods": {}}'),
        ("metrics.json", '{"methods": {"SOFS": {"miou": 1}}}'),
        ("metrics.json", OBJECT % "NaN"),
        ("metrics.json", OBJECT % '"high"'),
        ("metrics.json", OBJECT % "true"),
        ("metrics.json", '{"objects": {}, "methods": {}}'),
        ("metrics.json", '{"anomaly": {"objects": {}}}'),
        ("metrics.json", "\xff\xfe"),
        ("run.json", "[]"),
        ("run.json", '{"finished": "yesterday", "seconds": 1, "processes": 1, "device": "cpu"}'),
        ("queries.csv", "query,method\n0,SOFS\n"),
        ("queries.csv", COLUMNS + "0,0,a,a.jpg,SOFS,0.1\n"),
        ("queries.csv", COLUMNS + "0,0,a,a,SOFS,nan,1,1,1\n"),
        ("curves.json", '{"curves": [{"name": "a"}]}'),
        ("curves.json", '{"curves": [{"name": "a", "threshold": [0], "precision": [], '
                        '"recall": [], "average_precision": 0}]}'),
        ("history.json", '[{"epoch": 1}]'),
        ("gallery/index.json", "{"),
        ("gallery/index.json", '[{"class": "a"}]'),
        ("gallery/0000_0.jpg", "no picture"),
        ("config.yaml", "a: [b"),
        ("config.yaml", "- 1\n- 2\n"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named(run, name, content):
    (run / name).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=Path(name).name.replace(".", r"\.")):
        write_report(run)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    "name", ["gone.jpg", "../secret.jpg", "link.jpg", "/secret.jpg", "", "x" * 300, "\ud800"]
)
def test_a_picture_that_is_missing_or_lies_outside_the_gallery_is_refused(run, name):
    Image.new("RGB", (4, 4)).save(run / "secret.jpg")
    (run / "gallery" / "link.jpg").symlink_to(run / "secret.jpg")
    index = json.loads((run / "gallery" / "index.json").read_text())
    absolute = name.startswith("/")
    index[0]["panels"][0]["file"] = f"{run}{name}" if absolute else name
    (run / "gallery" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"index\.json"):
        write_report(run)
