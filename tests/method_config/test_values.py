"""Reading, converting and merging; `load_config` and the arguments of the entry points."""

from __future__ import annotations

import argparse
from itertools import chain

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from method_config import add_config_arguments, get_defaults, load_config
from method_config.defaults import PATH_ENDINGS
from method_config.values import SCHEMA, get, hint, leaves
from utils.errors import ConfigError

DEFAULTS = dict(leaves(get_defaults()))


def nested(key, value):
    for part in reversed(key.split(".")):
        value = {part: value}
    return yaml.safe_dump(value)


def test_later_files_and_then_opts_win(write):
    one = write("DATASET: {shot: 2, s_in_shot: 2}\nRNG_SEED: 1", "one.yaml")
    two = write("DATASET.shot: 3\nDATASET: {<<: &a {crop_size: 28}}\nRNG_SEED: 2", "two.yaml")
    cfg = load_config([one, str(two)], ["RNG_SEED", "3"])
    data = cfg.DATASET
    assert (data.shot, data.s_in_shot, data.crop_size, cfg.RNG_SEED) == (3, 2, 28, 3)
    assert load_config([two, one]).DATASET.shot == 2


def test_the_result_is_frozen_and_the_defaults_stay(load):
    cfg = load("DATASET.train_objects", "[a]", "DATASET.shot", "5")
    with pytest.raises(AttributeError):
        cfg.DATASET.shot = 2
    cfg.DATASET.train_objects.append("b")
    assert load() == get_defaults() and load().DATASET.train_objects == []


@pytest.mark.parametrize("text", ["", "# nothing", "TRAIN:\n  SOFS:\n  LOSS: {}", "RUN_NAME:"])
def test_empty_files_sections_and_strings_change_nothing(write, text):
    assert load_config(write(text)) == get_defaults()


def test_text_takes_the_type_of_its_key(load):
    for key, text, value in (
        ("TRAIN_SETUPS.learning_rate", "1e-5", 1e-5),
        ("DATASET.rotate_min", "-10", -10.0),
        ("TRAIN_SETUPS.epochs", "1e2", 100),
        ("RUN_NAME", "007", "007"),
        ("RUN_NAME", "[a", "[a"),
        ("TEST.baseline", "false", False),
        ("DATASET.crop_ratio", "(1, 1e0)", [1.0, 1.0]),
        ("DATASET.train_objects", "Ring", ["Ring"]),
        ("DATASET.train_objects", "[Ring, 007]", ["Ring", "007"]),
        ("DATASET.train_objects", "", []),
        ("TEST.threshold", "auto", "auto"),
        ("TEST.threshold", "1", 1.0),
    ):
        assert repr(get(load(key, text), key)) == repr(value)


KINDS = {
    "RNG_SEED": st.integers(0, 2**32 - 1),
    "TRAIN.SOFS.smooth_r": st.floats(1e-300, 1e300),
    "TEST.threshold": st.just("auto") | st.floats(0, 1),
    "DATASET.crop_ratio": st.lists(st.floats(0.01, 9), min_size=2, max_size=2).map(sorted),
    "TEST.baseline": st.booleans(),
    "TRAIN.backbone_sha256": st.text(st.characters(codec="utf-8"), max_size=9),
    "DATASET.train_objects": st.lists(st.from_regex(r"\w{1,6}", fullmatch=True), unique=True),
}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(KINDS)).flatmap(lambda key: st.tuples(st.just(key), KINDS[key])))
def test_every_value_loads_again_from_opts_and_from_its_dump(pair):
    key, value = pair
    cfg = load_config([], [key, value])
    assert get(cfg, key) == value
    if not isinstance(value, str):
        text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else repr(value)
        assert load_config([], [key, text]) == cfg
    assert load_config([], [*chain(*leaves(yaml.safe_load(cfg.dump())))]) == cfg


