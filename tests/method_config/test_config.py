from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import yaml
from yacs.config import CfgNode

from method_config import add_config_arguments, get_defaults, load_config
from method_config.defaults import PATHS
from method_config.values import get, leaves, nearest

ROOT = Path(__file__).resolve().parents[2]
PROTOCOLS = ROOT / "method_config" / "protocols"  # of tools.sweep, no configs
YAMLS = sorted(
    path for path in (ROOT / "method_config").glob("*/*.yaml") if path.parent != PROTOCOLS
)
PUBLISHED = Path(__file__).with_name("published.yaml")
LEAVES = dict(leaves(get_defaults()))

OURS = {
    "RUN_NAME", "DATASET.train_objects", "DATASET.test_objects", "TRAIN.extra_dataset_paths", "TRAIN.precision",
    "TRAIN.attention", "TRAIN.resume", "TRAIN.SOFS.prior_residual", "TEST.merge", "TEST.threshold", "TEST.baseline",
    "TEST.query_scale", "DATASET.normal_views", "TRAIN.LOSS.resolution", "TRAIN.SOFS.empty_supports",
    "TRAIN.backbone_sha256", "TRAIN.compile", "TEST.window_overlap", "TEST.memory_tokens", "TRAIN.feature_bank",
    "TEST.mirrored_supports", "DATASET.normal_shot", "DATASET.normal_folder", "TRAIN_SETUPS.TEST_SETUPS.val_share",
    "DATASET.max_pixels",
}  # fmt: skip


def nested(key: str, value: object) -> str:
    for part in reversed(key.split(".")):
        value = {part: value}
    return yaml.safe_dump(value)


# --- the published tree ------------------------------------------------------------------------------------------


def test_published_tree_loads_with_its_values_in_the_types_of_the_schema():
    cfg = load_config(PUBLISHED)
    assert cfg.TRAIN_SETUPS.learning_rate == 1e-5 and cfg.TRAIN.SOFS.smooth_r == 1e5
    assert cfg.DATASET.area_resize_ratio == 0.01 and cfg.TRAIN.LOSS.ce_weight == 0.01
    assert (cfg.DATASET.split, cfg.DEVICE, cfg.NUM_GPUS, cfg.OUTPUT_DIR) == (2, 3, 8, "./log_SOFS")
    assert cfg.DATASET.open_domain_test_object == [
        "severstal_steel"
    ] and cfg.DATASET.crop_ratio == [1.0, 1.0]
    assert cfg.DATASET.open_domain_object_category_num == [1]
    for key, value in leaves(cfg):
        assert type(value) is type(LEAVES[key]), key


def test_published_tree_and_our_keys_are_the_whole_schema():
    published = {key for key, _ in leaves(yaml.safe_load(PUBLISHED.read_text()))}
    assert published | OURS == set(LEAVES) and not published & OURS


def test_defaults_are_the_published_ones(load):
    cfg = load()
    assert (
        cfg.TRAIN.SOFS.prior_layer_pointer == [5, 6, 7, 8, 9, 10]
        and cfg.TRAIN.backbone == "dinov2_vitb14"
    )
    assert cfg.DATASET.crop_ratio == [0.7, 1.2] and (
        cfg.DATASET.rotate_min,
        cfg.DATASET.rotate_max,
    ) == (-10, 10)
    assert cfg.TRAIN_SETUPS.learning_rate == 1e-5 and cfg.TRAIN.SOFS.smooth_r == 1e5


def test_every_key_of_the_schema_has_a_comment():
    lines = (ROOT / "method_config" / "defaults.py").read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line.startswith("_C.") and "CfgNode()" not in line]
    assert len(keys) == len(LEAVES)
    assert [
        lines[i] for i in keys if "  # " not in lines[i] and not lines[i - 1].startswith("#")
    ] == []


# --- our YAML files ----------------------------------------------------------------------------------------------


def test_there_is_a_yaml_for_each_experiment():
    experiments = {
        "VISION_V1",
        "DS_Spectrum",
        "Open_Domain",
        "Demo",
        "Magnetic_Tile",
        "MVTec_AD",
        "VisA",
    }
    assert {path.parent.name for path in YAMLS} == experiments


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.parent.name)
def test_our_yamls_load_and_their_dump_loads_to_the_same_tree(path, write):
    cfg = load_config(path, ["RUN_NAME", "007", "TRAIN_SETUPS.learning_rate", "1e-7"])
    assert load_config(write(cfg.dump())) == cfg


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.parent.name)
def test_our_yamls_use_one_data_root_and_only_existing_keys(path):
    cfg = load_config(path)
    assert cfg.TRAIN.dataset_path == cfg.TEST.dataset_path
    assert {key for key, _ in leaves(yaml.safe_load(path.read_text()))} <= set(LEAVES)


