from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from models.build import build_model, check_model, with_baseline
from tests.helpers import tiny_config
from utils.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    vit = {
        "TRAIN__backbone": "timm:test_vit",
        "TRAIN__backbone_load_state_dict": False,
        "TRAIN__SOFS__vit_patch_size": 16,
        "TRAIN__SOFS__prior_layer_pointer": [1, 3],
    }
    return lambda **changes: tiny_config(tmp_path, tmp_path, **vit | changes)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same_features(config, monkeypatch):
    backbones, first = [], {"TRAIN__SOFS__prior_layer_pointer": [0]}
    for compiled in (False, True):
        torch.manual_seed(0)
        backbones.append(build_model(config(TRAIN__compile=compiled, **first)).backbone)
    images = torch.randn(2, 3, 64, 64)
    for pair in zip(*(backbone(images) for backbone in backbones), strict=True):
        assert_close(*pair, rtol=0, atol=1e-5)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"TRAIN\.compile.*no-such-compiler.*not installed"):
        build_model(config(TRAIN__compile=True))


def test_names_are_checked_before_anything_is_built(config):
    check_model(config())
    wrong = {"TEST__method": "pryor", "TRAIN__method": "prior", "TRAIN__backbone": "resnet51"}
    for key, value in wrong.items():
        with pytest.raises(ConfigError, match=rf"{key.replace('__', '.')} is {value}.*mean"):
            check_model(config(**{key: value}))
    with pytest.raises(ConfigError, match=r"the methods that can be trained are SOFS\."):
        build_model(config(TRAIN__method="prior"))


@pytest.mark.parametrize(("protocol", "skips"), [("ours", True), ("published", False)])
def test_a_config_chooses_the_model_and_its_baseline(config, protocol, skips):
    """A prior_residual head has one more channel; the baseline shares the backbone."""
    changes = {"TEST__protocol": protocol, "TRAIN__SOFS__prior_residual": True}
    cfg = config(TEST__baseline=skips, **changes)
    model = build_model(cfg)
    assert model.skip_empty_supports is skips
    assert model.head.query_mix[0].in_channels == 2 * 16 + 2 * 2 + 1
    methods = with_baseline(cfg, model)
    assert list(methods) == ["SOFS", "prior"][: 1 + skips] and methods["SOFS"] is model
    assert all(method.backbone is model.backbone for method in methods.values())
