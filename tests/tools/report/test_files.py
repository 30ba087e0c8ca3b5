from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image

from tests.tools.report.example import query_rows, write_gallery, write_queries
from tools.report.embed import embed_image
from tools.report.files import read_config, read_gallery, read_queries
from utils.errors import DataError


def test_queries_pool_their_pixels_over_the_repeats(tmp_path):
    rows = list(query_rows(["a", 'b,\n"c"']))
    write_queries(tmp_path / "queries.csv", rows)
    found = read_queries(tmp_path / "queries.csv")
    pooled = defaultdict(lambda: np.zeros(2))
    for _, query, name, _, method, share, _, _, intersection, _, union in rows:
        pooled[method, name, query, share] += intersection, union
    for method in ("SOFS", "prior"):
        known = [
            (share, hit / union)
            for (m, _, _, share), (hit, union) in pooled.items()
            if m == method and share
        ]
        np.testing.assert_allclose(found.points[method], known)
    assert found.without_defect == 1
    assert found.threshold == pytest.approx({"SOFS": 0.5, "prior": 0.7})


def test_a_query_without_a_threshold_has_none_in_the_mean(tmp_path):
    write_queries(
        tmp_path / "q.csv",
        [[0, i, "a", "a.jpg", "SOFS", 0.1, t, 1, 1, 1, 1] for i, t in enumerate([0.4, ""])],
    )
    assert read_queries(tmp_path / "q.csv").threshold == {"SOFS": 0.4}


def test_the_gallery_is_sorted_within_its_classes_in_their_order(tmp_path):
    write_gallery(tmp_path / "gallery", ["b", "a"])
    index = json.loads((tmp_path / "gallery" / "index.json").read_text())
    (tmp_path / "gallery" / "index.json").write_text(json.dumps(index[::2] + index[1::2]))
    found = [
        (item.class_name, item.rank) for item in read_gallery(tmp_path / "gallery" / "index.json")
    ]
    assert found == [(name, rank) for name in "ba" for rank in ("worst", "median", "best")]


def test_queries_of_other_ranks_come_after_as_they_stand(tmp_path):
    """Such as an anomaly run's normal images, and all of an open domain run without true labels."""
    write_gallery(tmp_path / "gallery", ["a"])
    file = tmp_path / "gallery" / "index.json"
    index = json.loads(file.read_text())
    extra = [
        index[0] | {"rank": rank, "caption": rank}
        for rank in ("", "highest of the normal ones", "")
    ]
    file.write_text(json.dumps([*extra, *index]))
    assert [item.rank for item in read_gallery(file)] == [
        *("worst", "median", "best", "", "highest of the normal ones", "")
    ]


def test_a_picture_above_the_limit_is_shrunk_in_proportion(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (240, 480, 4), np.uint8)
    Image.fromarray(noise, "RGBA").save(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    whole, small, least = (embed_image(tmp_path / "a.png", most) for most in (size, 30_000, 1))
    assert (whole.width, whole.height, whole.uri[:15]) == (480, 240, "data:image/png;")
    assert 30_000 > len(small.uri) * 3 / 4 > 5_000 and small.uri.startswith("data:image/jpeg;")
    assert small.width == pytest.approx(2 * small.height, abs=2) and 110 < small.width < 480
    assert (least.width, least.height) == (110, 55)


def test_a_config_that_is_no_tree_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(DataError, match=r"config\.yaml"):
        read_config(tmp_path / "config.yaml")


def test_a_picture_of_another_kind_is_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", "GIF")
    with pytest.raises(DataError, match=r"a\.jpg"):
        embed_image(tmp_path / "a.jpg", 1000)
