"""The data sets that a config names."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from yacs.config import CfgNode

from datasets.episodes import EpisodeList, TrainingCrops, TrainingEpisodes, WindowEpisodes
from datasets.folders import list_images, named_files, warn_unread
from datasets.images import limit_pixels
from datasets.readers import READERS, reader_of, vision_v1
from datasets.readers.anomaly import AnomalyObject, draw_normal
from datasets.samples import SampleIndex, join_categories, load_or_build
from datasets.splits import NATIVE_SUFFIX, split_objects
from datasets.views import ViewSettings
from utils.errors import ConfigError, DataError
from utils.warn_once import warn_once

_LOG = logging.getLogger(__name__)


def objects_of(cfg: CfgNode) -> tuple[list[str], list[str]]:
    """Training and test objects, in no case the same: the split's lists, or those of the config."""
    data = cfg.DATASET
    train, test = list(data.train_objects), list(data.test_objects)
    if not (train and test):
        split_train, split_test = split_objects(data.name, data.split)
        train, test = train or split_train, test or split_test
    if both := sorted(set(train) & set(test)):
        remedy = "list both DATASET.train_objects and DATASET.test_objects without overlap"
        raise ConfigError(f"{', '.join(both)}: among the training and the test objects; {remedy}")
    return train, test


@named_files()
def build_train_index(cfg: CfgNode) -> SampleIndex:
    """Samples of the training objects, each from all of the training roots that have it.

    Categories of one name are one. Images are relative to the first root, links resolved.
    Raises ConfigError without training objects, DataError for an object in no root or where two
    roots disagree about its categories.
    """
    reader, objects = _sample_reader(cfg), objects_of(cfg)[0]
    if not objects:
        remedy = "name some in DATASET.train_objects"
        raise ConfigError(f"DATASET.name {cfg.DATASET.name} has no training objects; {remedy}")
    for root in map(Path, cfg.TRAIN.extra_dataset_paths):
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; mend TRAIN.extra_dataset_paths")
        if not any(reader.has_object(root, name) for name in objects):
            lacks = f"has none of the training objects {', '.join(objects)}"
            warn_once(_LOG, f"{root} (TRAIN.extra_dataset_paths) {lacks}")
    roots: dict[str, Path] = {}
    for root in (cfg.TRAIN.dataset_path, *cfg.TRAIN.extra_dataset_paths):
        roots.setdefault(os.path.realpath(root), Path(root))  # one may be a link to another
    key, places = "TRAIN.dataset_path", {}
    for name in objects:
        having = [root for root in roots.values() if reader.has_object(root, name)]
        places[name] = having or [Path(cfg.TRAIN.dataset_path)]  # whose reader refuses it
    joined = SampleIndex(places[objects[0]][0].resolve())
    for name, having in places.items():
        known: dict[str, tuple[int, Path]] = {}
        for root in having:
            index = _index(cfg, root, [name], key)
            file = reader.source_files(root, name, key)[0]
            names = {sample.category: sample.category_name for sample in index.samples}
            numbers = join_categories(known, file, names, names)
            folder = os.path.relpath(root.resolve(), joined.root)  # `..` leads elsewhere by links
            for sample in index.samples:
                image, category = Path(folder, sample.image), numbers[sample.category]
                joined.samples.append(replace(sample, image=image.as_posix(), category=category))
            joined.notes += index.notes
    return joined


@named_files()
def build_test_index(cfg: CfgNode, sub_dataset: str = "original") -> SampleIndex:
    """Samples of the test objects: of TEST.dataset_path, or of its folder `sub_dataset`."""
    return _index(cfg, _test_root(cfg, sub_dataset), objects_of(cfg)[1], "TEST.dataset_path")


