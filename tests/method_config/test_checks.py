from __future__ import annotations

import pytest

from method_config import check_config, get_defaults, load_config
from method_config.checks import BOUNDS, CHOICES
from method_config.values import get, leaves

LEAVES = dict(leaves(get_defaults()))
NUMBERS = [
    key
    for key, value in LEAVES.items()
    if isinstance(value, int | float) and not isinstance(value, bool)
]
SMALL = ["TRAIN.backbone", "efficientnet_lite0", "TRAIN.SOFS.prior_layer_pointer", "[1, 2]"]
OPEN = ["DATASET.name", "opendomain_test_dataset_ND"]
IMPOSSIBLE = [
    (
        ["DATASET.image_size", "520", "DATASET.mask_size", "520"],
        ["DATASET.image_size is 520", "518 or 532"],
    ),
    (["DATASET.image_size", "9", "DATASET.mask_size", "9"], ["DATASET.image_size", "= 14: 14."]),
    (["DATASET.mask_size", "532"], ["DATASET.mask_size is 532", "518"]),
    (["DATASET.image_size", "532"], ["DATASET.mask_size is 518", "532"]),
    (
        ["TRAIN.SOFS.vit_patch_size", "7"],
        ["TRAIN.SOFS.vit_patch_size is 7", "dinov2_vitb14 are 14"],
    ),
    (["DATASET.split", "3"], ["DATASET.split is 3", "VISION_V1_ND", "0 to 2", "train_objects"]),
    (["DATASET.split", "-1"], ["DATASET.split is -1"]),
    (["DATASET.split", "3", "DATASET.test_objects", "a"], ["DATASET.split is 3"]),
    (
        ["DATASET.name", "VISION_V1_NC"],
        ["DATASET.name", "Did you mean VISION_V1_ND?", "DS_Spectrum_DS"],
    ),
    (
        ["TRAIN.backbone", "dinov2_vitb16"],
        ["TRAIN.backbone", "Did you mean dinov2_vitb14?", "timm:NAME"],
    ),
    (["TRAIN.backbone", "timm:"], ["TRAIN.backbone", "timm:NAME"]),
    (["TRAIN.method", "HSNet"], ["TRAIN.method", "SOFS"]),
    (["TEST.merge", "probabilty"], ["TEST.merge", "Did you mean probability?"]),
    (["TRAIN.precision", "fp61"], ["TRAIN.precision", "Did you mean fp16?"]),
    (["DATASET.crop_ratio", "[1.2, 0.7]"], ["DATASET.crop_ratio is [1.2, 0.7]", "lower first"]),
    (["DATASET.crop_ratio", "[0, 1]"], ["DATASET.crop_ratio", "more than 0"]),
    (["DATASET.crop_ratio", "1"], ["DATASET.crop_ratio", "two numbers"]),
    (["DATASET.rotate_min", "11"], ["DATASET.rotate_min is 11.0", "DATASET.rotate_max = 10.0"]),
    (
        ["TRAIN.SOFS.transformer_nums_heads", "3"],
        ["TRAIN.SOFS.transformer_nums_heads is 3", "256", "2, 4, 8"],
    ),
    (
        ["TRAIN.SOFS.prior_layer_pointer", "[]"],
        ["TRAIN.SOFS.prior_layer_pointer", "one layer or more"],
    ),
    (["TRAIN.SOFS.prior_layer_pointer", "[5, 5]"], ["TRAIN.SOFS.prior_layer_pointer", "each once"]),
    (["TRAIN.SOFS.prior_layer_pointer", "[6, 5]"], ["TRAIN.SOFS.prior_layer_pointer", "ascending"]),
    (
        ["TRAIN.SOFS.prior_layer_pointer", "[12]"],
        ["TRAIN.SOFS.prior_layer_pointer", "dinov2_vitb14 are 0 to 11"],
    ),
    (["TRAIN.backbone", "resnet50"], ["TRAIN.SOFS.prior_layer_pointer", "resnet50 are 0 to 4"]),
    (
        ["DATASET.train_objects", "[a, b]", "DATASET.test_objects", "[b, c]"],
        ["DATASET.test_objects", ": b is in"],
    ),
    (
        ["DATASET.train_objects", "[a, a]"],
        ["DATASET.train_objects", "a stands there more than once"],
    ),
    (["DATASET.train_objects", "[a, '']"], ["DATASET.train_objects", "empty"]),
    (
        ["TRAIN.LOSS.dice_weight", "0", "TRAIN.LOSS.ce_weight", "0"],
        ["TRAIN.LOSS.dice_weight", "TRAIN.LOSS.ce_weight"],
    ),
    (
        [*OPEN, "DATASET.open_domain_test_object", "[]"],
        ["DATASET.open_domain_test_object", "one object"],
    ),
    (
        [*OPEN, "DATASET.open_domain_object_category_num", "[1, 2]"],
        ["open_domain_object_category_num", "one number"],
    ),
]