WRONG = {
    "TEST.baseline": ["yes please", 1, None, [True]],
    "RNG_SEED": ["1+1", "!!python/object/apply:os.getpid []", True, 1.5, None, [1], 10**400, {}],
    "TRAIN.SOFS.smooth_r": ["abc", True, None, [0.5], float("nan"), {"a": 1}],
    "TEST.threshold": ["automatic", "", "[auto]", ".nan"],
    "TEST.window_overlap": ["auto"],
    "RUN_NAME": [1, True, 0.5, ["a"]],
    "DATASET.crop_ratio": [["a", 1], [True], [[1]], {"a": 1}, "[a"],
    "DATASET.train_objects": [[1], {"a": 1}],
    "TRAIN.LOSS": [3, "a"],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_type_is_refused_naming_source_key_value_and_type(key, write, fault):
    """Text is not evaluated; a section takes no value."""
    for value in WRONG[key]:
        path = write(nested(key, value))
        message = fault(path)
        assert message.startswith(f"{path}: ") and key in message
        if not isinstance(value, dict):
            assert f"{key} is {value!r}"[:150] in message
            assert message.endswith("or auto.") == (key == "TEST.threshold")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("RNG_SEED: 1\nRNG_SEED: 2", "'RNG_SEED' is given twice; keep one"),
        ("TRAIN: {SOFS: {smooth_r: 1,\n smooth_r: 2}}", "line 2"),
        ("DATASET: {", "not a valid YAML file"),
        ("x: !!python/object/apply:os.getpid []", "not a valid YAML file"),
        ("- a", "must map keys to values"),
    ],
)
def test_faulty_yaml_is_refused_naming_the_file(write, fault, text, words):
    path = write(text)
    assert (message := fault(path)).startswith(str(path)) and words in message


def test_missing_and_binary_files_and_opts_without_a_value_are_named(tmp_path, fault):
    assert "absent.yaml: cannot be read (No such file" in fault(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\x80\xff")
    assert "binary.yaml: not a valid YAML file" in fault(tmp_path / "binary.yaml")
    assert "'DATASET.shot' stands alone" in fault([], "RNG_SEED", "1", "DATASET.shot")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_misspelt_key_is_refused_naming_the_original(data):
    key = data.draw(st.sampled_from(sorted(DEFAULTS)))
    place = data.draw(st.integers(key.rfind(".") + 1, len(key) - 1))
    wrong = key[:place] + data.draw(st.sampled_from(["", "q", key[place] * 2])) + key[place + 1 :]
    if wrong not in SCHEMA:
        with pytest.raises(ConfigError, match=f"command line: unknown key {wrong}. ") as error:
            load_config([], [wrong, "1"])
        assert f"Did you mean {key}?" in str(error.value)


def test_a_key_of_another_section_is_found(write, fault):
    message = fault(write("DATASETS: {shot: 1}"))
    assert "my.yaml: unknown key DATASETS.shot. Did you mean DATASET.shot?" in message
    assert "Did you mean TRAIN.SOFS.smooth_r?" in fault(write("smooth_r: 1"))
    assert "docs/configuration.md lists all keys" in fault([], "XYZZY", "1")
    assert hint("vision_v1_nd", ["mvtec", "VISION_V1_ND"], "") == "Did you mean VISION_V1_ND?"


def test_home_and_variables_are_written_out_in_every_key_of_a_path(load, fault, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    expected = {"~/a b": "/home/me/a b", "./x/~": "./x/~", "${DATA}x": "/datax", "": ""}
    keys = [k for k, v in DEFAULTS.items() if k.endswith(PATH_ENDINGS) and v not in (True, False)]
    assert len(keys) == 11
    for key in keys:
        several = isinstance(DEFAULTS[key], list)
        for text, path in expected.items():
            value = get(load(key, [text] if several else text, "TEST.runtime", "auto"), key)
            assert value == ([path] if several else path)
        for text in ("~nobody_of_that_name/x", "/x/$NO_SUCH_VARIABLE/y"):
            assert "unknown user or variable" in fault([], key, text)


def test_arguments_of_the_entry_points():
    parser = argparse.ArgumentParser()
    add_config_arguments(parser)
    words = "--opts DATASET.rotate_min -5 --cfg a.yaml b.yaml --cfg c.yaml"
    args = parser.parse_args(words.split())
    assert args.cfg == ["a.yaml", "b.yaml", "c.yaml"] and args.opts == ["DATASET.rotate_min", "-5"]
    assert parser.parse_args(["--cfg", "a"]).opts == []
