from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.gallery import (
    DETAIL,
    SIDE,
    SMALL,
    Entry,
    GalleryWriter,
    all_ranked,
    around,
    detail,
    extremes,
    marks,
    query_panels,
    shrunk,
    support_panels,
)  # fmt: skip
from tools.predictor import Prediction
from utils.visualize import heat

PICTURE = np.full((700, 900, 3), (250, 20, 20), np.uint8)
HIGHEST = "highest of the normal ones"


@pytest.mark.parametrize(
    ("choose", "values", "expected"),
    [
        (extremes, [0.5, 0.3, 0.9, 0.1, 0.7], [("worst", 3), ("median", 0), ("best", 2)]),
        (extremes, [0.4, None, 0.2], [("worst", 2), ("best", 0)]),
        (extremes, [0.6], [("worst", 0)]),
        (extremes, [None], []),
        (extremes, [0.8, 0.8, 0.8, 0.2], [("worst", 3), ("median", 1), ("best", 2)]),
        (all_ranked, [0.5, None, 0.9, 0.1], [("worst", 3), ("", 0), ("best", 2), ("", 1)]),
        (all_ranked, [0.5, 0.5], [("", 0), ("", 1)]),
    ],
)
def test_worst_median_and_best_of_a_class(choose, values, expected):
    """Equal ones stay in their order."""
    entries = [Entry(i, "key", "a", v, f"{i}.png", {}, []) for i, v in enumerate(values)]
    assert [(rank, entry.number) for rank, entry in choose(entries[::-1])] == expected
    normal = [Entry(90 + i, "key", "a", v, "", {}, [], True) for i, v in enumerate((0.1, 9, 0.2))]
    if choose is extremes:
        shown = [(rank, entry.number) for rank, entry in choose([*normal, *entries])]
        assert shown == [*expected, (HIGHEST, 91)]


def add(gallery, number, key, value, panels=(("query", PICTURE),)):
    gallery.add(number, key, f"Rod/{key}", value, f"{number}.png", {"SOFS": value}, panels)


def index_of(folder):
    """The index, once it lists exactly the files that are there."""
    index = json.loads((folder / "index.json").read_text())
    files = [panel["file"] for entry in index for panel in entry["panels"]]
    assert len(set(files)) == len(files)
    assert {*files, "index.json"} == {file.name for file in folder.iterdir()}
    return index


def test_the_index_lists_the_chosen_queries_of_all_processes_and_other_files_go(tmp_path):
    folder = tmp_path / "gallery"
    writers = [GalleryWriter(folder) for _ in range(2)]
    for number, (key, value) in enumerate([("pit", 0.5), *(("dent", v / 10) for v in range(5))]):
        panels = [("query", PICTURE), ("truth", PICTURE[:50, :60])]
        add(writers[number % 2], number, key, value, panels)
    joined = [entry for writer in writers for entry in writer.entries]
    writers[0].finish(joined, ["dent", "pit", "none"])
    index = index_of(folder)
    assert [(e["class"], e["rank"], e["caption"], e["scores"]) for e in index] == [
        ("Rod/dent", "worst", "1.png", {"SOFS": 0.0}),
        ("Rod/dent", "median", "3.png", {"SOFS": 0.2}),
        ("Rod/dent", "best", "5.png", {"SOFS": 0.4}),
        ("Rod/pit", "worst", "0.png", {"SOFS": 0.5}),
    ]
    for entry in index:
        assert [panel["caption"] for panel in entry["panels"]] == ["query", "truth"]
        for panel, size in zip(entry["panels"], [(373, 480), (50, 60)], strict=True):
            picture = cv2.imread(str(folder / panel["file"]))
            assert picture.shape[:2] == size and picture[..., 2].mean() > 240, "RGB"
            assert (folder / panel["file"]).read_bytes()[:2] == b"\xff\xd8", "JPEG"


def test_supports_are_added_and_score_maps_coloured_by_the_highest_value_of_their_class(tmp_path):
    gallery, asked = GalleryWriter(tmp_path), []
    for number, value in enumerate((0.3, 0.6, 0.7, 1.2)):
        add(gallery, number, "dent", value, [("score", np.full((40, 50), value, np.float32))])
    supports = lambda entry: asked.append(entry.number) or [("support", PICTURE)]  # noqa: E731
    gallery.finish(before=supports)
    assert asked == [0, 2, 3]
    for entry, share in zip(index_of(tmp_path), (0.25, 0.7 / 1.2, 1), strict=True):
        assert [panel["caption"] for panel in entry["panels"]] == ["support", "score"]
        picture = cv2.imread(str(tmp_path / entry["panels"][1]["file"]))[..., ::-1]
        assert np.abs(picture - heat(np.full((40, 50), share)).astype(int)).max() < 6


