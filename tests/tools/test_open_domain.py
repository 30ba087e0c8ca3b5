from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets import strips
from datasets.images import read_image
from datasets.open_domain import read_open_domain
from models.backbone import Backbone
from tests.helpers import draw_defect, surface, tiny_config
from tools import open_domain_files
from tools.open_domain import SHOWN, ObjectJob, output_names, read_supports
from tools.predictor import Predictor
from tools.results import Evaluation
from tools.tester import run_test
from utils import memory
from utils.errors import DataError
from utils.visualize import colour_of

QUERIES = {"one.png": (96, 128), "two.jpg": (97, 65), "three.bmp": (40, 200)}


def write_object(root, name, queries=QUERIES, labels=(), seed=0):
    """Write an object with a support and queries, each with a spot; return the true masks by file name."""
    rng, truth = np.random.default_rng(seed), {}
    for part in ("support/image", "support/mask", "query/image", "query/true_label"):
        (root / name / part).mkdir(parents=True)
    for file, size in {"s.png": (96, 128), **queries}.items():
        image, mask = surface(size, rng), np.zeros(size, np.uint8)
        top, bottom, left, right = draw_defect(image, "spot", rng)
        mask[top:bottom, left:right] = 255
        support = file == "s.png"
        Image.fromarray(image).save(root / name / ("support" if support else "query") / "image" / file)
        if support:
            Image.fromarray(mask).save(root / name / "support" / "mask" / file)
        if file in labels:
            Image.fromarray(mask).save(root / name / "query" / "true_label" / f"{Path(file).stem}_mask.png")
        truth[file] = mask > 0
    return truth


