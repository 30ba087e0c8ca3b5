from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from datasets.build import (
    build_anomaly_objects,
    build_normal_images,
    build_test_index,
    build_train_index,
    build_training_episodes,
    objects_of,
    view_settings,
)
from datasets.images import read_image
from datasets.splits import split_objects
from tests.anomaly_data import write_mvtec
from tests.datasets.bad_files import saved, warnings_about
from tests.helpers import tiny_config, write_product
from utils.errors import ConfigError, DataError


@pytest.fixture
def config(tmp_path):
    """A small config over a root; further keys with `__` for the dots."""
    return lambda root, **changes: tiny_config(root, tmp_path / "log", **changes)


def test_objects_come_from_the_split_unless_they_are_listed(surfaces, config):
    listed = {"DATASET__train_objects": [], "DATASET__test_objects": []}
    assert objects_of(config(surfaces, DATASET__split=2, **listed)) == split_objects("VISION_V1", 2)
    own_test = config(surfaces, DATASET__train_objects=[])
    assert objects_of(own_test) == (split_objects("VISION_V1", 0)[0], ["Disk"])
    assert objects_of(config(surfaces)) == (["Plate"], ["Disk"])
    both = config(surfaces, **listed | {"DATASET__train_objects": ["Ring", "Plate"]})
    with pytest.raises(ConfigError, match=r"Ring: .*DATASET\.train_objects.*DATASET\.test_objects"):
        objects_of(both)


def test_training_and_test_have_their_own_roots(surfaces, tmp_path, config):
    write_product(tmp_path / "other", "Ring", {"spot": 2})
    write_product(tmp_path / "other" / "dark", "Ring", {"spot": 3})
    root = {"TEST__dataset_path": str(tmp_path / "other")}
    cfg = config(surfaces, DATASET__test_objects=["Ring"], **root)
    assert build_train_index(cfg).objects() == ["Plate"] and len(build_train_index(cfg)) == 8
    assert build_test_index(cfg).objects() == ["Ring"] and len(build_test_index(cfg)) == 2
    assert build_test_index(cfg, "dark").root == tmp_path / "other" / "dark"
    with pytest.raises(DataError, match=r"Disk.*TEST\.dataset_path"):
        build_test_index(config(surfaces, **root))


def test_further_roots_join_the_training(tmp_path, config):
    """Also where a root is a link, through which `..` leads elsewhere."""
    root, extra, main = tmp_path / "link", tmp_path / "extra", tmp_path / "deep" / "down" / "main"
    write_product(main, "Plate", {"spot": 3, "line": 2})
    write_product(main, "Disk", {"spot": 3})
    for name, defects in (
        ("Ring", {"line": 2}),
        ("Plate", {"line": 4, "spot": 2}),
        ("Disk", {"line": 3}),
    ):
        write_product(extra, name, defects)
    root.symlink_to(main)

    def build(*names):
        listed = {"DATASET__train_objects": list(names), "DATASET__test_objects": ["X"]}
        return build_train_index(config(root, TRAIN__extra_dataset_paths=[str(extra)], **listed))

    index = build("Plate", "Ring")
    assert index.objects() == ["Plate", "Ring"] and len(index) == 5 + 6 + 2
    names = {index.samples[m[0]].class_name: len(m) for m in index.classes().values()}
    assert names == {"Plate/spot": 3 + 2, "Plate/line": 2 + 4, "Ring/line": 2}, "by name"
    assert all(read_image(index.image_path(s)).shape[:2] == s.size for s in index.samples)
    words = r"extra/Disk/train/\S+: category 0 is 'line', but in \S+/Disk/train/\S+ it is 'spot'"
    with pytest.raises(DataError, match=words):
        build("Disk")


