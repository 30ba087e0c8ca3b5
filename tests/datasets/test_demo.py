from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import demo
from datasets.demo.defects import REACH
from datasets.demo.products import PRODUCTS, TEST_PRODUCTS, TRAIN_PRODUCTS
from datasets.demo.render import render
from utils.errors import DataError

SOME = ("Milled_Bracket", "Twill_Fabric", "woven_mesh")
FABRIC = {"images_per_class": 2, "products": ["Twill_Fabric"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    demo.write_demo_data(folder, images_per_class=2, products=SOME)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_same_seed_gives_the_same_bytes_and_another_seed_replaces_them(root, tmp_path):
    demo.write_demo_data(tmp_path / "d", images_per_class=2, products=SOME)
    assert contents(tmp_path / "d") == contents(root)
    demo.write_demo_data(tmp_path / "d", seed=2, images_per_class=2, products=SOME)
    other = contents(tmp_path / "d")
    assert other.keys() == contents(root).keys()
    assert not set(other.values()) & set(contents(root).values())
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_complete_demo_is_reused_and_damaged_one_rewritten(tmp_path):
    summary = demo.write_demo_data(tmp_path / "d", **FABRIC)
    before, times = contents(tmp_path), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert demo.write_demo_data(tmp_path / "d", **FABRIC) == summary
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    next(tmp_path.rglob("*.jpg")).unlink()
    assert demo.write_demo_data(tmp_path / "d", **FABRIC) == summary
    assert contents(tmp_path) == before


def test_coco_document_agrees_with_the_images_and_gives_back_the_masks(root):
    files = sorted(root.rglob("_annotations.coco.json"))
    assert len(files) == 4
    for file in files:
        document, product = json.loads(file.read_text()), PRODUCTS[file.parts[-3]]
        names = {image["file_name"] for image in document["images"]}
        assert names == {path.name for path in file.parent.glob("*.jpg")}
        assert [x["name"] for x in document["categories"]] == [x.name for x in product.looks]
        for image in document["images"]:
            path, size = file.parent / image["file_name"], (image["height"], image["width"])
            assert cv2.imread(str(path)).shape[:2] == size
            shares = demo.wanted_shares(product, int(path.stem))
            _, defects = render(product, 54, int(path.stem), shares)
            entries = [a for a in document["annotations"] if a["image_id"] == image["id"]]
            for entry, (category, mask) in zip(entries, defects, strict=True):
                drawn = np.zeros(size, np.uint8)
                for polygon in entry["segmentation"]:
                    cv2.fillPoly(drawn, [np.reshape(polygon, (-1, 2)).astype(np.int32)], 1)
                np.testing.assert_array_equal(drawn, mask)
                assert (entry["category_id"], entry["area"]) == (category, mask.sum())
                assert tuple(entry["bbox"]) == cv2.boundingRect(drawn)


def test_open_domain_layout(root):
    for part, label, count in (("support", "mask", 1), ("query", "true_label", 5)):
        folder = root / "Open_Domain" / "woven_mesh" / part
        images = sorted(path.name for path in (folder / "image").iterdir())
        assert len(images) == count
        assert images == sorted(path.name for path in (folder / label).iterdir())
        for name in images:
            mask = cv2.imread(str(folder / label / name), cv2.IMREAD_UNCHANGED)
            assert mask.shape == cv2.imread(str(folder / "image" / name)).shape[:2]
            assert set(np.unique(mask)) == {0, 255}


def test_every_category_has_two_images_and_most_defects_are_small():
    shares = []
    for product in (PRODUCTS[name] for name in (*TRAIN_PRODUCTS, *TEST_PRODUCTS)):
        wanted = [demo.wanted_shares(product, index) for index in range(16)]
        seen = Counter(k for image in wanted[: 2 * len(product.looks)] for k in image)
        assert all(seen[k] >= 2 for k in range(len(product.looks))), product.name
        shares += [share for image in wanted for share in image.values()]
    shares = np.array(shares)
    assert (shares < 0.003).mean() >= 0.7
    assert (shares < 0.0003).mean() >= 0.1
    assert (shares > 0.01).sum() >= 3


@pytest.mark.parametrize("name", PRODUCTS)
def test_defects_show_within_their_masks_and_nowhere_else(name):
    product = PRODUCTS[name]
    shares = dict.fromkeys(range(len(product.looks)), 0.0012)
    image, defects = render(product, 54, 0, shares)
    clean, none = render(product, 54, 0, {})
    assert none == []
    change = np.abs(image.astype(np.float32) - clean).mean(2)
    masks = {k: np.any([mask for c, mask in defects if c == k], axis=0) for k in shares}
    marked = np.any([*masks.values()], axis=0)
    distance = cv2.distanceTransform(1 - marked.astype(np.uint8), cv2.DIST_L2, 5)
    far = distance > REACH + 4  # 4 more for the lens's blur
    assert change[far].max() == 0
    for category, share in shares.items():
        mask = masks[category]
        assert change[mask].mean() > max(8, 3 * change[~marked & ~far].mean())
        assert 0.15 * share < mask.mean() < 2 * share


def test_test_products_share_no_surface_with_training_products_that_has_the_same_defect():
    train, test = (
        {(PRODUCTS[name].texture, look) for name in group for look in PRODUCTS[name].looks}
        for group in (TRAIN_PRODUCTS, TEST_PRODUCTS)
    )
    assert train and test and train.isdisjoint(test)


def test_foreign_folders_are_left_alone_and_wrong_arguments_are_named(tmp_path, capsys):
    file = tmp_path / "thesis.txt"
    file.write_text("keep")
    with pytest.raises(SystemExit, match="2"):
        demo.main([str(tmp_path)])
    assert f"{tmp_path} is not a demo folder (it contains thesis.txt)" in capsys.readouterr().err
    for folder, changes, message in (
        (file, {}, "not a demo folder"),
        (file / "below", {}, "cannot write"),
        (tmp_path / "new", {"products": ["Teapot"]}, "Teapot"),
        (tmp_path / "new", {"images_per_class": 1}, "images_per_class"),
    ):
        with pytest.raises(DataError, match=message):
            demo.write_demo_data(folder, **FABRIC | changes)
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == "keep"
