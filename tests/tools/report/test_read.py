from __future__ import annotations

import csv
import io
import json
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from tests.tools.report.example import HEADER, query_rows, write_gallery, write_run
from tools.report import write_report
from tools.report.read import read_gallery, read_queries
from utils.errors import DataError


def test_queries_pool_their_pixels_over_the_repeats():
    """A query without a threshold has none in the mean."""
    rows = list(query_rows(["a", 'b,\n"c"']))
    text = io.StringIO()
    csv.writer(text).writerows([HEADER, *rows, [0, 99, "a", "", "SOFS", 0, "", 1, 1, 1, 1]])
    points, without_defect, thresholds = read_queries(text.getvalue())
    pooled = defaultdict(lambda: np.zeros(2))
    for _, query, name, _, method, share, _, _, intersection, _, union in rows:
        pooled[method, name, query, share] += intersection, union
    for name in ("SOFS", "prior"):
        sums = [(share, *sums) for (m, _, _, share), sums in pooled.items() if m == name and share]
        np.testing.assert_allclose(points[name], [(share, a / b) for share, a, b in sums])
    assert without_defect == 2
    assert thresholds == pytest.approx({"SOFS": 0.5, "prior": 0.7})


def test_the_gallery_is_sorted_within_its_classes_in_their_order(tmp_path):
    """Other ranks than worst, median and best, as of normal images, come last."""
    write_gallery(tmp_path / "gallery", ["b", "a"])
    index = json.loads((tmp_path / "gallery" / "index.json").read_text())
    others = [index[0] | {"rank": rank} for rank in ("", "highest of the normal ones", "")]
    classes = read_gallery(json.dumps([*others, *index[::2], *index[1::2]]))
    ranks = {name: [item["rank"] for item in items] for name, items in classes.items()}
    three = ["worst", "median", "best"]
    assert ranks == {"b": [*three, "", "highest of the normal ones", ""], "a": three}
    assert list(ranks) == ["b", "a"]


BROKEN = {
    "metrics.json": ("{", "[" * 200_000, "{}", "\xff\xfe", '{"methods": {"SOFS": {"miou": 1}}}'),
    "run.json": ("[]",), "timing.json": ("{}",), "queries.csv": ("query,method\n0,SOFS\n",),
    "curves.json": ("[]",), "history.json": ("[{",), "gallery/index.json": ('[{"class": "a"}]',),
    "gallery/0000_query.jpg": ("no picture",), "config.yaml": ("a: [b", "- 1\n- 2\n"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), [(n, text) for n in BROKEN for text in BROKEN[n]])
def test_a_broken_file_is_named(tmp_path, name, content):
    run = write_run(tmp_path)
    (run / name).write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=f"{run / name}: not as a run writes it"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_picture_that_lies_outside_the_gallery_is_refused(tmp_path):
    run = write_run(tmp_path)
    Image.new("RGB", (4, 4)).save(run / "secret.jpg")
    file = run / "gallery" / "index.json"
    file.write_text(file.read_text().replace("0000_support.jpg", "../secret.jpg"))
    with pytest.raises(DataError, match=r"gallery/secret\.jpg"):
        write_report(run)