def test_vision_v1_yaml_is_the_published_run():
    ours = dict(leaves(load_config(ROOT / "method_config/VISION_V1/SOFS.yaml")))
    published = dict(leaves(load_config(PUBLISHED)))
    machine = {
        "NUM_GPUS",
        "DEVICE",
        "OUTPUT_DIR",
        "DATASET.vision_data_save_path",
        "TRAIN.backbone_checkpoint",
    }
    machine |= {
        "TRAIN.dataset_path",
        "TEST.dataset_path",
        "TEST.load_checkpoint",
        "TEST.load_model_path",
    }
    differ = {key for key in ours if ours[key] != published[key]}
    assert differ - machine == {
        "DATASET.split", "TRAIN.SOFS.smooth_r", "DATASET.unified_mask_size", "TRAIN.save_model",
    }  # fmt: skip
    assert (
        ours["DATASET.split"],
        ours["TRAIN.SOFS.smooth_r"],
        ours["DATASET.area_resize_ratio"],
    ) == (0, 1.0, 0.01)


# --- merging -----------------------------------------------------------------------------------------------------


def test_later_files_and_then_opts_win(write):
    one = write("DATASET: {shot: 2, s_in_shot: 2}\nRNG_SEED: 1", "one.yaml")
    two = write("DATASET: {shot: 3}\nRNG_SEED: 2", "two.yaml")
    cfg = load_config([one, str(two)], ["RNG_SEED", "3"])
    assert (cfg.DATASET.shot, cfg.DATASET.s_in_shot, cfg.RNG_SEED) == (3, 2, 3)
    assert load_config([two, one]).DATASET.shot == 2


def test_result_is_frozen_and_the_defaults_stay(load):
    cfg = load("DATASET.train_objects", "[a]", "DATASET.shot", "5")
    assert isinstance(cfg, CfgNode) and cfg.is_frozen()
    with pytest.raises(AttributeError):
        cfg.DATASET.shot = 2
    cfg.DATASET.train_objects.append("b")
    assert dict(leaves(get_defaults())) == LEAVES and load().DATASET.train_objects == []


@pytest.mark.parametrize(
    "text", ["", "# nothing", "TRAIN:", "TRAIN: {}", "TRAIN:\n  SOFS:\n  LOSS: {}", "RUN_NAME:"]
)
def test_empty_files_sections_and_strings_change_nothing(write, text):
    assert load_config(write(text)) == get_defaults()


def test_dotted_keys_in_yaml_mean_the_same_as_nested_ones(write):
    dotted = load_config(write("TRAIN.SOFS.smooth_r: 2"))
    assert dotted.TRAIN.SOFS.smooth_r == 2.0
    assert dotted == load_config(write("TRAIN: {SOFS: {smooth_r: 2}}"))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("TRAIN_SETUPS.learning_rate", "1e-5", 1e-5),
        ("TRAIN_SETUPS.learning_rate", "1", 1.0),
        ("DATASET.rotate_min", "-10", -10.0),
        ("DATASET.rotate_min", "-1e1", -10.0),
        ("TRAIN_SETUPS.epochs", "3.0", 3),
        ("TRAIN_SETUPS.epochs", "1e2", 100),
        ("RUN_NAME", "007", "007"),
        ("RUN_NAME", "True", "True"),
        ("RUN_NAME", "1e5", "1e5"),
        ("RUN_NAME", "[a", "[a"),
        ("RUN_NAME", "", ""),
        ("TEST.baseline", "False", False),
        ("TEST.baseline", "true", True),
        ("DATASET.crop_ratio", "[1, 1e0]", [1.0, 1.0]),
        ("DATASET.crop_ratio", "(0.5, 2)", [0.5, 2.0]),
        ("TRAIN.SOFS.prior_layer_pointer", "[3]", [3]),
        ("TRAIN.SOFS.prior_layer_pointer", "3", [3]),
        ("DATASET.train_objects", "Ring", ["Ring"]),
        ("DATASET.train_objects", "[Ring, 007]", ["Ring", "007"]),
        ("DATASET.train_objects", "[]", []),
        ("DATASET.train_objects", "", []),
    ],
)
def test_opts_are_decoded_to_the_type_of_the_key(load, key, text, value):
    decoded = get(load(key, text), key)
    assert decoded == value and type(decoded) is type(value)
    if isinstance(value, list):
        assert [type(x) for x in decoded] == [type(x) for x in value]


