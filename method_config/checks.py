"""Rules for values: the numbers and words that a key takes, and relations between keys.

Names of data sets, backbones and methods are checked where these are defined.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from yacs.config import CfgNode

from method_config.defaults import PATH_ENDINGS, WORDS
from method_config.values import get, leaves, shown
from utils.errors import ConfigError

# What an error message says -> whether a number is allowed, and the keys; of a list, each element.
BOUNDS = {
    "0 or more": (
        lambda x: x >= 0,
        """
        DEVICE DATASET.split DATASET.normal_views DATASET.normal_shot
        DATASET.open_domain_specific_defect_category TRAIN.feature_bank DATASET.grids
        TRAIN.SOFS.prior_layer_pointer TRAIN.LOSS.dice_weight TRAIN.LOSS.ce_weight
        TRAIN.position_directions TRAIN_SETUPS.epochs TRAIN_SETUPS.weight_decay
        TEST.memory_tokens TEST.support_tokens TEST.normal_queries
        """,
    ),
    "1 or more": (
        lambda x: x >= 1,
        """
        DATASET.crop_size DATASET.shot DATASET.s_in_shot DATASET.max_pixels
        DATASET.test_sample_repeated_multiple DATASET.few_shot_repeated_multiple
        DATASET.open_domain_object_category_num
        TRAIN.SOFS.vit_patch_size TRAIN.SOFS.reduce_dim TRAIN.SOFS.transformer_embed_dim
        TRAIN.SOFS.transformer_num_stages TRAIN.SOFS.transformer_nums_heads
        TRAIN_SETUPS.batch_size TRAIN_SETUPS.TEST_SETUPS.epoch_test
        TRAIN_SETUPS.TEST_SETUPS.train_miou TEST_SETUPS.batch_size TEST_SETUPS.ND_batch_size
        """,
    ),
    "more than 0": (
        lambda x: x > 0,
        "DATASET.crop_ratio TRAIN.SOFS.target_semantic_temperature TRAIN.SOFS.smooth_r "
        "TRAIN_SETUPS.learning_rate TRAIN_SETUPS.lr_multiple",
    ),
    "from 0 to 1": (
        lambda x: 0 <= x <= 1,
        "DATASET.area_resize_ratio DATASET.normal_sample_sampling_prob TEST.threshold "
        "TEST.VISUALIZE.sample_prob",
    ),
    "between 0 and 1": (lambda x: 0 < x < 1, "TRAIN_SETUPS.TEST_SETUPS.val_share"),
    "from 0 to 0.9": (lambda x: 0 <= x <= 0.9, "TEST.window_overlap"),
    "from 0 to 0.99": (lambda x: 0 <= x <= 0.99, "TEST.normal_gate"),
    "from 0 to 4294967295": (lambda x: 0 <= x < 2**32, "RNG_SEED"),
    "from 1 to 1024": (lambda x: 1 <= x <= 1024, "NUM_GPUS"),
    "from 0 to 1024": (lambda x: 0 <= x <= 1024, "TRAIN_SETUPS.num_workers"),
    "from 1 to 16384": (lambda x: 1 <= x <= 16384, "DATASET.image_size DATASET.mask_size"),
}

CHOICES = {
    "DIST_BACKEND": ("nccl", "gloo", "mpi"),
    "TRAIN.precision": ("fp32", "bf16", "fp16", "auto"),
    "TRAIN.attention": ("sdpa", "xformers"),
    "TRAIN.LOSS.resolution": ("token", "pixel"),
    "TEST.protocol": ("ours", "published"),
    "TEST.runtime": ("torch", "openvino", "onnxruntime", "auto"),
}

# Keys of DATASET that hold folders of the data set.
_FOLDERS = ("train_objects", "test_objects", "open_domain_test_object", "sub_datasets")
_Problem = tuple[str, str]  # key, what is wrong with its value and how to mend it


def check_config(cfg: CfgNode, sources: Mapping[str, str]) -> None:
    """Raise a ConfigError with one line per fault if a tree of right types has impossible values.

    `sources` maps a key to the file that set it, for the messages; other keys have their defaults.
    """
    # relations divide by values that the bounds have let through
    for rules in ((_alone,), (_networks, _folders)):
        problems = [problem for rule in rules for problem in rule(cfg)]
        lines = [f"{key} is {shown(get(cfg, key))}: {text}" for key, text in problems]
        if lines:
            origins = (sources.get(key, "defaults") for key, _ in problems)
            raise ConfigError("\n".join(map(": ".join, zip(origins, lines, strict=True))))


def leads_out(path: str) -> bool:
    """Whether a path that should lie below a folder may lie elsewhere."""
    return PurePath(path).is_absolute() or ".." in PurePath(path).parts


def _alone(cfg: CfgNode) -> Iterator[_Problem]:
    for words, (allowed, keys) in BOUNDS.items():
        for key in keys.split():
            value = get(cfg, key)
            numbers = value if isinstance(value, list) else [value]
            if not all(allowed(x) for x in numbers if x != WORDS.get(key)):
                yield key, f"it must be {words}."
    for key, options in CHOICES.items():
        if get(cfg, key) not in options:
            yield key, f"it must be one of {', '.join(options)}."


def _networks(cfg: CfgNode) -> Iterator[_Problem]:
    data, sofs = cfg.DATASET, cfg.TRAIN.SOFS
    size, patch = data.image_size, sofs.vit_patch_size
    if size % patch:
        below = size // patch * patch
        near = f"{below} or {below + patch}" if below else patch
        text = f"it must be a multiple of TRAIN.SOFS.vit_patch_size = {patch}: {near}."
        yield "DATASET.image_size", text
    if data.mask_size != size:
        yield "DATASET.mask_size", f"it must equal DATASET.image_size = {size}; set both."
    if len(data.crop_ratio) != 2 or data.crop_ratio[0] > data.crop_ratio[1]:
        yield "DATASET.crop_ratio", "it must be two numbers, the lower first."
    if data.rotate_min > data.rotate_max:
        yield "DATASET.rotate_min", f"it must not exceed DATASET.rotate_max = {data.rotate_max}."
    layers = sofs.prior_layer_pointer
    if not layers or layers != sorted(set(layers)):
        yield "TRAIN.SOFS.prior_layer_pointer", "it must hold layers, ascending, each once."
    width = sofs.transformer_embed_dim
    if width % sofs.transformer_nums_heads:
        divisors = ", ".join(str(n) for n in range(1, min(width, 64) + 1) if width % n == 0)
        text = f"it must divide TRAIN.SOFS.transformer_embed_dim = {width}: {divisors}."
        yield "TRAIN.SOFS.transformer_nums_heads", text
    if cfg.TRAIN.LOSS.dice_weight == 0 and cfg.TRAIN.LOSS.ce_weight == 0:
        yield "TRAIN.LOSS.dice_weight", "TRAIN.LOSS.ce_weight is 0, too; one must be more than 0."
    if cfg.TEST.runtime_path and cfg.TEST.runtime == "torch":
        text = "torch runs no exported encoder; set TEST.runtime to auto, openvino or onnxruntime."
        yield "TEST.runtime_path", text
    if cfg.TRAIN.resume == "auto" and not cfg.RUN_NAME:
        yield "TRAIN.resume", "RUN_NAME is empty, so that no earlier run has its name; set it."
    if data.normal_shot and cfg.TEST.protocol == "published":
        text = "the published protocol has no normal supports; set TEST.protocol to ours."
        yield "DATASET.normal_shot", text
    grids = list(data.grids)
    if grids != [0] and (not grids or grids != sorted({*grids} - {0})):
        yield "DATASET.grids", "it must hold numbers from 1 on, ascending, each once, or [0] alone."
    if grids != [0] and cfg.TEST.protocol == "published":
        text = "the published protocol has windows of one size; set TEST.protocol to ours."
        yield "DATASET.grids", text
    if data.support_windows and cfg.TRAIN.feature_bank:
        text = "with DATASET.support_windows nothing is augmented; set TRAIN.feature_cache_path."
        yield "TRAIN.feature_bank", text
    if data.support_windows and cfg.TEST.protocol == "published":
        text = "the published protocol has crops of supports alone; set TEST.protocol to ours."
        yield "DATASET.support_windows", text
    if cfg.TEST.refine and cfg.TEST.protocol == "published":
        yield "TEST.refine", "the published masks are votes of windows; set TEST.protocol to ours."
    if cfg.TEST.normal_queries and cfg.TEST.protocol == "published":
        text = (
            "by the published protocol a query's own defect decides its scale, and a normal image "
        )
        yield "TEST.normal_queries", f"{text}has none; set TEST.protocol to ours."


def _folders(cfg: CfgNode) -> Iterator[_Problem]:
    """Folders of the data set: each once and in its plain spelling, so that none is two objects."""
    data = cfg.DATASET
    for key, folders in ((f"DATASET.{name}", data[name]) for name in _FOLDERS):
        for folder in folders:
            if leads_out(folder):
                yield key, f"{shown(folder)} leads out of the data set; name a folder in it."
            elif folder == "." or PurePath(folder).as_posix() != folder:
                yield key, f"{shown(folder)} must be a plain name, without . or needless /."
        if twice := sorted({x for x in folders if folders.count(x) > 1}):
            yield key, f"{', '.join(twice)} stands there more than once."
    if both := sorted(set(data.train_objects) & set(data.test_objects)):
        text = f"{', '.join(both)} is in DATASET.train_objects, too; drop it in one."
        yield "DATASET.test_objects", text
    count = len(data.open_domain_test_object)
    if not count:
        yield "DATASET.open_domain_test_object", "it must name one object or more."
    for name in ("open_domain_object_category_num", "open_domain_specific_defect_category"):
        if len(data[name]) not in (1, count):
            text = f"it must hold one number, or one per open_domain_test_object ({count})."
            yield f"DATASET.{name}", text
    if leads_out(cfg.DATASET.normal_folder):
        yield "DATASET.normal_folder", "it leads out of the data set; name a folder in it."
    name = cfg.RUN_NAME
    if name and (leads_out(name) or name[0] in "~$" or not PurePath(name).parts):
        yield "RUN_NAME", "it must name a folder below OUTPUT_DIR, without .., ~ or $."
    for key, value in leaves(cfg):
        if key.endswith(PATH_ENDINGS) and isinstance(value, str | list):
            for path in value if isinstance(value, list) else [value]:
                variable = re.search(r"\$(\{|[A-Za-z_])", path) and not Path(path).exists()
                if variable or path.startswith("~"):
                    yield key, f"{shown(path)} has an unknown user or variable; write the path out."
