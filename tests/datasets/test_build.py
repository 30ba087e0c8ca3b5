from __future__ import annotations

import json
import logging

import pytest
from PIL import Image

from datasets.build import (
    build_normal_images,
    build_test_index,
    build_train_index,
    build_training_episodes,
    objects_of,
    view_settings,
)
from datasets.images import read_image
from datasets.splits import split_objects
from tests.helpers import tiny_config, write_product
from utils.errors import ConfigError, DataError


def config(root, tmp_path, **changes):
    return tiny_config(root, tmp_path / "log", **changes)


def test_objects_come_from_the_split_unless_they_are_listed(surfaces, tmp_path):
    published = config(
        surfaces, tmp_path, DATASET__train_objects=[], DATASET__test_objects=[], DATASET__split=2
    )
    assert objects_of(published) == split_objects("VISION_V1", 2)
    own_test = config(surfaces, tmp_path, DATASET__train_objects=[])
    assert objects_of(own_test) == (split_objects("VISION_V1", 0)[0], ["Disk"])
    assert objects_of(config(surfaces, tmp_path)) == (["Plate"], ["Disk"])


def test_an_object_of_the_split_in_the_other_list_is_refused(surfaces, tmp_path):
    cfg = config(
        surfaces, tmp_path, DATASET__train_objects=["Ring", "Plate"], DATASET__test_objects=[]
    )
    with pytest.raises(ConfigError, match=r"Ring: .*DATASET\.train_objects.*DATASET\.test_objects"):
        objects_of(cfg)


def test_training_and_test_have_their_own_roots(surfaces, tmp_path):
    write_product(tmp_path / "other", "Ring", {"spot": 2})
    cfg = config(
        surfaces,
        tmp_path,
        TEST__dataset_path=str(tmp_path / "other"),
        DATASET__test_objects=["Ring"],
    )
    assert build_train_index(cfg).objects() == ["Plate"] and len(build_train_index(cfg)) == 8
    assert build_test_index(cfg).objects() == ["Ring"] and len(build_test_index(cfg)) == 2


def test_a_sub_dataset_is_a_folder_of_the_test_root(surfaces, tmp_path):
    write_product(tmp_path / "other" / "dark", "Disk", {"spot": 2})
    cfg = config(surfaces, tmp_path, TEST__dataset_path=str(tmp_path / "other"))
    assert build_test_index(cfg, "dark").root == tmp_path / "other" / "dark"
    with pytest.raises(DataError, match=r"Disk.*TEST\.dataset_path"):
        build_test_index(cfg)


@pytest.mark.parametrize("linked", [False, True])
def test_further_roots_join_the_training(tmp_path, linked):
    """Also where a root is a link, through which `..` leads elsewhere."""
    root = tmp_path / "deep" / "down" / "main"
    write_product(root, "Plate", {"spot": 3, "line": 2})
    write_product(tmp_path / "extra", "Ring", {"line": 2})
    write_product(tmp_path / "extra", "Plate", {"line": 4, "spot": 2})
    if linked:
        (tmp_path / "link").symlink_to(root)
        root = tmp_path / "link"
    objects = ["Plate", "Ring"]
    cfg = config(
        root,
        tmp_path,
        DATASET__train_objects=objects,
        TRAIN__extra_dataset_paths=[str(tmp_path / "extra")],
    )
    index = build_train_index(cfg)
    assert index.objects() == objects and len(index) == 5 + 6 + 2
    classes = {
        index.samples[members[0]].class_name: len(members) for members in index.classes().values()
    }
    assert classes == {"Plate/spot": 3 + 2, "Plate/line": 2 + 4, "Ring/line": 2}, (
        "by name, whatever its number there"
    )
    assert index.missing_images() == []
    assert all(read_image(index.image_path(s)).shape[:2] == s.size for s in index.samples)


def test_roots_that_call_a_category_differently_are_refused_with_both_files(tmp_path):
    write_product(tmp_path / "one", "Plate", {"spot": 3})
    write_product(tmp_path / "two", "Plate", {"line": 3})
    cfg = config(tmp_path / "one", tmp_path, TRAIN__extra_dataset_paths=[str(tmp_path / "two")])
    with pytest.raises(DataError, match=r"two/Plate/train/\S+\.json: category 0 is 'line', but in "
                                        r"\S+/one/Plate/train/\S+\.json it is 'spot'"):  # fmt: skip
        build_train_index(cfg)


def test_an_object_in_no_root(surfaces, tmp_path):
    cfg = config(
        surfaces,
        tmp_path,
        DATASET__train_objects=["Plat"],
        TRAIN__extra_dataset_paths=[str(tmp_path)],
    )
    with pytest.raises(DataError, match=r"Plat\b.*TRAIN\.dataset_path.*Plate"):
        build_train_index(cfg)
    with pytest.raises(DataError, match=r"gone: no such folder.*TRAIN\.dataset_path"):
        build_train_index(config(tmp_path / "gone", tmp_path))