@named_files()
def build_normal_images(
    cfg: CfgNode, objects: list[str], sub_dataset: str = "original"
) -> dict[str, list[Path]]:
    """Images without defect that DATASET.normal_shot and TEST.normal_queries draw from, by object;
    {} if both are 0.

    Raises DataError where an object has too few of them to be supports.
    """
    data, folder = cfg.DATASET, Path(cfg.TEST.dataset_path, cfg.DATASET.normal_folder)
    if not (data.normal_shot or cfg.TEST.normal_queries):
        return {}
    if data.normal_folder:
        images = dict.fromkeys(objects, list_images(folder) if folder.is_dir() else [])
        if (folder / vision_v1.ANNOTATIONS).is_file():
            fault = f"has {vision_v1.ANNOTATIONS}, so that its images may have defects"
            remedy = "name a folder of normal images, or empty the key"
            raise DataError(f"{folder} (DATASET.normal_folder) {fault}; {remedy}")
        warn_unread(folder, images[objects[0]], "those of DATASET.normal_folder itself are")
    else:
        folder, reader = _test_root(cfg, sub_dataset), _sample_reader(cfg)
        images = {name: reader.normal_images(folder, name, "TEST.dataset_path") for name in objects}
    for name, found in images.items():
        if len(found) < data.normal_shot:
            remedy = "lower it, or name a folder of normal images in DATASET.normal_folder"
            fault = f"but DATASET.normal_shot is {data.normal_shot}"
            raise DataError(f"{name}: {len(found)} normal images in {folder}, {fault}; {remedy}")
    if not any(images.values()):
        lack = (
            f"no test object has normal images in {folder}, so TEST.normal_queries measures nothing"
        )
        remedy = "name a folder of normal images in DATASET.normal_folder, or set it to 0"
        warn_once(_LOG, f"{lack}; {remedy}")
    return images


@named_files()
def build_anomaly_objects(cfg: CfgNode) -> list[AnomalyObject]:
    """The objects of an anomaly detection test: DATASET.test_objects, or all of the data set.

    Raises DataError where an object is missing or broken, or has too few normal images.
    """
    data, root = cfg.DATASET, Path(cfg.TEST.dataset_path)
    limit_pixels(data.max_pixels)
    reader = reader_of(data.name)
    missing = [name for name in reader.objects if not (root / name).is_dir()]
    if not data.test_objects and missing and root.is_dir():
        fault = f"has not all objects of {data.name} (it lacks {', '.join(missing)})"
        remedy = "name those to test in DATASET.test_objects, or set TEST.dataset_path"
        raise DataError(f"{root} {fault}; {remedy}")
    names = data.test_objects or reader.objects
    objects = [reader.read_object(root, name, "TEST.dataset_path") for name in names]
    for item in objects:  # before the first is tested, which takes long
        draw_normal(item.normal, item.name, data.shot, cfg.RNG_SEED)
    return objects


def view_settings(cfg: CfgNode) -> ViewSettings:
    """How samples become network inputs; without the suffix _ND every image is resized whole."""
    data = cfg.DATASET
    ratio = data.area_resize_ratio if data.name.endswith(NATIVE_SUFFIX) else None
    return ViewSettings(
        data.image_size,
        data.crop_size,
        ratio,
        views=data.s_in_shot,
        normal_views=data.normal_views,
        crops_may_miss=cfg.TEST.protocol == "published",
        support_windows=data.support_windows,
        grids=tuple(n for n in data.grids if n) if ratio is not None else (),
    )


def build_training_episodes(cfg: CfgNode, index: SampleIndex) -> TrainingEpisodes | WindowEpisodes:
    """Training episodes over the samples of `index`: of whole windows with
    DATASET.support_windows, else of augmented crops."""
    data, degrees = cfg.DATASET, (cfg.DATASET.rotate_min, cfg.DATASET.rotate_max)
    ratio, share = tuple(data.crop_ratio), data.normal_sample_sampling_prob
    episodes = EpisodeList(index, data.shot, cfg.RNG_SEED, balanced=data.balanced)
    if data.support_windows:
        return WindowEpisodes(episodes, view_settings(cfg), share)
    crops = TrainingCrops(
        view_settings(cfg), crop_ratio=ratio, normal_probability=share, degrees=degrees
    )
    return TrainingEpisodes(episodes, crops)


def _test_root(cfg: CfgNode, sub_dataset: str) -> Path:
    return Path(cfg.TEST.dataset_path, "" if sub_dataset == "original" else sub_dataset)


def _index(cfg: CfgNode, root: Path, objects: list[str], key: str) -> SampleIndex:
    data = cfg.DATASET
    limit_pixels(data.max_pixels)
    name, folder = data.name.removesuffix(NATIVE_SUFFIX), data.vision_data_save_path
    keep = {"save": data.vision_data_save, "load": data.vision_data_load}
    return load_or_build(_sample_reader(cfg), name, root, objects, folder, **keep, key=key)


def _sample_reader(cfg: CfgNode) -> ModuleType:
    """Raises ConfigError where the data set is none of samples for episodes."""
    reader = reader_of(cfg.DATASET.name)
    if reader.kind != "episodes":
        names = ", ".join(name for name, other in READERS.items() if other.kind == "episodes")
        remedy = f"train.py takes {names}, also with {NATIVE_SUFFIX}, test.py this one as it is"
        fault = f"DATASET.name is {cfg.DATASET.name}, which has nothing to train on"
        raise ConfigError(f"{fault}; {remedy}")
    return reader
