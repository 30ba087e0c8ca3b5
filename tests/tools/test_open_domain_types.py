from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import large_images as strips
from datasets.images import read_image
from datasets.readers.open_domain import read_open_domain
from models.backbone import Backbone
from tests.helpers import surface
from tests.tools.open_domain_data import (
    QUERIES,
    as_levels,
    config,
    run,
    write_object,
    write_typed,
    written,
)
from tools import open_domain_files
from tools.open_domain import SHOWN, ObjectJob, read_supports
from tools.predictor import Predictor
from tools.results import Evaluation
from tools.tester import run_test
from utils import large_arrays as memory
from utils.errors import DataError
from utils.visualize import colour_of


def test_every_type_has_its_masks_scores_and_support_file(tmp_path):
    """And labels.png names, of the types that claim a pixel, the one furthest above its threshold."""
    write_typed(tmp_path / "data")
    cfg = config(tmp_path / "data", tmp_path, TEST__threshold=0.47)
    folder = run_test(cfg, "") / "steel"
    assert {p.name for p in folder.iterdir()} == {
        *(
            "masks",
            "scores",
            "labels",
            "overlays",
            "support_line.safetensors",
            "support_spot.safetensors",
        )
    }
    predictor, both = Predictor.from_config(cfg), 0
    for file, size in QUERIES.items():
        name, answers = Path(file).stem, []
        for kind in ("line", "spot"):
            predictor.load_support(folder / f"support_{kind}.safetensors")
            answers.append(
                predictor.predict(tmp_path / "data" / "steel" / "query" / "image" / file)
            )
            assert np.array_equal(
                written(folder, f"scores/{kind}", name), as_levels(answers[-1].score)
            )
            assert np.array_equal(written(folder, f"masks/{kind}", name), answers[-1].mask * 255)
        above = np.stack([np.where(a.mask, a.score - a.threshold, -1) for a in answers])
        labels = written(folder, "labels", name)
        assert labels.dtype == np.uint8 and labels.shape == size
        assert np.array_equal(labels, np.where((above > -1).any(0), above.argmax(0) + 1, 0))
        assert set(np.unique(labels)) == {0, 1, 2}
        both += int((above > -1).all(0).sum())
    assert both > 0, "pixels that both types claim"


def test_the_overlay_of_several_types_explains_its_colours_below_the_image(tmp_path):
    write_typed(tmp_path / "data")
    folder = run(tmp_path / "data", tmp_path, TEST__threshold=0.47) / "steel"
    for file, (height, width) in QUERIES.items():
        image = read_image(tmp_path / "data" / "steel" / "query" / "image" / file)
        picture = written(folder, "overlays", Path(file).stem)[:, :, ::-1]
        labels = written(folder, "labels", Path(file).stem)
        assert picture.shape[1] == width and picture.shape[0] > height
        upper, bar = picture[:height], picture[height:]
        assert np.array_equal(upper[labels == 0], image[labels == 0])
        for number in (1, 2):
            assert (bar == colour_of(number)).all(-1).any() and (upper == colour_of(number)).all(
                -1
            ).any()
            tinted = (upper[labels == number] != image[labels == number]).any(-1)
            assert tinted.mean() > 0.9


def test_windows_are_encoded_once_for_all_types_of_one_scale(tmp_path, monkeypatch):
    write_typed(tmp_path / "data")
    seen, forward = [], Backbone.forward
    monkeypatch.setattr(
        Backbone, "forward", lambda self, images: seen.append(len(images)) or forward(self, images)
    )
    counts = []
    for number, kinds in enumerate((("line", "spot"), ("line",), ("spot",))):
        for kind in ("line", "spot"):
            (tmp_path / "data" / "steel" / "support" / kind).rename(tmp_path / kind)
        for kind in kinds:
            (tmp_path / kind).rename(tmp_path / "data" / "steel" / "support" / kind)
        seen.clear()
        run(tmp_path / "data", tmp_path, RUN_NAME=str(number))
        counts.append(sum(seen))
        for kind in set(("line", "spot")) - set(kinds):
            (tmp_path / kind).rename(tmp_path / "data" / "steel" / "support" / kind)
    windows = 4 + 4 + 4
    assert counts[0] == counts[1] + counts[2] - windows and counts[1] > windows