def write_typed(root, kinds=("line", "spot"), queries=QUERIES, labels=(), size=(96, 128)):
    """Write the object steel with a support of each type, and queries with a defect of each; true masks by type and
    file name, of which `labels` are written for the files it names."""
    rng, folder, truth = np.random.default_rng(1), root / "steel", {kind: {} for kind in kinds}
    (folder / "query" / "image").mkdir(parents=True)

    def save(pixels, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def drawn(image, kind):
        mask = np.zeros(image.shape[:2], np.uint8)
        top, bottom, left, right = draw_defect(image, kind, rng)
        mask[top:bottom, left:right] = 255
        return mask

    for kind in kinds:
        image = surface(size, rng)
        save(drawn(image, kind), folder / "support" / kind / "mask" / "s.png")
        save(image, folder / "support" / kind / "image" / "s.png")
    for file, shape in queries.items():
        image = surface(shape, rng)
        for kind in kinds:
            mask = drawn(image, kind)
            truth[kind][file] = mask > 0
            if file in labels:
                save(mask, folder / "query" / "true_label" / kind / f"{Path(file).stem}_mask.png")
        save(image, folder / "query" / "image" / file)
    return truth


def config(root, tmp_path, **changes):
    options = {"DATASET__name": "opendomain_test_dataset_ND", "DATASET__open_domain_test_object": ["steel"]}
    return tiny_config(root, tmp_path / "log", **(options | changes))


def run(root, tmp_path, **changes):
    return run_test(config(root, tmp_path, **changes), "")


def as_levels(score):
    return np.rint(np.minimum(score, 1) * 65535).astype(np.uint16)


def written(folder, kind, name):
    return cv2.imread(str(folder / kind / f"{name}.png"), cv2.IMREAD_UNCHANGED)


def test_mask_score_and_overlay_of_each_query_at_its_size(tmp_path, capsys):
    write_object(tmp_path / "data", "steel")
    folder = run(tmp_path / "data", tmp_path)
    for file, size in QUERIES.items():
        image = read_image(tmp_path / "data" / "steel" / "query" / "image" / file)
        mask, score, overlay = (
            written(folder / "steel", kind, Path(file).stem) for kind in ("masks", "scores", "overlays")
        )
        assert (mask.shape, mask.dtype) == (size, np.uint8) and set(np.unique(mask)) == {0, 255}
        assert (score.shape, score.dtype) == (size, np.uint16)
        assert (overlay.shape, overlay.dtype) == ((*size, 3), np.uint8)
        assert np.array_equal(mask > 0, score.astype(np.float64) / 65535 > 0.5)
        assert np.array_equal(overlay[mask == 0][:, ::-1], image[mask == 0])
        assert not np.array_equal(overlay[mask > 0][:, ::-1], image[mask > 0])
    report = json.loads((folder / "metrics.json").read_text())
    assert report["objects"] == {"steel": {"queries": 3, "iou": {}, "unreadable": []}} and report["shot"] == [1]
    assert "'prior'" in capsys.readouterr().out, "a notice: no checkpoint, so the method without training"
    assert (folder / "test.log").is_file() and (folder / "config.yaml").is_file()


def test_iou_is_that_of_the_masks_and_the_true_labels(tmp_path):
    """Pooled over the labelled queries alone; several objects, each on its own."""
    labels = ("one.png", "two.jpg")
    truth = {n: write_object(tmp_path / "data", n, labels=labels, seed=s) for s, n in enumerate(("steel", "wood"))}
    folder = run(tmp_path / "data", tmp_path, DATASET__open_domain_test_object=["wood", "steel"])
    report = json.loads((folder / "metrics.json").read_text())["objects"]
    assert list(report) == ["wood", "steel"]
    for name, masks in truth.items():
        pairs = [(written(folder / name, "masks", Path(f).stem) > 0, masks[f]) for f in labels]
        iou = sum((p & t).sum() for p, t in pairs) / sum((p | t).sum() for p, t in pairs)
        assert report[name]["iou"] == {"prior": pytest.approx(iou)}
        assert iou > 0.05
    assert report["wood"]["iou"] != report["steel"]["iou"]


def test_one_of_several_categories(tmp_path):
    """The category chooses the pixels of the support mask, one number for each object."""
    write_object(tmp_path / "data", "steel")
    path = tmp_path / "data" / "steel" / "support" / "mask" / "s.png"
    mask = np.array(Image.open(path)) // 255
    mask[:12, :12] = 2
    Image.fromarray(mask).save(path)
    several = {"DATASET__open_domain_object_category_num": [2]}
    first, second = (
        run(tmp_path / "data", tmp_path, RUN_NAME=str(c), DATASET__open_domain_specific_defect_category=[c], **several)
        for c in (0, 1)
    )
    scores = [written(f / "steel", "scores", "one") for f in (first, second)]
    assert not np.array_equal(*scores)


def test_black_support_masks_leave_what_looks_unlike_the_supports(tmp_path, capsys):
    """The answer of an image that is given without a mask."""
    write_object(tmp_path / "data", "steel")
    folder = tmp_path / "data" / "steel"
    Image.new("L", (128, 96)).save(folder / "support" / "mask" / "s.png")
    cfg = config(tmp_path / "data", tmp_path, TEST__threshold=0.2)
    answers = run_test(cfg, "") / "steel"
    assert "no support pixel is marked" in capsys.readouterr().out
    predictor = Predictor.from_config(cfg)
    predictor.set_support([folder / "support" / "image" / "s.png"], [None])
    for file in QUERIES:
        score = predictor.predict(folder / "query" / "image" / file).score
        assert np.array_equal(written(answers, "scores", Path(file).stem), as_levels(score))
        assert np.array_equal(written(answers, "masks", Path(file).stem) > 0, score > 0.2)
        assert score.max() > 0.1


def test_queries_that_differ_by_the_suffix_alone_keep_their_own_files(tmp_path):
    write_object(tmp_path / "data", "steel", {"a.png": (96, 128), "a.jpg": (40, 50), "b.png": (30, 30)})
    folder = run(tmp_path / "data", tmp_path) / "steel"
    assert written(folder, "masks", "a.png").shape == (96, 128)
    assert written(folder, "masks", "a.jpg").shape == (40, 50)
    for kind in ("masks", "scores", "overlays"):
        assert len(list((folder / kind).iterdir())) == 3


def test_names_of_outputs_never_collide():
    assert output_names([Path("a.png"), Path("b.jpg")]) == ["a", "b"]
    for names in (["a.png", "a.jpg"], ["a.jpg", "a.jpg.png", "a.png"]):
        assert len(set(output_names([Path(n) for n in names]))) == len(names)


def test_an_unreadable_query_is_reported_and_the_rest_goes_on(tmp_path, capsys):
    write_object(tmp_path / "data", "steel", labels=("one.png",))
    path = tmp_path / "data" / "steel" / "query" / "image" / "two.jpg"
    path.write_bytes(path.read_bytes()[:100])
    folder = run(tmp_path / "data", tmp_path)
    report = json.loads((folder / "metrics.json").read_text())["objects"]["steel"]
    assert report["queries"] == 3 and len(report["unreadable"]) == 1 and str(path) in report["unreadable"][0]
    assert capsys.readouterr().out.count(str(path)) == 1
    assert {p.name for p in (folder / "steel" / "masks").iterdir()} == {"one.png", "three.png"}


def test_no_readable_query_is_an_error_and_leaves_nothing(tmp_path):
    write_object(tmp_path / "data", "steel", {"one.png": (96, 128)})
    (tmp_path / "data" / "steel" / "query" / "image" / "one.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"steel: no query could be read.*one\.png"):
        run(tmp_path / "data", tmp_path)
    assert not (tmp_path / "log" / "run").exists()


@pytest.mark.parametrize("part", ["support/image", "support/mask"])
def test_an_unreadable_support_is_an_error_before_anything_is_written(tmp_path, part):
    write_object(tmp_path / "data", "steel")
    path = tmp_path / "data" / "steel" / part / "s.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=str(path)):
        run(tmp_path / "data", tmp_path)
    assert not (tmp_path / "log").exists()


def test_every_type_has_its_masks_scores_and_support_file(tmp_path):
    """And labels.png names, of the types that claim a pixel, the one furthest above its threshold."""
    write_typed(tmp_path / "data")
    cfg = config(tmp_path / "data", tmp_path, TEST__threshold=0.47)
    folder = run_test(cfg, "") / "steel"
    assert {p.name for p in folder.iterdir()} == {
        *("masks", "scores", "labels", "overlays", "support_line.safetensors", "support_spot.safetensors")
    }
    predictor, both = Predictor.from_config(cfg), 0
    for file, size in QUERIES.items():
        name, answers = Path(file).stem, []
        for kind in ("line", "spot"):
            predictor.load_support(folder / f"support_{kind}.safetensors")
            answers.append(predictor.predict(tmp_path / "data" / "steel" / "query" / "image" / file))
            assert np.array_equal(written(folder, f"scores/{kind}", name), as_levels(answers[-1].score))
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
            assert (bar == colour_of(number)).all(-1).any() and (upper == colour_of(number)).all(-1).any()
            tinted = (upper[labels == number] != image[labels == number]).any(-1)
            assert tinted.mean() > 0.9


def test_windows_are_encoded_once_for_all_types_of_one_scale(tmp_path, monkeypatch):
    write_typed(tmp_path / "data")
    seen, forward = [], Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, images: seen.append(len(images)) or forward(self, images))
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
        assert counts == [(int(r["intersection"]), int(r["union"])) for r in rows if r["class"] == f"steel/{kind}"]
        iou = sum(i for i, _ in counts) / sum(u for _, u in counts)
        entry = report["objects"][f"steel/{kind}"]
        assert entry == {"queries": 3, "iou": {"prior": pytest.approx(iou)}, "unreadable": []}
    assert (folder / "curves.json").is_file()
    shown = json.loads((folder / "gallery" / "index.json").read_text())
    assert [entry["class"] for entry in shown] == ["steel/line"] * 3 + ["steel/spot"] * 3
    for kind, known in (("line", 1), ("spot", 2)):
        entries = [e for e in shown if e["class"] == f"steel/{kind}"]
        scores = [e["scores"].get("prior") for e in entries]
        assert [s is None for s in scores] == [False] * known + [True] * (3 - known), "without a true label: last"
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
            answer = predictor.predict(tmp_path / "data" / "steel" / "query" / "image" / f"{name}.png")
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
    options = {"DATASET__area_resize_ratio": 0.02, "TEST__threshold": 0.47, "TEST__window_overlap": 0.25}
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
    assert {entry["caption"] for entry in shown} == {"two.png"}, "a large image has no pictures in the gallery"


def test_pictures_for_the_gallery_are_kept_small(tmp_path):
    """Of the first queries, until all are done: large ones would fill the memory."""
    write_typed(tmp_path / "data", queries={f"{i}.png": (600, 40) for i in range(SHOWN + 2)})
    cfg = config(tmp_path / "data", tmp_path)
    item = read_open_domain(tmp_path / "data", "steel")
    evaluation = Evaluation({("steel", 0): "steel/line", ("steel", 1): "steel/spot"}, ["prior"])
    job = ObjectJob(Predictor.from_config(cfg), item, read_supports(cfg, item, 0), tmp_path / "log", evaluation)
    assert list(job.run()) == ["steel/line", "steel/spot"]
    entries = job.entries()
    assert [entry.caption for entry in entries] == [f"{i}.png" for i in range(SHOWN)] * 2
    assert {entry.name for entry in entries} == {"steel/line", "steel/spot"}
    assert {
        max(picture.shape[:2]) for entry in entries for caption, picture in entry.panels if caption != "support"
    } == {480}


def test_the_report_of_a_run_shows_every_type(tmp_path):
    """Also without true labels, where no query is the worst or the best."""
    write_typed(tmp_path / "data", queries={"one.png": (96, 128), "two.png": (60, 60)}, labels=("one.png",))
    report = run(tmp_path / "data", tmp_path) / "report.html"
    page = report.read_text(encoding="utf-8")
    for kind in ("line", "spot"):
        assert f'alt="query, steel/{kind}: two.png"' in page