def test_opts_take_python_values_too(load):
    cfg = load(
        "DATASET.crop_ratio", (0.5, 1), "TRAIN_SETUPS.epochs", 3, "DATASET.test_objects", ("a",)
    )
    assert (
        cfg.DATASET.crop_ratio == [0.5, 1.0]
        and cfg.TRAIN_SETUPS.epochs == 3
        and cfg.DATASET.test_objects == ["a"]
    )


def test_nothing_is_evaluated(load, fault):
    for key in (
        "TRAIN_SETUPS.epochs",
        "TRAIN.SOFS.prior_layer_pointer",
        "TRAIN_SETUPS.learning_rate",
    ):
        for text in ("1+1", "__import__('os').getpid()", "!!python/object/apply:os.getpid []"):
            assert key in fault(load, key, text)


def test_default_values_survive_the_way_through_opts(load):
    for key, value in LEAVES.items():
        assert get(load(key, value if isinstance(value, str) else repr(value)), key) == value, key


def test_odd_opts_name_the_lonely_one(load, fault):
    assert "'DATASET.shot'" in fault(load, "RNG_SEED", "1", "DATASET.shot")


def test_arguments_of_the_entry_points():
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    args = parser.parse_args(
        ["--opts", "DATASET.rotate_min", "-5", "--cfg", "a.yaml", "b.yaml", "--cfg", "c.yaml"]
    )
    assert args.cfg == ["a.yaml", "b.yaml", "c.yaml"] and args.opts == ["DATASET.rotate_min", "-5"]
    assert parser.parse_args(["--cfg", "a"]).opts == []
    with pytest.raises(SystemExit):
        parser.parse_args([])


@pytest.mark.parametrize(
    ("text", "value"), [("auto", "auto"), ("0.4", 0.4), ("1", 1.0), ("0", 0.0), ("1e-3", 0.001)]
)
def test_the_threshold_is_a_number_or_auto(text, value, write, load):
    for cfg in (load("TEST.threshold", text), load_config(write(f"TEST: {{threshold: {text}}}"))):
        assert cfg.TEST.threshold == value and type(cfg.TEST.threshold) is type(value)
        assert load_config(write(cfg.dump())) == cfg
    assert load("TEST.threshold", value).TEST.threshold == value, (
        "as the lists of opts in code give it"
    )


@pytest.mark.parametrize(
    "text", ["automatic", "Auto", "", "[auto]", "true", "0.5 0.6", "-", ".nan"]
)
def test_other_words_for_the_threshold_are_refused(text, write, load, fault):
    for message in (
        fault(load, "TEST.threshold", text),
        fault(load_config, write(f"TEST: {{threshold: {text}}}")),
    ):
        assert "TEST.threshold is " in message and "a finite number, or auto" in message


@pytest.mark.parametrize("text", ["1.5", "-0.1"])
def test_a_threshold_outside_of_the_scores_is_refused(text, write, load, fault):
    for message in (
        fault(load, "TEST.threshold", text),
        fault(load_config, write(f"TEST: {{threshold: {text}}}")),
    ):
        assert "TEST.threshold is " in message and "from 0 to 1" in message


@pytest.mark.parametrize(
    "key", ["TEST.window_overlap", "DATASET.shot", "TRAIN_SETUPS.TEST_SETUPS.val_share"]
)
def test_auto_is_for_no_other_number(key, write, load, fault):
    for message in (fault(load, key, "auto"), fault(load_config, write(nested(key, "auto")))):
        assert f"{key} is 'auto'" in message and "or auto" not in message


# --- files that do not load --------------------------------------------------------------------------------------