def test_figures_of_every_type(tmp_path):
    """IoU by the type's own masks and true labels, counts of each query, and pictures by type."""
    labels = ("one.png", "two.jpg")
    truth = write_typed(tmp_path / "data", labels=labels)
    (tmp_path / "data" / "steel" / "query" / "true_label" / "line" / "two_mask.png").unlink()
    folder = run(tmp_path / "data", tmp_path)
    report = json.loads((folder / "metrics.json").read_text())
    assert list(report["objects"]) == ["steel/line", "steel/spot"] and report["shot"] == [2]
    with (folder / "queries.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["class"], r["image"]) for r in rows] == [
        ("steel/line", "steel/query/image/one.png"),
        ("steel/spot", "steel/query/image/one.png"),
        ("steel/spot", "steel/query/image/two.jpg"),
    ]
    for kind, files in (("line", labels[:1]), ("spot", labels)):
        found = [written(folder / "steel", f"masks/{kind}", Path(f).stem) > 0 for f in files]
        pairs = [(p, truth[kind][f]) for p, f in zip(found, files, strict=True)]
        counts = [(int((p & t).sum()), int((p | t).sum())) for p, t in pairs]
        assert counts == [
            (int(r["intersection"]), int(r["union"])) for r in rows if r["class"] == f"steel/{kind}"
        ]
        iou = sum(i for i, _ in counts) / sum(u for _, u in counts)
        entry = report["objects"][f"steel/{kind}"]
        counts = {"queries": 3, "labelled": len(files)}
        assert entry == counts | {"iou": {"prior": pytest.approx(iou)}, "unreadable": []}
    assert (folder / "curves.json").is_file()
    shown = json.loads((folder / "gallery" / "index.json").read_text())
    assert [entry["class"] for entry in shown] == ["steel/line"] * 3 + ["steel/spot"] * 3
    for kind, known in (("line", 1), ("spot", 2)):
        entries = [e for e in shown if e["class"] == f"steel/{kind}"]
        scores = [e["scores"].get("prior") for e in entries]
        assert [s is None for s in scores] == [False] * known + [True] * (3 - known), (
            "without a true label: last"
        )
        assert [e["rank"] for e in entries] == (["worst", "best", ""] if known == 2 else [""] * 3)
        assert scores[:known] == sorted(scores[:known])
    files = [panel["file"] for entry in shown for panel in entry["panels"]]
    assert {p.name for p in (folder / "gallery").iterdir()} == {*files, "index.json"}


@pytest.mark.parametrize("ratio", [0.02, 0.5])
def test_types_of_different_scale_in_one_object(tmp_path, ratio):
    """A stain covers most of its support and is looked for in the resized image, a line in windows."""
    write_typed(tmp_path / "data", ("line", "stain"), {"one.png": (150, 170), "two.png": (90, 70)})
    cfg = config(tmp_path / "data", tmp_path, DATASET__area_resize_ratio=ratio)
    folder = run_test(cfg, "") / "steel"
    predictor = Predictor.from_config(cfg)
    windowed = []
    for kind in ("line", "stain"):
        windowed.append(predictor.load_support(folder / f"support_{kind}.safetensors").windowed)
        for name in ("one", "two"):
            answer = predictor.predict(
                tmp_path / "data" / "steel" / "query" / "image" / f"{name}.png"
            )
            score = written(folder, f"scores/{kind}", name)
            assert np.abs(score / 65535 - answer.score).max() < 1e-4
            assert (answer.windows > 1) == windowed[-1]
    assert windowed == [True, ratio == 0.5]


@pytest.mark.parametrize("by_type", [True, False])
def test_images_without_defect_take_back_what_they_show(tmp_path, by_type):
    """What looked like a defect on a normal image, given as such, is marked less, and nothing is marked more."""
    kinds = ("line", "spot") if by_type else ("spot",)
    write_typed(tmp_path / "data", kinds, {"one.png": (96, 128)})
    root, rng = tmp_path / "data" / "steel", np.random.default_rng(5)
    if not by_type:
        for part in ("image", "mask"):
            (root / "support" / "spot" / part).rename(root / "support" / part)
        (root / "support" / "spot").rmdir()
    normal = surface((96, 128), rng)
    normal[40:56, ::8] = 220  # a pattern of the product that the supports do not show
    Image.fromarray(normal).save(root / "query" / "image" / "two.png")
    before = run(tmp_path / "data", tmp_path, RUN_NAME="before") / "steel"
    (root / "support" / "good").mkdir()
    Image.fromarray(normal).save(root / "support" / "good" / "n.png")
    after = run(tmp_path / "data", tmp_path, RUN_NAME="after") / "steel"
    for kind in kinds if by_type else ("",):
        for name in ("one", "two"):
            scores = [written(f, f"scores/{kind}", name).astype(int) for f in (before, after)]
            masks = [written(f, f"masks/{kind}", name) > 0 for f in (before, after)]
            assert (scores[1] <= scores[0] + 1).all() and (scores[1] < scores[0]).any()
            assert not (masks[1] & ~masks[0]).any()
            if name == "two":
                assert (scores[1] < scores[0]).mean() > 0.99
                assert masks[1].sum() < 0.5 * masks[0].sum()


