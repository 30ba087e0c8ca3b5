"""The tree, the published YAML file, our YAML files, and the page that is made from the tree."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from method_config import get_defaults, load_config
from method_config.__main__ import PAGE, page
from method_config.published import REPLACED, WITHOUT_EFFECT
from method_config.values import leaves

CONFIGS = Path(__file__).parents[2] / "method_config"
YAMLS = sorted(p for p in CONFIGS.glob("*/*.yaml") if p.parent.name != "protocols")
PUBLISHED = Path(__file__).with_name("published.yaml")
DEFAULTS = dict(leaves(get_defaults()))


def test_the_published_tree_loads_in_the_types_of_the_schema():
    """Its keys are those of the tree that are not ours, and the tolerated ones."""
    cfg = load_config(PUBLISHED)
    assert cfg.TRAIN_SETUPS.learning_rate == 1e-5 and cfg.TRAIN.SOFS.smooth_r == 1e5
    assert (cfg.DATASET.split, cfg.DEVICE, cfg.NUM_GPUS, cfg.OUTPUT_DIR) == (2, 3, 8, "./log_SOFS")
    assert cfg.DATASET.open_domain_test_object == ["severstal_steel"]
    assert cfg.DATASET.crop_ratio == [1.0, 1.0]
    assert {k: type(v) for k, v in leaves(cfg)} == {k: type(v) for k, v in DEFAULTS.items()}
    published = {key for key, _ in leaves(yaml.safe_load(PUBLISHED.read_text()))}
    rows = [row.split(" | ") for row in PAGE.read_text().splitlines() if row.startswith("| `")]
    ours = {key.strip("|` ") for key, _, meaning in rows if meaning.startswith("*ours*")}
    assert published == (set(DEFAULTS) - ours) | set(WITHOUT_EFFECT)


def test_keys_without_effect_have_a_type_and_replaced_ones_lead_to_the_new_one(load, fault):
    for key, value in WITHOUT_EFFECT.items():
        assert load(key, value) == load(key, str(value)) == load()
        assert f"{key} is 'x y', but it takes" in fault([], key, "x y")
    for key in REPLACED:
        assert f"unknown key {key}. TEST.protocol" in fault([], key, "reference")


def test_the_page_is_what_the_tree_gives_and_shows_the_defaults(load):
    text = PAGE.read_text()
    assert page(text) == text, "run python -m method_config"
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    pairs = dict(row.split("`")[1:4:2] for row in rows)
    assert sorted(pairs) == sorted(DEFAULTS | WITHOUT_EFFECT)
    assert all(len(row.split(" | ")[2].strip(" |")) > 9 for row in rows), "a key has no comment"
    assert load(*(part.strip('"') for pair in pairs.items() for part in pair)) == load()


@pytest.mark.parametrize("path", [*YAMLS, PUBLISHED], ids=lambda path: path.parent.name)
def test_a_dump_loads_to_an_equal_tree(path, write):
    cfg = load_config(path, ["RUN_NAME", "007", "TRAIN_SETUPS.learning_rate", "1e-7"])
    assert load_config(write(cfg.dump())) == cfg
    assert cfg.TEST.dataset_path in (cfg.TRAIN.dataset_path, *cfg.TRAIN.extra_dataset_paths)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.parent.name)
def test_our_configs_run_at_full_speed_on_any_machine(path):
    """A CPU without instructions for half precision imitates it, twenty times as slowly."""
    assert load_config(path).TRAIN.precision in ("auto", "fp32")


def test_vision_v1_yaml_is_the_published_run():
    ours = dict(leaves(load_config(CONFIGS / "VISION_V1" / "SOFS.yaml")))
    published = dict(leaves(load_config(PUBLISHED)))
    machine = """
        NUM_GPUS DEVICE OUTPUT_DIR DATASET.vision_data_save_path TRAIN.backbone_checkpoint
        TRAIN.dataset_path TEST.dataset_path TEST.load_checkpoint TEST.load_model_path
    """
    differ = {key for key in ours if ours[key] != published[key]} - set(machine.split())
    assert differ == {"DATASET.split", "TRAIN.SOFS.smooth_r", "TRAIN.save_model"}
    assert ours["DATASET.split"] == 0 and ours["TRAIN.SOFS.smooth_r"] == 1.0
