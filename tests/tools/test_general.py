"""The heads that ship: what they were trained on, and that they find what they have not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from datasets.demo import wanted_shares
from datasets.demo.products import PRODUCTS
from datasets.demo.render import render
from method_config import load_config
from models.build import build_model
from tools.checkpoint import load_head
from tools.predictor import Predictor

ROOT = Path(__file__).parents[2]
GENERAL = ROOT / "method_config" / "General"
LICENSED = {"PCB", "Solar_Cell", "Leather_Hide", "Fabric_Woven", "Metal_Micrograph", "Concrete"}


def about(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("name", ["SOFS", "Lite"])
def test_a_head_ships_with_its_config_and_saw_only_what_it_may(name):
    path = GENERAL / f"{name}.safetensors"
    trained, cfg = yaml.safe_load(about(path)["config"]), load_config(GENERAL / f"{name}.yaml")
    seen = set(trained["DATASET"]["train_objects"])
    demo = load_config(ROOT / "method_config" / "Demo" / "SOFS.yaml").DATASET
    assert seen == LICENSED | set(demo.train_objects) and not seen & set(demo.test_objects)
    card = (ROOT / "docs" / "general.md").read_text(encoding="utf-8")
    assert all(f"`{product}`" in card for product in seen)
    for key in ("backbone", "SOFS", "LOSS"):
        assert trained["TRAIN"][key] == yaml.safe_load(cfg.dump())["TRAIN"][key], key
    for key in ("image_size", "crop_size", "support_windows"):
        assert trained["DATASET"][key] == cfg.DATASET[key], key
    grids = trained["DATASET"]["grids"]  # in use, finer ones may follow
    assert grids == cfg.DATASET.grids[: len(grids)]
    assert cfg.TEST.load_checkpoint and (ROOT / cfg.TEST.load_model_path) == path
    assert sum(file.stat().st_size for file in GENERAL.glob("*.safetensors")) <= 8 << 20
    assert "/tmp" not in about(path)["config"], "paths of the machine that trained it"


def test_the_light_head_finds_defects_of_a_product_that_it_has_not_seen():
    """And better than the method that it corrects, with one example."""
    cfg = load_config(
        GENERAL / "Lite.yaml", ["TEST.load_model_path", str(GENERAL / "Lite.safetensors")]
    )
    predictor = Predictor.from_config(cfg)
    untrained = build_model(cfg)
    with pytest.raises(AssertionError):
        same(untrained.head, predictor.methods["SOFS"].head)
    load_head(GENERAL / "Lite.safetensors", untrained, "TEST.load_model_path")
    same(untrained.head, predictor.methods["SOFS"].head)
    product = PRODUCTS["Moulded_Cap"]
    pictures = [render(product, 3, index, wanted_shares(product, index)) for index in (0, 2, 4)]
    images = [image for image, _ in pictures]
    masks = [np.any([mask for _, mask in defects], axis=0) for _, defects in pictures]
    memory = predictor.set_support(images[:1], [masks[0].astype(np.uint8)])
    sums = {"SOFS": np.zeros(2), "prior": np.zeros(2)}
    outcomes = predictor.segment((image, [memory]) for image in images[1:])
    for outcome, mask in zip(outcomes, masks[1:], strict=True):
        for name, total in sums.items():
            found = outcome.answers[0][name].mask
            total += (found & mask).sum(), (found | mask).sum()
    ours, theirs = (total[0] / total[1] for total in sums.values())
    assert ours > 0.3 and ours > theirs, (ours, theirs)


def same(one, other):
    for name, value in one.state_dict().items():
        assert value.equal(other.state_dict()[name]), name
