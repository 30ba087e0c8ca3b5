from __future__ import annotations

import json
from collections import Counter

import pytest

from datasets.images import image_size
from datasets.rle import rle_area
from datasets.readers import vision_v1
from datasets.samples import load_or_build
from tools.benchmark.index import measure_index, write_data_set

IMAGES, SIZE = 60, (180, 240)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    return root, write_data_set(root, IMAGES, SIZE)


@pytest.fixture(scope="module")
def contents(written):
    return {
        path.parent: json.loads(path.read_text())
        for path in written[0].rglob(vision_v1.ANNOTATIONS)
    }


def all_of(contents, key):
    return [entry for content in contents.values() for entry in content[key]]


def test_the_data_set_is_spread_over_products_and_parts(written, contents):
    assert len(all_of(contents, "images")) == IMAGES
    assert Counter(folder.parent.parent for folder in contents) == {written[0]: len(contents)}
    assert len({folder.parent for folder in contents}) == 14 and {f.name for f in contents} == {
        "train",
        "val",
    }
    for folder, content in contents.items():
        assert all((image["height"], image["width"]) == SIZE for image in content["images"])
        assert all(image_size(folder / image["file_name"]) == SIZE for image in content["images"])


def test_images_have_up_to_six_shapes_of_several_categories(contents):
    shapes = all_of(contents, "annotations")
    per_image = Counter(shape["image_id"] for shape in shapes)
    assert len(per_image) == IMAGES and set(per_image.values()) == {1, 2, 3, 4, 5, 6}
    assert {shape["category_id"] for shape in shapes} == {0, 1, 2}
    run_lengths = [
        shape["segmentation"] for shape in shapes if isinstance(shape["segmentation"], dict)
    ]
    assert {type(rle["counts"]) for rle in run_lengths} == {list, str} and len(
        run_lengths
    ) < 0.2 * len(shapes)


def test_every_class_of_every_image_is_a_sample_most_of_them_small(written, contents):
    root, count = written
    products = sorted({folder.parent.name for folder in contents})
    samples = [sample for product in products for sample in vision_v1.read_object(root, product)[0]]
    marked = {
        (shape["image_id"], shape["category_id"]) for shape in all_of(contents, "annotations")
    }
    assert count == len(samples) == len(marked)
    shares = sorted(rle_area(sample.mask) / (SIZE[0] * SIZE[1]) for sample in samples)
    assert shares[len(shares) // 2] < 0.003 and shares[-1] > 0.01


def test_the_figures_count_what_was_written_and_keep_their_bounds(written, tmp_path):
    root, count = written
    figures = {figure.name: figure for figure in measure_index(images=IMAGES, size=SIZE)}
    assert [figure.line() for figure in figures.values() if not figure.kept] == []
    assert {figure.section for figure in figures.values()} == {"index"}
    values = {name: figure.value for name, figure in figures.items()}
    assert values["labelled images"] == IMAGES
    assert values["samples"] == values["samples of the saved index that load as built"] == count
    products = [path.name for path in root.iterdir()]
    load_or_build(vision_v1, "toy", root, products, tmp_path, save=True, load=False)
    saved = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))
    assert values["saved index"] * 1e6 == pytest.approx(
        saved, abs=14 * 100
    )  # each file names its root
    assert all(
        values[name] > 0
        for name in ("build and save", "load", "peak memory above that of the imports")
    )
