from __future__ import annotations

import shutil

import pytest
import torch
from torch.testing import assert_close

from models.build import build_model
from tests.helpers import tiny_config
from utils.errors import ConfigError


def backbone_of(tmp_path, **changes):
    torch.manual_seed(0)
    cfg = tiny_config(tmp_path, tmp_path, TRAIN__backbone="timm:test_vit", TRAIN__backbone_load_state_dict=False,
                      TRAIN__SOFS__vit_patch_size=16, TRAIN__SOFS__prior_layer_pointer=[1, 3], **changes)  # fmt: skip
    return build_model(cfg).backbone


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same_features(tmp_path):
    plain, compiled = backbone_of(tmp_path), backbone_of(tmp_path, TRAIN__compile=True)
    for count in (2, 3):  # the last batch of an image is often smaller
        images = torch.randn(count, 3, 64, 64)
        for ours, theirs in zip(compiled(images), plain(images), strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_compiling_without_a_compiler_names_the_key_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"TRAIN\.compile.*no-such-compiler.*not installed"):
        backbone_of(tmp_path, TRAIN__compile=True)