def test_extra_roots_that_are_missing_or_add_nothing_are_named(surfaces, tmp_path, config, caplog):
    """And one that is the first root by a link adds its samples once."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(surfaces)

    def build(*names):
        extra = [str(tmp_path / name) for name in names]
        return build_train_index(config(surfaces, TRAIN__extra_dataset_paths=extra))

    assert build("empty", "link").samples == build().samples
    (message,) = warnings_about(caplog, tmp_path / "empty")
    assert "(TRAIN.extra_dataset_paths) has none of the training objects Plate" in message
    with pytest.raises(DataError, match=r"gone: no such folder; mend TRAIN\.extra_dataset_paths"):
        build("gone")


def test_what_cannot_be_trained_on_is_refused(surfaces, tmp_path, config):
    with pytest.raises(DataError, match=r"Plat\b.*TRAIN\.dataset_path.*Plate"):
        build_train_index(config(surfaces, DATASET__train_objects=["Plat"]))
    for name in ("image", "mask"):
        saved(tmp_path / "cup" / name / "a.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(
        DataError, match=r"cup .*TRAIN\.dataset_path.* no sample .*1 masks are black"
    ):
        build_train_index(
            config(tmp_path, DATASET__name="DS_Spectrum", DATASET__train_objects=["cup"])
        )
    cfg = config(surfaces, DATASET__name="DS_Spectrum_DS_ND", DATASET__train_objects=[])
    with pytest.raises(ConfigError, match=r"DS_Spectrum_DS_ND.*DATASET\.train_objects"):
        build_train_index(cfg)
    words = r"DATASET\.name is mvtec, which has nothing to train on; .*VISION_V1, DS_Spec"
    with pytest.raises(ConfigError, match=words):
        build_train_index(config(surfaces, DATASET__name="mvtec"))


def test_the_saved_index_follows_its_switches_and_the_files(tmp_path, config, caplog):
    annotations = write_product(tmp_path, "Plate", {"spot": 3})[0].parent / "_annotations.coco.json"
    file = tmp_path / "cache" / "VISION_V1" / "Plate.json"

    def build(save, load):
        switches = {"DATASET__vision_data_save": save, "DATASET__vision_data_load": load}
        path = {"DATASET__vision_data_save_path": str(tmp_path / "cache")}
        return build_train_index(config(tmp_path, **switches, **path)).samples

    built = build(save=False, load=False)
    assert not file.exists() and build(save=True, load=True) == built
    whole = file.read_text()
    file.write_text(whole.replace('"spot"', '"dot"'))
    assert build(save=False, load=True) != built == build(save=False, load=False)
    os.utime(annotations, ns=(1, 2))
    assert build(save=True, load=True) == built, "they have changed"
    for broken in ("{", "[]", '{"format": 0}'):
        file.write_text(broken)
        assert build(save=True, load=True) == built == build(save=False, load=True)
    assert len(warnings_about(caplog, file)) == 3


def test_episodes_take_the_settings_of_the_config(surfaces, config):
    options = {"DATASET__shot": 2, "DATASET__normal_sample_sampling_prob": 0.7, "RNG_SEED": 9}
    options |= {"TEST__protocol": "published", "DATASET__area_resize_ratio": 0.25}
    cfg = config(surfaces, DATASET__name="VISION_V1_ND", **options)
    episodes = build_training_episodes(cfg, build_train_index(cfg))
    assert episodes.crops.normal_probability == 0.7 and episodes.episodes.seed == 9
    assert episodes[0]["supports"].shape == (4, 3, 64, 64)
    native, whole = view_settings(cfg), view_settings(config(surfaces, DATASET__name="VISION_V1"))
    assert native.resize_ratio == 0.25 and native.crops_may_miss
    assert whole.resize_ratio is None and not whole.crops_may_miss


def write_clean(folder, *names):
    """Write normal images; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (16, 12), (90, 90, 90)).save(folder / name)
    return [folder / name for name in names]


def add_clean(product, part, *names):
    """Add images without any defect to a product's annotation file."""
    file = product / part / "_annotations.coco.json"
    content = json.loads(file.read_text())
    size = {"height": 12, "width": 16}
    content["images"] += [{"id": 100 + i, "file_name": name} | size for i, name in enumerate(names)]
    file.write_text(json.dumps(content))
    return write_clean(product / part, *names)


