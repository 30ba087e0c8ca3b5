from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from models.build import build_model, check_model, with_baseline
from tests.helpers import tiny_config
from utils.errors import ConfigError

VIT = {
    "TRAIN__backbone": "timm:test_vit", "TRAIN__backbone_load_state_dict": False,
    "TRAIN__SOFS__vit_patch_size": 16, "TRAIN__SOFS__prior_layer_pointer": [1, 3],
}  # fmt: skip


def config(tmp_path, **changes):
    return tiny_config(tmp_path, tmp_path, **VIT | changes)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same_features(tmp_path):
    backbones = []
    for compiled in (False, True):
        torch.manual_seed(0)
        backbones.append(build_model(config(tmp_path, TRAIN__compile=compiled)).backbone)
    for count in (2, 3):  # the last batch of an image is often smaller
        images = torch.randn(count, 3, 64, 64)
        for pair in zip(*(backbone(images) for backbone in backbones), strict=True):
            assert_close(*pair, rtol=0, atol=1e-5)


def test_compiling_without_a_compiler_names_the_key_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"TRAIN\.compile.*no-such-compiler.*not installed"):
        build_model(config(tmp_path, TRAIN__compile=True))


def test_names_are_checked_before_anything_is_built(tmp_path):
    check_model(config(tmp_path))
    for changes, words in (
        ({"TEST__method": "pryor"}, r"TEST\.method is pryor.*mean prior"),
        ({"TRAIN__backbone": "resnet51"}, r"TRAIN\.backbone is resnet51.*mean resnet50"),
        ({"TRAIN__SOFS__prior_layer_pointer": [1, 99]}, r"prior_layer_pointer is \[1, 99\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_model(config(tmp_path, **changes))


@pytest.mark.parametrize("baseline", [True, False])
def test_the_baseline_shares_the_backbone(tmp_path, baseline):
    cfg = config(tmp_path, TEST__baseline=baseline)
    model = build_model(cfg)
    methods = with_baseline(cfg, model)
    assert list(methods) == ["SOFS", "prior"][: 1 + baseline] and methods["SOFS"] is model
    assert all(method.backbone is model.backbone for method in methods.values())


def test_the_protocol_chooses_what_empty_supports_count(tmp_path):
    """Also a prior_residual head has the channels and the scales that it needs."""
    for protocol, skips in (("ours", True), ("published", False)):
        cfg = config(tmp_path, TEST__protocol=protocol, TRAIN__SOFS__prior_residual=True)
        model = build_model(cfg)
        assert model.skip_empty_supports is skips
        assert model.head.query_mix[0].in_channels == 2 * 16 + 2 * 2 + 1