def test_a_data_set_without_training_objects(surfaces, tmp_path):
    cfg = config(surfaces, tmp_path, DATASET__name="DS_Spectrum_DS_ND", DATASET__train_objects=[])
    with pytest.raises(ConfigError, match=r"DS_Spectrum_DS_ND.*DATASET\.train_objects"):
        build_train_index(cfg)


def test_open_domain_data_do_not_train(surfaces, tmp_path):
    with pytest.raises(ConfigError, match=r"DATASET\.name.*opendomain_test_dataset_ND"):
        build_train_index(config(surfaces, tmp_path, DATASET__name="opendomain_test_dataset_ND"))


@pytest.mark.parametrize(("name", "ratio"), [("VISION_V1_ND", 0.25), ("VISION_V1", None)])
def test_only_native_data_sets_are_cropped(surfaces, tmp_path, name, ratio):
    cfg = config(surfaces, tmp_path, DATASET__name=name, DATASET__area_resize_ratio=0.25)
    settings = view_settings(cfg)
    assert settings.resize_ratio == ratio
    assert (settings.image_size, settings.crop_size, settings.views, settings.crops_may_miss) == (
        64,
        64,
        2,
        False,
    )


def test_episodes_take_the_settings_of_the_config(surfaces, tmp_path):
    cfg = config(
        surfaces, tmp_path, DATASET__shot=2, DATASET__normal_sample_sampling_prob=0.7, RNG_SEED=9
    )
    episodes = build_training_episodes(cfg, build_train_index(cfg))
    assert (episodes.crops.normal_probability, episodes.crops.crop_ratio) == (0.7, (1.0, 1.0))
    assert episodes.episodes.seed == 9
    assert episodes[0]["supports"].shape == (4, 3, 64, 64)


