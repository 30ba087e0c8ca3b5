"""The data sets that a config names."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from yacs.config import CfgNode

from datasets.episodes import EpisodeList, TrainingCrops, TrainingEpisodes
from datasets.folders import list_images, named_files, tell_unread
from datasets.images import limit_pixels
from datasets.readers import ds_spectrum, mvtec, visa, vision_v1
from datasets.readers.anomaly import AnomalyObject, draw_normal
from datasets.readers.categories import CategoryNumbers
from datasets.samples import Reader, SampleIndex, load_or_build
from datasets.splits import NATIVE_SUFFIX, SPLIT_NAMES, split_objects
from datasets.views import ViewSettings
from utils.errors import ConfigError, DataError
from utils.warn_once import warn_once

_LOG = logging.getLogger(__name__)
READERS: dict[str, Reader] = {
    "VISION_V1": vision_v1,
    "DS_Spectrum": ds_spectrum,
    "DS_Spectrum_DS": ds_spectrum,
}
ANOMALY_READERS = {
    "mvtec": (mvtec.read_object, mvtec.MVTEC_OBJECTS),
    "visa": (visa.read_object, visa.VISA_OBJECTS),
}


def objects_of(cfg: CfgNode) -> tuple[list[str], list[str]]:
    """Training and test objects: the split's lists, each overridden by its key.

    Raises:
        ConfigError: an object stands in both lists.
    """
    data = cfg.DATASET
    train, test = list(data.train_objects), list(data.test_objects)
    if not (train and test):
        split_train, split_test = split_objects(data.name, data.split)
        train, test = train or split_train, test or split_test
    both = sorted(set(train) & set(test))
    if both:
        raise ConfigError(
            f"{', '.join(both)}: among the training and the test objects; list both DATASET.train_objects "
            "and DATASET.test_objects without overlap"
        )
    return train, test


@named_files()
def build_train_index(cfg: CfgNode) -> SampleIndex:
    """Samples of the training objects, each from all of the training roots that have it; categories of one name are
    one.

    Raises:
        ConfigError: the data set is not one to train on, or has no training objects.
        DataError: an object is in no root, or two roots disagree about its categories.
    """
    _reader(cfg)
    roots = [cfg.TRAIN.dataset_path, *cfg.TRAIN.extra_dataset_paths]
    objects = objects_of(cfg)[0]
    _check_extra_roots(cfg, objects)
    if not objects:
        raise ConfigError(
            f"DATASET.name {cfg.DATASET.name} has no training objects; name some in DATASET.train_objects"
        )
    key, places = (
        "TRAIN.dataset_path",
        [(root, name) for name in objects for root in _roots_of(cfg, roots, name)],
    )
    indices = [_index(cfg, root, [name], key) for root, name in places]
    return _joined(
        indices, [_reader(cfg).source_files(root, name, key)[0] for root, name in places]
    )


@named_files()
def build_test_index(cfg: CfgNode, sub_dataset: str = "original") -> SampleIndex:
    """Samples of the test objects: of TEST.dataset_path, or of its folder `sub_dataset`."""
    return _index(cfg, _test_root(cfg, sub_dataset), objects_of(cfg)[1], "TEST.dataset_path")


@named_files()
def build_normal_images(
    cfg: CfgNode, objects: list[str], sub_dataset: str = "original"
) -> dict[str, list[Path]]:
    """Images without defect that DATASET.normal_shot draws from, by object; empty where it asks for none.

    Raises:
        DataError: an object has too few of them.
    """
    data = cfg.DATASET
    if not data.normal_shot:
        return {}
    if data.normal_folder:
        root = Path(cfg.TEST.dataset_path)
        folder = root / data.normal_folder
        images = dict.fromkeys(objects, list_images(folder) if folder.is_dir() else [])
        if (folder / vision_v1.ANNOTATIONS).is_file():
            raise DataError(f"{folder} (DATASET.normal_folder) has {vision_v1.ANNOTATIONS}, so that its images may "
                            "have defects; name a folder of normal images, or empty the key")  # fmt: skip
        tell_unread(folder, images[objects[0]], "those of DATASET.normal_folder itself are")
    else:
        root, reader = _test_root(cfg, sub_dataset), _reader(cfg)
        images = {name: reader.normal_images(root, name, "TEST.dataset_path") for name in objects}
    for name, found in images.items():
        if len(found) < data.normal_shot:
            raise DataError(
                f"{name}: {len(found)} normal images in {root / data.normal_folder}, but DATASET.normal_shot is "
                f"{data.normal_shot}; lower it, or name a folder of normal images in DATASET.normal_folder"
            )
    return images


def is_anomaly_data(cfg: CfgNode) -> bool:
    """Whether the data set is one of normal training images, whose test is anomaly detection."""
    return cfg.DATASET.name.removesuffix(NATIVE_SUFFIX) in ANOMALY_READERS


@named_files()
def build_anomaly_objects(cfg: CfgNode) -> list[AnomalyObject]:
    """The objects of an anomaly detection test: DATASET.test_objects, or all of the data set.

    Raises:
        DataError: an object is missing or broken, or has too few normal images.
    """
    data, root = cfg.DATASET, Path(cfg.TEST.dataset_path)
    limit_pixels(data.max_pixels)
    read, known = ANOMALY_READERS[data.name.removesuffix(NATIVE_SUFFIX)]
    missing = [name for name in known if not (root / name).is_dir()]
    if not data.test_objects and missing and root.is_dir():
        raise DataError(f"{root} has not all objects of {data.name} (it lacks {', '.join(missing)}); name those to "
                        "test in DATASET.test_objects, or set TEST.dataset_path")  # fmt: skip
    objects = [read(root, name, "TEST.dataset_path") for name in data.test_objects or known]
    for item in objects:  # before the first is tested, which takes long
        draw_normal(item.normal, item.name, data.shot, cfg.RNG_SEED)
    return objects


def view_settings(cfg: CfgNode) -> ViewSettings:
    """How samples become network inputs; without the suffix _ND every image is resized whole."""
    data = cfg.DATASET
    return ViewSettings(
        image_size=data.image_size,
        crop_size=data.crop_size,
        resize_ratio=data.area_resize_ratio if data.name.endswith(NATIVE_SUFFIX) else None,
        views=data.s_in_shot,
        normal_views=data.normal_views,
        crops_may_miss=cfg.TEST.protocol == "published",
    )


def build_training_episodes(cfg: CfgNode, index: SampleIndex) -> TrainingEpisodes:
    """Training episodes over the samples of `index`."""
    data = cfg.DATASET
    crops = TrainingCrops(
        view_settings(cfg),
        crop_ratio=tuple(data.crop_ratio),
        normal_probability=data.normal_sample_sampling_prob,
        degrees=(data.rotate_min, data.rotate_max),
    )
    return TrainingEpisodes(EpisodeList(index, data.shot, cfg.RNG_SEED), crops)


def _test_root(cfg: CfgNode, sub_dataset: str) -> Path:
    root = Path(cfg.TEST.dataset_path)
    return root if sub_dataset == "original" else root / sub_dataset


def _index(cfg: CfgNode, root: Path, objects: list[str], key: str) -> SampleIndex:
    data = cfg.DATASET
    limit_pixels(data.max_pixels)
    return load_or_build(
        _reader(cfg),
        data.name.removesuffix(NATIVE_SUFFIX),
        root,
        objects,
        data.vision_data_save_path,
        save=data.vision_data_save,
        load=data.vision_data_load,
        key=key,
    )


def _reader(cfg: CfgNode) -> Reader:
    name = cfg.DATASET.name.removesuffix(NATIVE_SUFFIX)
    if name not in READERS:
        raise ConfigError(f"DATASET.name is {cfg.DATASET.name}, which has nothing to train on; train.py takes "
                          f"{', '.join(SPLIT_NAMES)}, also with _ND, and test.py this one as it is")  # fmt: skip
    return READERS[name]


def _roots_of(cfg: CfgNode, roots: list[str], name: str) -> list[Path]:
    """The roots that have the object; the first root where none has it, so that its reader names it."""
    once: dict[str, Path] = {}
    for root in roots:
        once.setdefault(os.path.realpath(root), Path(root))  # one may be a link to another
    return [root for root in once.values() if _reader(cfg).has_object(root, name)] or [
        Path(roots[0])
    ]


def _check_extra_roots(cfg: CfgNode, objects: list[str]) -> None:
    """Raises DataError for a root that is missing; warns of one that has nothing to add."""
    for root in map(Path, cfg.TRAIN.extra_dataset_paths):
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; mend TRAIN.extra_dataset_paths")
        if not any(_reader(cfg).has_object(root, name) for name in objects):
            warn_once(
                _LOG,
                f"{root} (TRAIN.extra_dataset_paths) has none of the training objects {', '.join(objects)}",
            )


def _joined(indices: list[SampleIndex], files: list[Path]) -> SampleIndex:
    """One index of indices of an object each, read from these files among others, its images relative to the first
    root; links are resolved, for `..` leads elsewhere through them."""
    first, samples = indices[0].root.resolve(), []
    numbers: dict[str, CategoryNumbers] = defaultdict(CategoryNumbers)
    for index, file in zip(indices, files, strict=True):
        folder = os.path.relpath(index.root.resolve(), first)
        (name,) = index.objects()
        names = {sample.category: sample.category_name for sample in index.samples}
        given = numbers[name].add(file, names, names)
        samples += [
            replace(sample.moved(folder), category=given[sample.category])
            for sample in index.samples
        ]
    return SampleIndex(first, samples, [note for i in indices for note in i.notes])
