"""Bounds, words and relations, each refused with key, value, source and remedy."""

from __future__ import annotations

import pytest

from method_config import get_defaults
from method_config.checks import BOUNDS, CHOICES
from method_config.values import get, leaves

DEFAULTS = dict(leaves(get_defaults()))
# What an error says -> numbers that are refused, numbers at the edge that are allowed.
EDGES = {
    "0 or more": ([-1], [0]),
    "1 or more": ([0], [1]),
    "more than 0": ([0.0, -1.0], [1e-9]),
    "from 0 to 1": ([-0.001, 1.001], [0, 1]),
    "between 0 and 1": ([0.0, 1.0], [0.001, 0.999]),
    "from 0 to 0.9": ([-0.001, 0.91], [0.0, 0.9]),
    "from 0 to 0.99": ([-0.001, 0.991], [0.0, 0.99]),
    "from 0 to 4294967295": ([-1, 2**32], [0, 2**32 - 1]),
    "from 1 to 1024": ([0, 1025], [1, 1024]),
    "from 0 to 1024": ([-1, 1025], [0, 1024]),
    "from 1 to 16384": ([0, 16385], []),
}


@pytest.mark.parametrize("words", BOUNDS)
def test_every_bound_is_kept(load, fault, words):
    refused, allowed = EDGES[words]
    for key in BOUNDS[words][1].split():
        several = isinstance(DEFAULTS[key], list)
        for number in refused:
            message = fault([], key, [number, number] if several else number)
            assert message.startswith(f"command line: {key} is ") and words in message
        for number in allowed:
            value = [number] if several else number
            if key == "DATASET.crop_ratio":
                value = [number, 1]
            assert get(load("TRAIN.SOFS.transformer_nums_heads", 1, key, value), key) == value


def test_every_number_has_a_bound():
    bounded = [key for _, keys in BOUNDS.values() for key in keys.split()]
    kinds = {k: type((v or [""])[0] if isinstance(v, list) else v) for k, v in DEFAULTS.items()}
    numbers = {key for key, kind in kinds.items() if kind in (int, float)}
    assert numbers - set(bounded) == {"DATASET.rotate_min", "DATASET.rotate_max"}


def test_every_word_loads_and_another_is_refused(load, fault):
    for key, options in CHOICES.items():
        assert [get(load(key, option), key) for option in options] == list(options)
        message = fault([], key, "other")
        assert f"{key} is 'other': it must be one of {', '.join(options)}." in message


REFUSED = [
    ("DATASET.image_size 520 DATASET.mask_size 520", "vit_patch_size = 14: 518 or 532."),
    ("DATASET.mask_size 532", "DATASET.mask_size is 532: it must equal DATASET.image_size = 518"),
    ("DATASET.crop_ratio [1.2,0.7]", "DATASET.crop_ratio is [1.2, 0.7]: it must be two numbers"),
    ("DATASET.rotate_min 11", "it must not exceed DATASET.rotate_max = 10.0"),
    ("TRAIN.SOFS.prior_layer_pointer [6,5]", "ascending"),
    ("TRAIN.SOFS.transformer_nums_heads 3", "transformer_embed_dim = 256: 1, 2, 4, 8, 16"),
    ("TRAIN.LOSS.dice_weight 0 TRAIN.LOSS.ce_weight 0", "TRAIN.LOSS.ce_weight is 0, too"),
    ("TRAIN.resume auto", "RUN_NAME is empty"),
    ("DATASET.normal_shot 1 TEST.protocol published", "set TEST.protocol to ours"),
    ("DATASET.support_windows True TEST.protocol published", "set TEST.protocol to ours"),
    ("TEST.normal_queries 1 TEST.protocol published", "set TEST.protocol to ours"),
    ("DATASET.grids [1,2] TEST.protocol published", "set TEST.protocol to ours"),
    ("TEST.refine True TEST.protocol published", "set TEST.protocol to ours"),
    *((f"DATASET.grids {grids}", "ascending") for grids in ("[]", "[2,1]", "[2,2]", "[0,1]")),
    ("DATASET.open_domain_test_object []", "one object or more"),
    ("DATASET.open_domain_object_category_num [1,2]", "one per open_domain_test_object (1)"),
    ("DATASET.train_objects [a,b] DATASET.test_objects [b,c]", "b is in DATASET.train_objects"),
    ("DATASET.train_objects [a,a]", "a stands there more than once"),
    ("DATASET.sub_datasets [a//b]", "'a//b' must be a plain name"),
    ("DATASET.open_domain_test_object [a/../..]", "'a/../..' leads out of the data set"),
    ("DATASET.normal_folder /good", "leads out of the data set"),
    ("RUN_NAME ../x", "RUN_NAME is '../x': it must name a folder below OUTPUT_DIR"),
    ("RUN_NAME ~/runs", "below OUTPUT_DIR"),
]


@pytest.mark.parametrize(("opts", "words"), REFUSED, ids=[opts for opts, _ in REFUSED])
def test_impossible_combinations_are_refused_with_the_remedy(fault, opts, words):
    message = fault([], *opts.split())
    assert words in message and message.startswith(("command line: ", "defaults: "))


def test_unusual_but_possible_values_load(load):
    for opts in (
        "TRAIN.SOFS.vit_patch_size 8 DATASET.image_size 384 DATASET.mask_size 384",
        "TRAIN_SETUPS.epochs 0 TRAIN_SETUPS.num_workers 0 TRAIN.LOSS.ce_weight 0",
        "DATASET.crop_ratio [1,1] DATASET.rotate_min 10 DATASET.open_domain_test_object [a,b]",
        "RUN_NAME a/..b DATASET.test_objects [a/b] DATASET.normal_folder ..a",
        "DATASET.grids [1,2,7]",
        "RUN_NAME x TRAIN.resume auto DATASET.normal_shot 1 TRAIN.backbone timm:x",
    ):
        load(*opts.split())


def test_all_faults_are_reported_at_once_each_with_its_source(write, fault):
    path = write("DATASET: {shot: 0}")
    first, second = fault(path, "TEST.protocol", "x").splitlines()
    assert first == f"{path}: DATASET.shot is 0: it must be 1 or more."
    assert second.startswith("command line: TEST.protocol is 'x'")