def test_faulty_files_are_named(write, tmp_path, fault):
    assert "absent.yaml" in fault(load_config, tmp_path / "absent.yaml")
    assert str(tmp_path) in fault(load_config, tmp_path)
    for text in ("a: [", "- 1\n- 2", "just text", "x: !!python/object/apply:os.getpid []"):
        assert "bad.yaml" in fault(load_config, write(text, "bad.yaml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x80\x81\xff\x00")
    assert "binary.yaml" in fault(load_config, binary)


# --- unknown keys ------------------------------------------------------------------------------------------------


def misspellings(key: str):
    """Of the last part: one letter dropped, doubled, replaced, at the end and in the middle."""
    section, dot, name = key.rpartition(".")
    for i in {len(name) // 2, len(name) - 1}:
        for word in (
            name[:i] + name[i + 1 :],
            name[:i] + name[i] + name[i:],
            name[:i] + "q" + name[i + 1 :],
        ):
            if section + dot + word not in LEAVES:
                yield section + dot + word


@pytest.mark.parametrize("key", LEAVES)
def test_a_misspelt_key_is_refused_naming_file_and_original(key, write, load, fault):
    for wrong in misspellings(key):
        in_file, in_opts = (
            fault(load_config, write(nested(wrong, LEAVES[key]))),
            fault(load, wrong, "1"),
        )
        assert f"my.yaml: unknown key {wrong}. Did you mean {key}?" in in_file
        assert in_opts == f"command line: unknown key {wrong}. Did you mean {key}?"


NAMES = [key.split(".")[-1] for key in LEAVES]


@pytest.mark.parametrize("key", [key for key in LEAVES if NAMES.count(key.split(".")[-1]) == 1])
def test_a_right_key_in_a_wrong_section_is_found(key, write, fault):
    name = key.split(".")[-1]
    for section in ("", "DATASET.", "TRAIN_SETUPS.TEST_SETUPS.", "TEST."):
        if section + name not in LEAVES:
            assert f"Did you mean {key}?" in fault(load_config, write(nested(section + name, 1)))


def test_misspelt_section(write, fault):
    assert "Did you mean DATASET.shot?" in fault(load_config, write("DATASETS: {shot: 1}"))
    assert "Did you mean TRAIN.SOFS.smooth_r?" in fault(
        load_config, write("TRAIN: {SOF: {smooth_r: 1}}")
    )


def test_no_suggestion_for_a_key_like_nothing(load, fault):
    message = fault(load, "XYZZY", "1")
    assert "XYZZY" in message and "Did you mean" not in message and "defaults.py" in message
    assert nearest("XYZZY", LEAVES) is None


# --- wrong types -------------------------------------------------------------------------------------------------

WRONG = {
    bool: ["yes please", 1, 0.5, None, [True]],
    int: ["abc", True, 1.5, "4", None, [1], float("inf"), float("nan")],
    float: ["abc", True, "0.5", None, [0.5], float("inf"), float("nan")],
    str: [1, True, 0.5, ["a"]],
}


def wrong_values(default: object) -> list:
    if isinstance(default, list):
        element = type(default[0]) if default else str
        return [[value] for value in WRONG[element] if value is not None] + [
            True if element is not bool else 1
        ]
    return WRONG[type(default)]


@pytest.mark.parametrize("key", LEAVES)
def test_a_wrong_type_is_refused_naming_key_value_file_and_type(key, write, fault):
    for value in wrong_values(LEAVES[key]):
        message = fault(load_config, write(nested(key, value)))
        assert message.startswith(str(write(""))) and f"{key} is " in message and "takes" in message
        assert repr(value) in message
    assert key in fault(load_config, write(nested(key, {"a": 1})))
    assert key in fault(load_config, write(nested(key, {})))


def test_a_bad_value_in_opts_names_the_key(load, fault):
    for key, value in (
        ("TRAIN_SETUPS.epochs", "abc"),
        ("TEST.baseline", "[a"),
        ("DATASET.crop_ratio", "[1, b]"),
    ):
        message = fault(load, key, value)
        assert key in message and "command line" in message and "takes" in message


def test_a_value_for_a_section_names_its_keys(write, load, fault):
    for message in (fault(load_config, write("TRAIN: {LOSS: 3}")), fault(load, "TRAIN.LOSS", "3")):
        assert "TRAIN.LOSS" in message and "dice_weight, ce_weight" in message


def test_home_and_variables_are_written_out_in_every_key_that_is_a_path(
    load, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/data")
    expected = {"~": str(tmp_path), "~/a b": f"{tmp_path}/a b", "~root/x": "/root/x", "$DATA/x": "/data/x",
                "${DATA}x": "/datax", "x/~": "x/~", "./x": "./x", "": ""}  # fmt: skip
    for key in PATHS:
        for given, path in expected.items():
            value = get(load(key, [given] if key.endswith("paths") else given), key)
            assert value == ([path] if key.endswith("paths") else path)


def test_keys_that_name_paths_are_known_as_such():
    endings = ("_path", "_paths", "_DIR", "_checkpoint", "resume")
    assert set(PATHS) == {
        key
        for key, value in LEAVES.items()
        if key.endswith(endings) and not isinstance(value, bool)
    }


@pytest.mark.parametrize(
    "path",
    [
        "~nobody_of_that_name/x",
        "$NO_SUCH_VARIABLE/x",
        "${NO_SUCH_VARIABLE}",
        "/x/$NO_SUCH_VARIABLE/y",
    ],
)
def test_a_user_or_variable_that_is_not_there_is_refused(load, fault, path):
    for key in PATHS:
        assert f"{key} is " in fault(load, key, path) and "write the path out" in fault(
            load, key, path
        )
    assert "RUN_NAME" in fault(load, "RUN_NAME", "~/runs")
