from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from datasets import demo
from datasets.demo.defects import REACH
from datasets.demo.products import PRODUCTS
from datasets.demo.render import render
from utils.errors import DataError

COUNT = 2
SOME = ("Milled_Bracket", "Twill_Fabric", "woven_mesh")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    demo.write_demo_data(folder, images_per_class=COUNT, products=SOME)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def documents(folder: Path) -> dict[Path, dict]:
    return {
        path.parent: json.loads(path.read_text()) for path in folder.rglob("_annotations.coco.json")
    }


def rasterise(document: dict, image: dict, category: int) -> np.ndarray:
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    for entry in document["annotations"]:
        if entry["image_id"] == image["id"] and entry["category_id"] == category:
            for polygon in entry["segmentation"]:
                assert len(polygon) >= 6
                cv2.fillPoly(mask, [np.array(polygon).reshape(-1, 2).astype(np.int32)], 1)
    return mask


def test_same_seed_gives_the_same_bytes(root, tmp_path):
    demo.write_demo_data(tmp_path / "again", images_per_class=COUNT, products=SOME)
    assert digests(tmp_path / "again") == digests(root)


def test_another_seed_gives_other_images_and_replaces_the_demo(tmp_path):
    demo.write_demo_data(tmp_path / "d", seed=1, images_per_class=2, products=["Twill_Fabric"])
    first = digests(tmp_path / "d")
    demo.write_demo_data(tmp_path / "d", seed=2, images_per_class=2, products=["Twill_Fabric"])
    second = digests(tmp_path / "d")
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_complete_demo_is_reused_and_damaged_one_rewritten(tmp_path):
    summary = demo.write_demo_data(tmp_path / "d", images_per_class=2, products=["Twill_Fabric"])
    before, wanted = (
        {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")},
        digests(tmp_path),
    )
    assert (
        demo.write_demo_data(tmp_path / "d", images_per_class=2, products=["Twill_Fabric"])
        == summary
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    next(tmp_path.rglob("*.jpg")).unlink()
    assert (
        demo.write_demo_data(tmp_path / "d", images_per_class=2, products=["Twill_Fabric"])
        == summary
    )
    assert digests(tmp_path) == wanted


def test_polygons_give_back_the_rendered_masks(root):
    for folder, document in documents(root).items():
        product = PRODUCTS[folder.parent.name]
        for image in document["images"][:1]:
            index = int(Path(image["file_name"]).stem)
            rendered, instances = render(product, 54, index, demo.wanted_shares(product, index))
            assert instances
            for category in range(len(product.looks)):
                expected = demo.full_mask(
                    rendered.shape, [x for x in instances if x.category == category]
                )
                np.testing.assert_array_equal(rasterise(document, image, category), expected)


def test_coco_documents_agree_with_the_files(root):
    for folder, document in documents(root).items():
        assert {image["file_name"] for image in document["images"]} == {
            path.name for path in folder.glob("*.jpg")
        }
        for image in document["images"]:
            assert cv2.imread(str(folder / image["file_name"])).shape[:2] == (
                image["height"],
                image["width"],
            )
            for category in (entry["id"] for entry in document["categories"]):
                areas = [
                    a["area"]
                    for a in document["annotations"]
                    if (a["image_id"], a["category_id"]) == (image["id"], category)
                ]
                assert rasterise(document, image, category).sum() == sum(areas)
        for entry in document["annotations"]:
            points = np.concatenate(
                [np.reshape(polygon, (-1, 2)) for polygon in entry["segmentation"]]
            )
            assert entry["bbox"] == [*points.min(0), *(points.max(0) - points.min(0) + 1)]


def test_every_category_has_two_images_at_the_smallest_count():
    for name in (*demo.TRAIN_PRODUCTS, *demo.TEST_PRODUCTS):
        product = PRODUCTS[name]
        seen = [
            k for index in range(2 * len(product.looks)) for k in demo.wanted_shares(product, index)
        ]
        assert all(seen.count(k) >= 2 for k in range(len(product.looks))), name


def test_most_defects_are_small_some_tiny_some_large():
    wanted = [
        share
        for name in (*demo.TRAIN_PRODUCTS, *demo.TEST_PRODUCTS)
        for index in range(16)
        for share in demo.wanted_shares(PRODUCTS[name], index).values()
    ]
    wanted = np.array(wanted)
    assert (wanted < 0.003).mean() >= 0.7
    assert (wanted < 0.0003).mean() >= 0.1
    assert (wanted > 0.01).sum() >= 3


@pytest.mark.parametrize("name", PRODUCTS)
def test_defects_show_within_their_masks_and_nowhere_else(name):
    product = PRODUCTS[name]
    shares = dict.fromkeys(range(len(product.looks)), 0.0012)
    image, instances = render(product, 54, 0, shares)
    clean, none = render(product, 54, 0, shares, with_defects=False)
    assert not none
    change = np.abs(image.astype(np.float32) - clean).mean(2)
    every = demo.full_mask(image.shape, instances)
    far = (
        cv2.distanceTransform(1 - every, cv2.DIST_L2, 5) > REACH + 4
    )  # REACH, then the lens's blur
    assert change[far].max() == 0
    for category, share in shares.items():
        mask = demo.full_mask(image.shape, [x for x in instances if x.category == category])
        assert change[mask > 0].mean() > 8
        assert change[mask > 0].mean() > 3 * change[(every == 0) & ~far].mean()
        assert 0.15 * share < mask.mean() < 2 * share


def test_open_domain_layout(root):
    folder = root / "Open_Domain" / "woven_mesh"
    for part, label, count in (
        ("support", "mask", demo.OPEN_DOMAIN_SUPPORTS),
        ("query", "true_label", demo.OPEN_DOMAIN_QUERIES),
    ):
        images = sorted(path.name for path in (folder / part / "image").iterdir())
        assert len(images) == count
        assert images == sorted(path.name for path in (folder / part / label).iterdir())
        for name in images:
            mask = cv2.imread(str(folder / part / label / name), cv2.IMREAD_UNCHANGED)
            assert mask.shape == cv2.imread(str(folder / part / "image" / name)).shape[:2]
            assert set(np.unique(mask)) == {0, 255}


def test_products_of_the_three_groups_are_disjoint():
    groups = (demo.TRAIN_PRODUCTS, demo.TEST_PRODUCTS, demo.OPEN_DOMAIN_OBJECTS)
    assert len(set().union(*groups)) == sum(map(len, groups)) == len(PRODUCTS)
    train = {
        (PRODUCTS[name].texture, look)
        for name in demo.TRAIN_PRODUCTS
        for look in PRODUCTS[name].looks
    }
    test = {
        (PRODUCTS[name].texture, look)
        for name in demo.TEST_PRODUCTS
        for look in PRODUCTS[name].looks
    }
    assert not train & test


def test_sizes_lie_between_1000_and_2000_pixels():
    assert all(1000 <= side <= 2000 for product in PRODUCTS.values() for side in product.size)


def test_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("keep")
    with pytest.raises(DataError, match=r"thesis\.txt"):
        demo.write_demo_data(tmp_path, products=["Twill_Fabric"])
    assert demo.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="not a demo folder"):
        demo.write_demo_data(tmp_path / "thesis.txt", products=["Twill_Fabric"])


def test_unknown_product_and_too_few_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="Teapot"):
        demo.write_demo_data(tmp_path / "d", products=["Teapot"])
    with pytest.raises(DataError, match="images_per_class"):
        demo.write_demo_data(tmp_path / "d", images_per_class=1)
    assert not (tmp_path / "d").exists()


def test_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot create"):
        demo.write_demo_data(tmp_path / "file" / "d", products=["Twill_Fabric"])