@pytest.mark.parametrize(("opts", "words"), IMPOSSIBLE, ids=lambda x: " ".join(x))
def test_impossible_values_are_refused_with_the_remedy(load, opts, words, fault):
    message = fault(load, *opts)
    assert [word for word in words if word not in message] == []


BELOW = {  # the largest value that is out of bounds below
    "more than 0": 0.0, "0 or more": -1, "1 or more": 0, "from 0 to 1": -0.001, "from 0 to 4294967295": -1,
    "from 0 to 0.9": -0.001, "between 0 and 1": 0.0, "from 1 to 1024": 0, "from 0 to 1024": -1, "from 1 to 16384": 0,
}  # fmt: skip


@pytest.mark.parametrize("key", BOUNDS)
def test_every_bound_is_kept(load, key, fault):
    value = BELOW[BOUNDS[key].words]
    message = fault(load, key, [value] if isinstance(LEAVES[key], list) else value)
    assert message.startswith(f"command line: {key} is ") and BOUNDS[key].words in message
    if BOUNDS[key].words == "from 0 to 1":
        assert key in fault(load, key, 1.001)
        assert get(load(key, 0), key) == 0 and get(load(key, 1), key) == 1
    if (most := BOUNDS[key].words.rpartition(" to ")[2]).isdigit():
        assert key in fault(load, key, int(most) + 1)


def test_every_number_is_bounded_or_known_to_be_free():
    free = {"DATASET.split", "DATASET.rotate_min", "DATASET.rotate_max"}  # by relations
    free |= {
        "DATASET.unified_mask_size",
        "TRAIN_SETUPS.optimizer_momentum",
        "TEST.semantic_threshold",
    }  # no effect
    assert set(NUMBERS) - set(BOUNDS) == free


@pytest.mark.parametrize(
    ("key", "option"), [(key, option) for key, options in CHOICES.items() for option in options]
)
def test_every_choice_loads_and_its_misspelling_is_refused(load, key, option, fault):
    layers = ["TRAIN.SOFS.prior_layer_pointer", "[1, 4]"]
    assert get(load(key, option, *layers), key) == option
    assert key in fault(load, key, option + "?", *layers)


@pytest.mark.parametrize(
    ("backbone", "last"),
    [
        ("dinov2_vits14", 11), ("dinov2_vitb14_reg", 11), ("dinov2_vitl14", 23), ("dinov2_vitg14_reg", 39),
        ("resnet50", 4), ("wideresnet50", 4), ("efficientnet_lite0", 4),
    ],
)  # fmt: skip
def test_layers_reach_to_the_last_block_of_the_backbone(load, backbone, last, fault):
    key = "TRAIN.SOFS.prior_layer_pointer"
    assert get(load("TRAIN.backbone", backbone, key, f"[0, {last}]"), key) == [0, last]
    assert f"0 to {last}." in fault(load, "TRAIN.backbone", backbone, key, f"[0, {last + 1}]")


@pytest.mark.parametrize(
    "opts",
    [
        ["DATASET.split", "7", "DATASET.train_objects", "[a]", "DATASET.test_objects", "[b]"],
        ["DATASET.split", "7", "DATASET.name", "opendomain_test_dataset_ND"],
        ["TRAIN.backbone", "timm:vit_tiny_patch16_224", "TRAIN.SOFS.prior_layer_pointer", "[80]"],
        ["DATASET.image_size", "532", "DATASET.mask_size", "532", "DATASET.crop_size", "100"],
        [
            *SMALL,
            "TRAIN.SOFS.vit_patch_size",
            "8",
            "DATASET.image_size",
            "384",
            "DATASET.mask_size",
            "384",
        ],
        ["TRAIN_SETUPS.epochs", "0", "TRAIN_SETUPS.num_workers", "0", "TRAIN.LOSS.ce_weight", "0"],
        ["DATASET.crop_ratio", "[1, 1]", "DATASET.rotate_min", "10"],
        ["DATASET.open_domain_test_object", "[a, b]", "DATASET.name", "opendomain_test_dataset_ND"],
    ],
    ids=" ".join,
)
def test_unusual_but_possible_values_load(load, opts):
    load(*opts)


def test_all_faults_are_told_at_once_each_with_its_source(write, fault):
    path = write("DATASET: {shot: 0}")
    message = fault(load_config, path, ["TEST.merge", "x"])
    assert message.splitlines()[0].startswith(f"{path}: DATASET.shot is 0")
    assert message.splitlines()[1].startswith("command line: TEST.merge is 'x'")


def test_check_config_judges_a_tree_built_by_hand(fault):
    cfg = get_defaults()
    check_config(cfg)
    cfg.DATASET.shots = 2
    assert "Did you mean DATASET.shot?" in fault(check_config, cfg)
    del cfg.DATASET["shots"]
    cfg.DATASET.shot = "two"
    assert "DATASET.shot is 'two'" in fault(check_config, cfg)
    cfg.DATASET.shot = 0
    assert "DATASET.shot is 0" in fault(check_config, cfg)