def test_an_unreadable_image_without_defect_is_an_error_before_anything_is_written(tmp_path):
    write_object(tmp_path / "data", "steel")
    path = tmp_path / "data" / "steel" / "support" / "good" / "n.png"
    path.parent.mkdir()
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match=str(path)):
        run(tmp_path / "data", tmp_path)
    assert not (tmp_path / "log").exists()


def test_names_of_types_may_hold_spaces_and_any_letters(tmp_path):
    write_typed(tmp_path / "data", queries={"one.png": (40, 60)}, labels=("one.png",))
    root = tmp_path / "data" / "steel"
    for part in (root / "support", root / "query" / "true_label"):
        (part / "line").rename(part / "tiefer Kratzer ß.png")
        (part / "spot").rename(part / "斑点")
    folder = run(tmp_path / "data", tmp_path)
    assert list(json.loads((folder / "metrics.json").read_text())["objects"]) == [
        "steel/tiefer Kratzer ß.png",
        "steel/斑点",
    ]
    for kind in ("tiefer Kratzer ß.png", "斑点"):
        for part in ("masks", "scores"):
            assert (folder / "steel" / part / kind / "one.png").is_file()
        assert (folder / "steel" / f"support_{kind}.safetensors").is_file()
    assert "steel/斑点" in (folder / "queries.csv").read_text(encoding="utf-8")


def test_a_large_image_in_strips_gets_the_same_answers(tmp_path, monkeypatch):
    """With several types, of different scale, its answers in temporary files; the overlay is shrunk."""
    write_typed(tmp_path / "data", ("line", "stain"), {"one.png": (230, 301), "two.png": (97, 65)})
    options = {
        "DATASET__area_resize_ratio": 0.02,
        "TEST__threshold": 0.47,
        "TEST__window_overlap": 0.25,
    }
    whole = run(tmp_path / "data", tmp_path, RUN_NAME="whole", **options)
    monkeypatch.setattr(strips, "AT_ONCE", 10_000)
    monkeypatch.setattr(memory, "IN_MEMORY", 10_000)
    monkeypatch.setattr(open_domain_files, "OVERLAY_SIDE", 64)
    pieces = run(tmp_path / "data", tmp_path, RUN_NAME="pieces", **options)
    for part in ("masks/line", "masks/stain", "scores/line", "scores/stain", "labels"):
        for name in ("one", "two"):
            one, other = (written(f / "steel", part, name) for f in (whole, pieces))
            assert one.dtype == other.dtype and np.array_equal(one, other)
    large, small = (written(f / "steel", "overlays", "one")[:, :, ::-1] for f in (whole, pieces))
    assert large.shape[1] == 301 and small.shape[1] == 61, "a fifth, rounded up"
    labels = written(whole / "steel", "labels", "one")
    for number in (1, 2):
        rows, columns = np.nonzero(labels == number)
        assert (small[rows // 5, columns // 5] == colour_of(number)).all(-1).any()
    assert np.array_equal(*(written(f / "steel", "overlays", "two") for f in (whole, pieces)))
    shown = json.loads((pieces / "gallery" / "index.json").read_text())
    assert {entry["caption"] for entry in shown} == {"two.png"}, (
        "a large image has no pictures in the gallery"
    )


def test_pictures_for_the_gallery_are_kept_small(tmp_path):
    """Of the first queries, until all are done: large ones would fill the memory."""
    write_typed(tmp_path / "data", queries={f"{i}.png": (600, 40) for i in range(SHOWN + 2)})
    cfg = config(tmp_path / "data", tmp_path)
    item = read_open_domain(tmp_path / "data", "steel")
    evaluation = Evaluation({("steel", 0): "steel/line", ("steel", 1): "steel/spot"}, ["prior"])
    supports = read_supports(item, (0, 1))
    job = ObjectJob(
        Predictor.from_config(cfg), item, (0, 1), supports, tmp_path / "log", evaluation
    )
    job.run()
    assert list(job.report(evaluation)) == ["steel/line", "steel/spot"]
    entries = job.entries()
    assert [entry.caption for entry in entries] == [f"{i}.png" for i in range(SHOWN)] * 2
    assert {entry.name for entry in entries} == {"steel/line", "steel/spot"}
    assert {
        max(picture.shape[:2])
        for entry in entries
        for caption, picture in entry.panels
        if caption != "support"
    } == {480}


def test_the_report_of_a_run_shows_every_type(tmp_path):
    """Also without true labels, where no query is the worst or the best."""
    write_typed(
        tmp_path / "data", queries={"one.png": (96, 128), "two.png": (60, 60)}, labels=("one.png",)
    )
    report = run(tmp_path / "data", tmp_path) / "report.html"
    page = report.read_text(encoding="utf-8")
    for kind in ("line", "spot"):
        assert f'alt="query, steel/{kind}: two.png"' in page