def test_without_a_query_there_is_no_gallery(tmp_path):
    gallery = GalleryWriter(tmp_path / "gallery")
    gallery.finish()
    add(gallery, 0, "dent", None)
    gallery.finish()
    assert not (tmp_path / "gallery").exists()


SIDES = st.tuples(st.integers(300, 1500), st.integers(300, 1500))
PARTS = st.tuples(*[st.floats(0, 0.99)] * 2, *[st.integers(1, 400)] * 2)


@given(SIDES, PARTS)
def test_a_detail_and_a_small_mask_hold_all_that_is_marked_in_its_place(shape, part):
    mask = np.zeros(shape, np.uint8)
    top, left = int(part[0] * shape[0]), int(part[1] * shape[1])
    mask[top : top + part[2], left : left + part[3]] = 1
    box, small = detail(mask), marks(mask)
    lengths = [len(np.flatnonzero(mask.any(axis))) for axis in (1, 0)]
    sides = [min(n, max(DETAIL, 2 * m)) for n, m in zip(shape, lengths, strict=True)]
    assert (box is None) == (sides[0] * sides[1] >= SMALL * mask.size)
    if box is not None:
        assert all(0 <= s.start < s.stop <= n for s, n in zip(box, shape, strict=True))
        assert list(mask[box].shape) == sides and mask[box].sum() == mask.sum()
        assert marks(mask.astype(bool), box).any()
    assert small.shape == shrunk(np.zeros((*shape, 3), np.uint8)).shape[:2]
    assert max(small.shape) == min(SIDE, max(shape))
    for axis in (1, 0):
        scale = mask.shape[1 - axis] / small.shape[1 - axis]
        first, last = np.flatnonzero(small.any(axis))[[0, -1]]
        true_first, true_last = np.flatnonzero(mask.any(axis))[[0, -1]]
        assert true_first - 2 * scale <= first * scale <= true_first + 1
        assert last * scale - 1 <= true_last <= (last + 1) * scale


def answers_of(mask):
    return {m: Prediction(mask, mask.astype(np.float32), 1, 0.5) for m in ("SOFS", "prior")}


def test_no_detail_of_nothing_and_scores_spread_around_the_threshold():
    assert detail(np.zeros((1000, 1200), np.uint8)) is None
    score = np.array([[0.3, 0.35, 0.2]], np.float32)
    np.testing.assert_allclose(around(score, 0.3), [[0.5, 0.75, 0.0]], atol=1e-6)
    np.testing.assert_allclose(around(score[:, :2] / 100, 0.003), [[0.5, 0.505]], atol=1e-6)


def test_panels_show_a_small_defect_as_a_detail():
    image = np.random.default_rng(0).integers(0, 256, (400, 470, 3)).astype(np.uint8)
    image = np.repeat(np.repeat(image, 3, 0), 3, 1)
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[700:720, 600:630] = 1
    panels = query_panels(image, mask, answers_of(mask))
    assert [caption for caption, _ in panels] == [
        *("query", "SOFS, whole", "truth, detail"),
        *("SOFS, detail", "SOFS score, detail", "prior, detail", "prior score, detail"),
    ]
    box = detail(mask)
    pictures = [picture for _, picture in panels]
    framed = (pictures[0] != shrunk(image)).any(-1)
    for axis, edges in zip((1, 0), box, strict=True):
        ends = np.flatnonzero(framed.any(axis))[[0, -1]] * max(image.shape) / SIDE
        np.testing.assert_allclose(ends, [edges.start, edges.stop], atol=6)
    assert all(picture.shape == (DETAIL, DETAIL, 3) for picture in pictures[2:])
    assert np.array_equal(pictures[2][:50], image[box][:50])
    pairs = [(image, mask), (image, np.ones_like(mask)), (image, mask)]
    assert [caption for caption, _ in support_panels(pairs)] == ["support, detail", "support"]


@pytest.mark.parametrize("truth", [["truth"], []])
def test_panels_of_a_large_defect_and_without_a_truth(truth):
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    mask[20:50, 10:60] = 1
    panels = query_panels(image, mask if truth else None, answers_of(mask))
    methods = ["SOFS", "SOFS score", "prior", "prior score"]
    assert [caption for caption, _ in panels] == ["query", *truth, *methods]
    assert all(picture.shape == image.shape for _, picture in panels)
