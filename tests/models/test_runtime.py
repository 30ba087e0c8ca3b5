"""Encoders in ONNX Runtime and OpenVINO, which give the features of torch."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

from models import runtime
from models.backbone import build_backbone
from models.build import backbone_of
from tests.helpers import tiny_config
from utils.errors import ConfigError, WeightsError

SIDE = 112  # of whole patches of 14 and 16
# stride, layers
FAMILIES = {
    "dinov2_vits14": (14, [0, 1]), "dinov2_vits14_reg": (14, [0, 1]), "resnet50": (8, [1, 2]),
    "efficientnet_lite0": (8, [1, 2, 3]), "timm:test_convnext": (8, [1]),
    "timm:test_vit": (16, [1, 3]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A folder in which exported encoders are kept."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TORCH_HOME", str(folder))
    return folder / "hub" / "encoders"


@pytest.fixture
def config(tmp_path):
    return lambda **changes: tiny_config(tmp_path, tmp_path, **changes)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_the_features_of_torch(name):
    """In fp32, for any number of images, tokens side by side in memory."""
    stride, layers = FAMILIES[name]
    options = {"layers": layers, "stride": stride, "pretrained": name == "efficientnet_lite0"}
    backbone = build_backbone(name, image_size=SIDE, **options)
    path = runtime.cached_encoder(backbone, SIDE)
    for images in (torch.randn(1, 3, SIDE, SIDE), torch.randn(3, 3, SIDE, SIDE)):
        wanted = backbone(images)
        for package in runtime.RUNTIMES:
            found = runtime.open_encoder(package, path, half=False)(images)
            for ours, theirs in zip(found, wanted, strict=True):
                assert ours.shape == theirs.shape and ours.movedim(1, -1).is_contiguous()
                assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_a_config_chooses_what_encodes_and_torch_lets_go_of_the_weights(config, cache):
    images = torch.randn(2, 3, 64, 64)
    by_torch = backbone_of(config())
    for name in runtime.RUNTIMES:
        backbone = backbone_of(config(TEST__runtime=name)).to(torch.device("cpu"))
        assert {p.device.type for p in backbone.model.parameters()} == {"meta"}
        assert backbone.identity == by_torch.identity
        for pair in zip(backbone(images), by_torch(images), strict=True):
            assert_close(*pair, rtol=1e-3, atol=1e-4)
    assert len(list(cache.glob("*.onnx"))) == 1, "both read one file, which is written once"


def test_auto_is_measured_once_and_takes_the_fastest(config, cache):
    backbone = backbone_of(config())
    first = runtime.fastest(backbone, 64, "fp32")
    (file,) = cache.glob("*.json")
    seconds = json.loads(file.read_text())
    assert set(seconds) == {"torch", *runtime.RUNTIMES} and first == min(seconds, key=seconds.get)
    assert all(0 < value < 10 for value in seconds.values())
    for name in seconds:
        file.write_text(json.dumps(seconds | {name: 0.0}))
        assert runtime.fastest(backbone, 64, "fp32") == name
        chosen = backbone_of(config(TEST__runtime="auto")).runtime
        assert (chosen is None) == (name == "torch")
    runtime.fastest(backbone, 64, "bf16")
    assert len(list(cache.glob("*.json"))) == 2, "precisions are measured apart"


def test_what_cannot_run_is_named(config, tmp_path):
    with pytest.raises(ConfigError, match=r"no_such_package.*requirements-export\.txt"):
        runtime.require("no_such_package", "TEST.runtime x")
    with pytest.raises(ConfigError, match=r"TEST\.runtime_path.*torch runs no exported encoder"):
        config(TEST__runtime_path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"TEST\.runtime is 'tensorrt'.*openvino"):
        config(TEST__runtime="tensorrt")
    xml, onnx = tmp_path / "a.xml", tmp_path / "a.onnx"
    with pytest.raises(ConfigError, match=r"onnxruntime, but .*a\.xml is of the other format"):
        runtime.open_encoder("onnxruntime", xml, half=False)
    with pytest.raises(WeightsError, match=r"a\.onnx: no such file.*tools\.export"):
        runtime.open_encoder("openvino", onnx, half=False)
    for path in (xml, onnx):
        path.write_bytes(b"no model")
        for name in runtime.FORMATS[path.suffix]:
            with pytest.raises(WeightsError, match=rf"{path.name}: {name} cannot read it"):
                runtime.open_encoder(name, path, half=False)
    with pytest.raises(WeightsError, match=r"TEST\.runtime_path: .*no readable manifest\.json"):
        backbone_of(config(TEST__runtime="auto", TEST__runtime_path=str(tmp_path)))