def test_normal_images_are_those_of_the_layout(tmp_path, config):
    write_product(tmp_path / "dark", "Disk")
    own = add_clean(tmp_path / "dark" / "Disk", "val", "a.png", "b.png")
    good = write_clean(tmp_path / "bottle" / "image" / "good", "000.png", "001.png")
    cfg = config(tmp_path, DATASET__normal_shot=2)
    assert build_normal_images(cfg, ["Disk"], "dark") == {"Disk": own}
    assert len(build_test_index(cfg, "dark")) == 8, "they are no samples"
    cfg = config(tmp_path, DATASET__name="DS_Spectrum_DS_ND", DATASET__normal_shot=2)
    assert build_normal_images(cfg, ["bottle"]) == {"bottle": good}
    without = config(tmp_path / "nowhere", DATASET__normal_folder="nothing")
    assert build_normal_images(without, ["Disk"]) == {}


def test_a_folder_of_normal_images_is_for_every_object(tmp_path, config, caplog):
    """In place of the objects' own, for sub data sets, too; what lies deeper is named."""
    write_product(tmp_path / "dark", "Disk")
    add_clean(tmp_path / "dark" / "Disk", "train", "own.png")
    shared = write_clean(tmp_path / "clean", "1.png", "2.png")
    write_clean(tmp_path / "clean" / "day1", "3.png")
    folder = {"DATASET__normal_folder": "clean", "DATASET__normal_shot": 1}
    expected = {"Disk": shared, "bottle": shared}
    assert build_normal_images(config(tmp_path, **folder), ["Disk", "bottle"], "dark") == expected
    (message,) = warnings_about(caplog, tmp_path / "clean" / "day1")
    assert "1 files, such as 3.png, are not read" in message


def test_normal_queries_take_what_there_is(tmp_path, config, caplog):
    """A warning tells where no object has any."""
    for name in ("Disk", "Ring"):
        write_product(tmp_path, name)
    own = add_clean(tmp_path / "Disk", "val", "a.png")
    cfg = config(tmp_path, TEST__normal_queries=5)
    assert build_normal_images(cfg, ["Disk", "Ring"]) == {"Disk": own, "Ring": []}
    assert "measures nothing" not in caplog.text
    assert build_normal_images(cfg, ["Ring"]) == {"Ring": []}
    assert "TEST.normal_queries measures nothing" in caplog.text


REFUSED = [
    ("", r"Disk: 1 normal images in .*normal_shot is 3.*DATASET\.normal_folder"),
    ("gone", "Disk: 0 normal images in .*gone.*normal_shot is 3"),
    ("Disk/train", r"Disk/train \(DATASET\.normal_folder\) has _annotations\.coco\.json"),
]


@pytest.mark.parametrize(("folder", "words"), REFUSED)
def test_too_few_normal_images_and_such_as_may_have_defects(tmp_path, config, folder, words):
    write_product(tmp_path, "Disk")
    add_clean(tmp_path / "Disk", "train", "a.png")
    cfg = config(tmp_path, DATASET__normal_shot=3, DATASET__normal_folder=folder)
    with pytest.raises(DataError, match=words):
        build_normal_images(cfg, ["Disk"])


def test_anomaly_objects_are_those_listed_or_all(tmp_path, config):
    write_mvtec(tmp_path, ["bottle", "mine"], train=3)
    data = {"DATASET__name": "mvtec", "DATASET__train_objects": [], "DATASET__shot": 3}
    cfg = config(tmp_path, **data, DATASET__test_objects=["mine"])
    assert [item.name for item in build_anomaly_objects(cfg)] == ["mine"]
    words = r"has not all objects of mvtec \(it lacks cable, .*DATASET\.test_objects"
    with pytest.raises(DataError, match=words):
        build_anomaly_objects(config(tmp_path, **data, DATASET__test_objects=[]))
    cfg = config(tmp_path, **data | {"DATASET__shot": 4}, DATASET__test_objects=["bottle"])
    with pytest.raises(DataError, match=r"bottle has 3 normal images, but DATASET\.shot is 4"):
        build_anomaly_objects(cfg)
