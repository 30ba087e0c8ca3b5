"""Rules for values: tables of bounds and choices, and the relations between keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from yacs.config import CfgNode

from method_config.defaults import PATHS, WORDS, get_defaults
from method_config.values import get, hint, leaves, merge, shown
from utils.errors import ConfigError

DATASETS = (
    "VISION_V1",
    "VISION_V1_ND",
    "DS_Spectrum",
    "DS_Spectrum_ND",
    "DS_Spectrum_DS",
    "DS_Spectrum_DS_ND",
    "mvtec",
    "mvtec_ND",
    "visa",
    "visa_ND",
    "opendomain_test_dataset_ND",
)
ANOMALY_DATASETS = ("mvtec", "visa")
DINOV2_BLOCKS = {
    f"dinov2_vit{size}14{reg}": n
    for size, n in {"s": 12, "b": 12, "l": 24, "g": 40}.items()
    for reg in ("", "_reg")
}
CNN_STAGES = dict.fromkeys(("resnet50", "wideresnet50", "efficientnet_lite0"), 5)
NUM_SPLITS = 3
FOLDERS = (
    "train_objects",
    "test_objects",
    "open_domain_test_object",
    "sub_datasets",
)  # keys of DATASET
_VARIABLE = re.compile(r"\$(\{|[A-Za-z_])")  # of the environment, in a path
OF_A_RUN = (  # in its folder, where each open-domain object has one, too
    *(
        "config.yaml",
        "run.json",
        "report.html",
        "metrics.json",
        "queries.csv",
        "curves.json",
        "gallery",
        "test.log",
    ),
    *("figures", "events", "feature_bank", "checkpoints"),
)
LONGEST_ADVICE = 1000  # characters
MANY_HEADS = 1024  # further divisors are not listed

CHOICES = {
    "DATASET.name": DATASETS,
    "DIST_BACKEND": ("nccl", "gloo", "mpi"),
    "TRAIN.method": ("SOFS",),
    "TRAIN.backbone": (*DINOV2_BLOCKS, *CNN_STAGES),
    "TRAIN.precision": ("fp32", "bf16", "fp16", "auto"),
    "TRAIN.attention": ("sdpa", "xformers"),
    "TEST.method": ("SOFS", "prior"),
    "TEST.merge": ("probability", "reference"),
    "TRAIN.LOSS.resolution": ("token", "pixel"),
    "TRAIN.SOFS.empty_supports": ("skip", "reference"),
    "TEST.query_scale": ("support", "query"),
}


@dataclass(frozen=True)
class Bound:
    """The numbers that `accepts` lets through, and their description for the error message."""

    accepts: Callable[[float], bool]
    words: str


POSITIVE = Bound(lambda x: x > 0, "more than 0")
NOT_NEGATIVE = Bound(lambda x: x >= 0, "0 or more")
COUNT = Bound(lambda x: x >= 1, "1 or more")
PROCESSES = Bound(lambda x: 1 <= x <= 1024, "from 1 to 1024")
WORKERS = Bound(lambda x: 0 <= x <= 1024, "from 0 to 1024")
SIDE = Bound(lambda x: 1 <= x <= 16384, "from 1 to 16384")
SHARE = Bound(lambda x: 0 <= x <= 1, "from 0 to 1")
OPEN_SHARE = Bound(lambda x: 0 < x < 1, "between 0 and 1")
OVERLAP = Bound(lambda x: 0 <= x <= 0.9, "from 0 to 0.9")
SEED = Bound(lambda x: 0 <= x < 2**32, "from 0 to 4294967295")

# Key -> bound; of a list, each element obeys it.
BOUNDS = {
    "NUM_GPUS": PROCESSES,
    "RNG_SEED": SEED,
    "DEVICE": NOT_NEGATIVE,
    "DATASET.image_size": SIDE,
    "DATASET.mask_size": SIDE,
    "DATASET.area_resize_ratio": SHARE,
    "DATASET.crop_size": COUNT,
    "DATASET.crop_ratio": POSITIVE,
    "DATASET.shot": COUNT,
    "DATASET.s_in_shot": COUNT,
    "DATASET.normal_views": NOT_NEGATIVE,
    "DATASET.normal_shot": NOT_NEGATIVE,
    "DATASET.normal_sample_sampling_prob": SHARE,
    "DATASET.max_pixels": COUNT,
    "DATASET.test_sample_repeated_multiple": COUNT,
    "DATASET.few_shot_repeated_multiple": COUNT,
    "DATASET.open_domain_object_category_num": COUNT,
    "DATASET.open_domain_specific_defect_category": NOT_NEGATIVE,
    "TRAIN.feature_bank": NOT_NEGATIVE,
    "TRAIN.SOFS.prior_layer_pointer": NOT_NEGATIVE,
    "TRAIN.SOFS.vit_patch_size": COUNT,
    "TRAIN.SOFS.reduce_dim": COUNT,
    "TRAIN.SOFS.transformer_embed_dim": COUNT,
    "TRAIN.SOFS.transformer_num_stages": COUNT,
    "TRAIN.SOFS.transformer_nums_heads": COUNT,
    "TRAIN.SOFS.target_semantic_temperature": POSITIVE,
    "TRAIN.SOFS.smooth_r": POSITIVE,
    "TRAIN.LOSS.dice_weight": NOT_NEGATIVE,
    "TRAIN.LOSS.ce_weight": NOT_NEGATIVE,
    "TRAIN_SETUPS.batch_size": COUNT,
    "TRAIN_SETUPS.num_workers": WORKERS,
    "TRAIN_SETUPS.learning_rate": POSITIVE,
    "TRAIN_SETUPS.lr_multiple": POSITIVE,
    "TRAIN_SETUPS.epochs": NOT_NEGATIVE,
    "TRAIN_SETUPS.weight_decay": NOT_NEGATIVE,
    "TRAIN_SETUPS.TEST_SETUPS.epoch_test": COUNT,
    "TRAIN_SETUPS.TEST_SETUPS.train_miou": COUNT,
    "TRAIN_SETUPS.TEST_SETUPS.val_share": OPEN_SHARE,
    "TEST.threshold": SHARE,
    "TEST.window_overlap": OVERLAP,
    "TEST.memory_tokens": NOT_NEGATIVE,
    "TEST.VISUALIZE.sample_prob": SHARE,
    "TEST_SETUPS.batch_size": COUNT,
    "TEST_SETUPS.ND_batch_size": COUNT,
}

Problem = tuple[str, str]  # key, what is wrong with its value and how to mend it


def _outside_bounds(cfg: CfgNode) -> Iterator[Problem]:
    for key, bound in BOUNDS.items():
        value = get(cfg, key)
        numbers = [
            x
            for x in (value if isinstance(value, list) else [value])
            if x not in WORDS.get(key, ())
        ]
        if not all(bound.accepts(x) for x in numbers):
            yield key, f"it must be {bound.words}."


def _outside_choices(cfg: CfgNode) -> Iterator[Problem]:
    for key, options in CHOICES.items():
        value = get(cfg, key)
        timm_name = (
            key == "TRAIN.backbone" and value.startswith("timm:") and len(value) > len("timm:")
        )
        if value not in options and not timm_name:
            allowed = ", ".join(options) + (", timm:NAME" if key == "TRAIN.backbone" else "")
            yield key, f"known: {allowed}. {hint(value, options, '')}".rstrip()


def _image_size(cfg: CfgNode) -> Iterator[Problem]:
    size, patch = cfg.DATASET.image_size, cfg.TRAIN.SOFS.vit_patch_size
    if size % patch:
        below = size // patch * patch
        near = f"{below} or {below + patch}" if below else f"{patch}"
        yield (
            "DATASET.image_size",
            f"it must be a multiple of TRAIN.SOFS.vit_patch_size = {patch}: {near}.",
        )
    if cfg.DATASET.mask_size != size:
        yield "DATASET.mask_size", f"it must equal DATASET.image_size = {size}; set both."


def _backbone(cfg: CfgNode) -> Iterator[Problem]:
    name, layers = cfg.TRAIN.backbone, cfg.TRAIN.SOFS.prior_layer_pointer
    if name in DINOV2_BLOCKS and cfg.TRAIN.SOFS.vit_patch_size != 14:
        yield "TRAIN.SOFS.vit_patch_size", f"the patches of {name} are 14."
    key = "TRAIN.SOFS.prior_layer_pointer"
    if not layers or layers != sorted(set(layers)):
        yield key, "it must hold one layer or more, ascending, each once."
    count = {**DINOV2_BLOCKS, **CNN_STAGES}.get(name)
    if count and any(layer >= count for layer in layers):
        yield key, f"the layers of {name} are 0 to {count - 1}."


def _heads(cfg: CfgNode) -> Iterator[Problem]:
    width, heads = cfg.TRAIN.SOFS.transformer_embed_dim, cfg.TRAIN.SOFS.transformer_nums_heads
    if width % heads:
        divisors = ", ".join(str(n) for n in range(1, min(width, MANY_HEADS) + 1) if width % n == 0)
        key = "TRAIN.SOFS.transformer_nums_heads"
        yield key, f"it must divide TRAIN.SOFS.transformer_embed_dim = {width}: {divisors}."


def _ranges(cfg: CfgNode) -> Iterator[Problem]:
    ratio = cfg.DATASET.crop_ratio
    if len(ratio) != 2 or ratio[0] > ratio[1]:
        yield "DATASET.crop_ratio", "it must be two numbers, the lower first."
    if cfg.DATASET.rotate_min > cfg.DATASET.rotate_max:
        yield (
            "DATASET.rotate_min",
            f"it must not exceed DATASET.rotate_max = {cfg.DATASET.rotate_max}.",
        )


def _loss(cfg: CfgNode) -> Iterator[Problem]:
    if cfg.TRAIN.LOSS.dice_weight == 0 and cfg.TRAIN.LOSS.ce_weight == 0:
        yield "TRAIN.LOSS.dice_weight", "TRAIN.LOSS.ce_weight is 0, too; one must be more than 0."


def _split(cfg: CfgNode) -> Iterator[Problem]:
    data = cfg.DATASET
    free = data.name.startswith(("opendomain", *ANOMALY_DATASETS)) or (
        data.train_objects and data.test_objects
    )
    if not free and not 0 <= data.split < NUM_SPLITS:
        yield (
            "DATASET.split",
            f"{data.name} has the splits 0 to {NUM_SPLITS - 1}; or name both DATASET.train_objects and test_objects.",
        )


def _objects(cfg: CfgNode) -> Iterator[Problem]:
    data = cfg.DATASET
    for name in FOLDERS:
        twice = sorted(x for x, count in Counter(data[name]).items() if count > 1)
        if twice:
            yield f"DATASET.{name}", f"{', '.join(twice)} stands there more than once."
        for given, plain in ((x, PurePath(x).as_posix()) for x in data[name]):
            if plain == ".":
                yield (
                    f"DATASET.{name}",
                    f"{given!r} in it names no folder." if given else "a name in it is empty.",
                )
            elif plain != given:  # the same folder under two names would be two objects
                yield f"DATASET.{name}", f"write {shown(plain)} for {shown(given)}."
    leak = sorted(set(data.train_objects) & set(data.test_objects))
    if leak:
        yield (
            "DATASET.test_objects",
            f"{', '.join(leak)} is in DATASET.train_objects, too; drop it in one.",
        )


def _paths(cfg: CfgNode) -> Iterator[Problem]:
    """Folders below others, some of which are written to."""
    names = {f"DATASET.{name}": cfg.DATASET[name] for name in FOLDERS}
    for key, paths in (names | {"DATASET.normal_folder": [cfg.DATASET.normal_folder]}).items():
        if out := [path for path in paths if leads_out(path)]:
            yield (
                key,
                f"{shown(out[0])} leads out of the data set; names start there, without .. in them.",
            )
    if leads_out(cfg.RUN_NAME):
        yield (
            "RUN_NAME",
            "it leads out of OUTPUT_DIR; name a folder in it, without .., and set OUTPUT_DIR to the rest.",
        )
    for key in PATHS:
        value = get(cfg, key)
        for path in value if isinstance(value, list) else [value]:
            if path.startswith("~") or (_VARIABLE.search(path) and not Path(path).exists()):
                yield (
                    key,
                    f"{shown(path)} names a user or a variable that is not known here; write the path out.",
                )
    if cfg.RUN_NAME.startswith(("~", "$")):
        yield (
            "RUN_NAME",
            "it is a name below OUTPUT_DIR, where ~ and $ stand for nothing; choose another.",
        )
    if cfg.RUN_NAME and not PurePath(cfg.RUN_NAME).parts:
        yield "RUN_NAME", "it names no folder below OUTPUT_DIR; name one."


def leads_out(path: str) -> bool:
    """Whether a path that should lie below a folder may not."""
    return PurePath(path).is_absolute() or ".." in PurePath(path).parts


def _open_domain(cfg: CfgNode) -> Iterator[Problem]:
    data = cfg.DATASET
    if not data.name.startswith("opendomain"):
        return
    count = len(data.open_domain_test_object)
    if not count:
        yield "DATASET.open_domain_test_object", "it must name one object or more."
    if taken := sorted(
        name for name in data.open_domain_test_object if name.split("/")[0] in OF_A_RUN
    ):
        yield (
            "DATASET.open_domain_test_object",
            f"{taken[0]} is what a run calls files of its own; rename the folder.",
        )
    for name in ("open_domain_object_category_num", "open_domain_specific_defect_category"):
        if len(data[name]) not in (1, count):
            yield (
                f"DATASET.{name}",
                f"it must hold one number, or one per open_domain_test_object ({count}).",
            )


def _normal(cfg: CfgNode) -> Iterator[Problem]:
    if cfg.DATASET.normal_shot and cfg.TRAIN.SOFS.empty_supports == "reference":
        yield (
            "DATASET.normal_shot",
            "TRAIN.SOFS.empty_supports reference is for published figures, which have none; use skip.",
        )


def _resume(cfg: CfgNode) -> Iterator[Problem]:
    if cfg.TRAIN.resume == "auto" and not cfg.RUN_NAME:
        yield "TRAIN.resume", "RUN_NAME is empty, so that no run is found again; set it."


RELATIONS = (
    _image_size,
    _backbone,
    _heads,
    _ranges,
    _loss,
    _split,
    _objects,
    _paths,
    _open_domain,
    _normal,
    _resume,
)


def _raise_all(cfg: CfgNode, problems: list[Problem], sources: Mapping[str, str]) -> None:
    if problems:
        raise ConfigError(
            "\n".join(_sentence(cfg, key, text, sources.get(key)) for key, text in problems)
        )


def _sentence(cfg: CfgNode, key: str, text: str, source: str | None) -> str:
    return f"{source or 'defaults'}: {key} is {shown(get(cfg, key))}: {text:.{LONGEST_ADVICE}}"


def check_config(cfg: CfgNode, sources: Mapping[str, str] | None = None) -> None:
    """Raise a ConfigError, one line for each fault, if `cfg` has unknown keys, wrong types or impossible values.

    Args:
        cfg: the whole tree, see `method_config.defaults`.
        sources: key -> the file that set it, for the messages.
    """
    sources = sources or {}
    merge(get_defaults(), leaves(cfg), "configuration")
    _raise_all(cfg, [*_outside_bounds(cfg), *_outside_choices(cfg)], sources)
    # relations divide by values that the bounds have let through
    _raise_all(cfg, [problem for relation in RELATIONS for problem in relation(cfg)], sources)