def test_index_cache_follows_its_switches(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_product(tmp_path, "Plate", {"spot": 3})
    file = tmp_path / "cache" / "VISION_V1" / "Plate.json"

    def build(save, load):
        caplog.clear()
        switches = {"DATASET__vision_data_save": save, "DATASET__vision_data_load": load}
        cfg = config(
            tmp_path, tmp_path, DATASET__vision_data_save_path=str(tmp_path / "cache"), **switches
        )
        return build_train_index(cfg)

    built = build(save=False, load=False)
    assert not file.exists()
    assert build(save=True, load=True).samples == built.samples
    assert file.is_file() and "no saved index" in caplog.text
    file.write_text(file.read_text().replace('"spot"', '"dot"'))
    assert {s.category_name for s in build(save=False, load=True).samples} == {"dot"}, (
        "read from the file"
    )
    assert build(save=False, load=False).samples == built.samples
    annotations = tmp_path / "Plate" / "train" / "_annotations.coco.json"
    annotations.write_text(annotations.read_text() + " ")
    assert build(save=True, load=True).samples == built.samples
    assert "has changed" in caplog.text and '"dot"' not in file.read_text()


def write_clean(folder, *names):
    """Write normal images; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (16, 12), (90, 90, 90)).save(folder / name)
    return [folder / name for name in names]


def list_images_without_annotation(root, part, *names):
    """Add images without any defect to a product's annotation file."""
    file = root / part / "_annotations.coco.json"
    content = json.loads(file.read_text())
    for name in names:
        entry = {"id": 100 + len(content["images"]), "file_name": name, "height": 12, "width": 16}
        content["images"].append(entry)
    file.write_text(json.dumps(content))
    return write_clean(root / part, *names)


def test_without_normal_shot_no_normal_image_is_looked_for(tmp_path):
    cfg = config(tmp_path / "nowhere", tmp_path, DATASET__normal_folder="nothing")
    assert build_normal_images(cfg, ["Disk"]) == {}


def test_normal_images_of_vision_are_those_without_annotation(tmp_path):
    for name in ("Disk", "Ring"):
        write_product(tmp_path / "data", name)
    own = {
        "Disk": list_images_without_annotation(
            tmp_path / "data" / "Disk", "train", "a.png", "b.png"
        ),
        "Ring": list_images_without_annotation(
            tmp_path / "data" / "Ring", "val", "a.png", "c.png", "d.png"
        ),
    }
    cfg = config(tmp_path / "data", tmp_path, DATASET__normal_shot=2)
    assert build_normal_images(cfg, ["Ring", "Disk"]) == own
    assert len(build_test_index(cfg)) == 8, "they are no samples"


def test_normal_images_of_defect_spectrum_are_those_in_good(tmp_path):
    own = write_clean(tmp_path / "data" / "bottle" / "image" / "good", "000.png", "001.png")
    cfg = config(
        tmp_path / "data", tmp_path, DATASET__name="DS_Spectrum_DS_ND", DATASET__normal_shot=2
    )
    assert build_normal_images(cfg, ["bottle"]) == {"bottle": own}


@pytest.mark.parametrize("name", ["VISION_V1_ND", "DS_Spectrum_DS_ND"])
def test_a_folder_of_normal_images_is_for_every_object(tmp_path, name):
    """In place of the objects' own."""
    write_product(tmp_path / "data", "Disk")
    list_images_without_annotation(tmp_path / "data" / "Disk", "train", "own.png")
    shared = write_clean(tmp_path / "data" / "clean" / "all", "1.png", "2.png")
    write_clean(tmp_path / "data" / "bottle" / "image" / "good", "000.png")
    options = {
        "DATASET__name": name,
        "DATASET__normal_shot": 1,
        "DATASET__normal_folder": "clean/all",
    }
    cfg = config(tmp_path / "data", tmp_path, **options)
    assert build_normal_images(cfg, ["Disk", "bottle"]) == {"Disk": shared, "bottle": shared}


def test_normal_images_of_a_sub_dataset_are_its_own_and_the_folder_is_that_of_all(tmp_path):
    write_product(tmp_path / "data" / "dark", "Disk")
    own = list_images_without_annotation(tmp_path / "data" / "dark" / "Disk", "train", "a.png")
    shared = write_clean(tmp_path / "data" / "clean", "1.png")
    cfg = config(tmp_path / "data", tmp_path, DATASET__normal_shot=1)
    assert build_normal_images(cfg, ["Disk"], "dark") == {"Disk": own}
    cfg = config(
        tmp_path / "data", tmp_path, DATASET__normal_shot=1, DATASET__normal_folder="clean"
    )
    assert build_normal_images(cfg, ["Disk"], "dark") == {"Disk": shared}


@pytest.mark.parametrize(
    ("name", "folder", "count"), [("VISION_V1", "", 1), ("DS_Spectrum_DS_ND", "", 0), ("VISION_V1_ND", "clean", 2),
                                  ("VISION_V1_ND", "gone", 0)]
)  # fmt: skip
def test_too_few_normal_images_are_an_error_that_names_both_keys(tmp_path, name, folder, count):
    write_product(tmp_path / "data", "Disk")
    list_images_without_annotation(tmp_path / "data" / "Disk", "train", "a.png")
    write_clean(tmp_path / "data" / "clean", "1.png", "2.png")
    options = {"DATASET__name": name, "DATASET__normal_shot": 3, "DATASET__normal_folder": folder}
    cfg = config(tmp_path / "data", tmp_path, **options)
    with pytest.raises(DataError, match=rf"Disk: {count} normal images in .*{folder}.*DATASET\.normal_shot is 3.*"
                                        r"DATASET\.normal_folder"):  # fmt: skip
        build_normal_images(cfg, ["Disk"])


def test_normal_images_of_a_missing_object_name_the_root(tmp_path):
    write_product(tmp_path / "data", "Disk")
    with pytest.raises(DataError, match=r"Plat\b.*TEST\.dataset_path"):
        build_normal_images(config(tmp_path / "data", tmp_path, DATASET__normal_shot=1), ["Plat"])


def test_a_folder_of_normal_images_that_has_annotations_is_refused(tmp_path):
    write_product(tmp_path / "data", "Disk")
    cfg = config(
        tmp_path / "data", tmp_path, DATASET__normal_shot=1, DATASET__normal_folder="Disk/train"
    )
    with pytest.raises(
        DataError, match=r"Disk/train \(DATASET\.normal_folder\) has _annotations\.coco\.json"
    ):
        build_normal_images(cfg, ["Plate"])


def test_extra_roots_that_are_missing_or_add_nothing_are_told(surfaces, tmp_path, caplog):
    """And one that is the first root by a link adds its samples once."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(surfaces)
    alone = build_train_index(config(surfaces, tmp_path))
    both = config(
        surfaces,
        tmp_path,
        TRAIN__extra_dataset_paths=[str(tmp_path / n) for n in ("empty", "link")],
    )
    assert build_train_index(both).samples == alone.samples
    assert (
        f"{tmp_path}/empty (TRAIN.extra_dataset_paths) has none of the training objects"
        in caplog.text
    )
    missing = config(surfaces, tmp_path, TRAIN__extra_dataset_paths=[str(tmp_path / "gone")])
    with pytest.raises(DataError, match=r"gone: no such folder; mend TRAIN\.extra_dataset_paths"):
        build_train_index(missing)
