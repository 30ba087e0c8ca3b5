"""An encoder in the format and precision that are asked for, and how near it is to torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from models.backbone import Backbone
from models.runtime import INPUT, cached_encoder, open_encoder, require
from utils.console import say
from utils.output_files import write_whole

COMPARED = 8  # windows on which an encoder is compared with torch
NEAR = 0.995  # cosine that int8 shall keep, see `agreement`
SLACK = 1.1  # times the least 1 - cosine, where none is so near
KEPT = (0, 2, 4, 8, 16)  # first products that int8 leaves in floating point, until it is as near
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
RUNS_IN = {"onnx": "onnxruntime", "openvino": "openvino"}
PRODUCTS = {"Conv", "MatMul", "Gemm", "Convolution", "GroupConvolution"}  # types of nodes


def write_encoder_as(
    backbone: Backbone, form: str, precision: str, windows: list[np.ndarray], target: Path
) -> dict[str, Any]:
    """Write a backbone on the CPU as `onnx` or `openvino`; returns what the manifest says of it:
    its arithmetic where it has no integers, and its `agreement` on the first of `windows`, each
    (1, 3, S, S) float32.

    precision: `fp32`, `bf16`, in which weights take two bytes, or `int8`: the ranges of the
    products are those on the windows, and as many of the first products stay in floating point as
    it takes to come near to torch, or as bring it nearer at all.
    """
    source = cached_encoder(backbone, windows[0].shape[-1])
    is_transformer = isinstance(backbone.model, VisionTransformer)
    half = precision == "bf16" or (precision == "int8" and is_transformer)  # bf16 costs CNNs more
    some = torch.from_numpy(np.concatenate(windows[:COMPARED]))
    about = {"precision": precision, "floating_point": "bf16" if half else "fp32"}
    if precision != "int8":
        if form == "openvino":
            convert(source, target, half=half)
        else:
            write_whole(target, source.read_bytes())
        return about | agreement(backbone, RUNS_IN[form], target, some, half=half)

    def quantized(kept: int) -> dict[str, float]:
        _quantize(source, target, windows, kept, is_transformer=is_transformer)
        near = agreement(backbone, RUNS_IN[form], target, some, half=half)
        cosine = near["centred_cosine"]
        say(f"int8, first {kept} products in floating point: cosine {cosine:.4f}")
        return near

    tried: dict[int, dict[str, float]] = {}
    for kept in KEPT:
        tried[kept] = quantized(kept)
        if tried[kept]["centred_cosine"] >= NEAR:
            break
    else:  # where more products bring it no nearer, fewer are faster
        errors = {number: 1 - near["centred_cosine"] for number, near in tried.items()}
        kept = next(n for n, error in errors.items() if error <= SLACK * min(errors.values()))
        quantized(kept)
    return about | tried[kept] | {"products_in_floating_point": kept}


def convert(source: Path, target: Path, *, half: bool) -> None:
    """ONNX to OpenVINO's files; half: weights take two bytes."""
    import openvino

    openvino.save_model(openvino.convert_model(source), target, compress_to_fp16=half)


def _quantize(
    source: Path, target: Path, windows: list[np.ndarray], kept: int, *, is_transformer: bool
) -> None:
    require("nncf", "--precision int8")
    import nncf
    import onnx
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own function mutes all other loggers
    is_onnx = target.suffix == SUFFIXES["onnx"]
    model = onnx.load(source) if is_onnx else openvino.Core().read_model(source)
    names = [name for name, kind in _nodes(model) if kind in PRODUCTS][:kept]
    small = nncf.quantize(
        model,
        nncf.Dataset(windows, lambda window: {INPUT: window}),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(windows),
        ignored_scope=nncf.IgnoredScope(names=names),
    )
    if is_onnx:
        write_whole(target, small.SerializeToString())
    else:
        openvino.save_model(small, target, compress_to_fp16=True)


def _nodes(model: Any) -> Iterator[tuple[str, str]]:
    """Name and type of each node of an ONNX or OpenVINO model, in the order of their work."""
    if hasattr(model, "graph"):
        return ((node.name, node.op_type) for node in model.graph.node)
    return ((op.get_friendly_name(), op.get_type_name()) for op in model.get_ordered_ops())


@torch.inference_mode()
def agreement(
    backbone: Backbone, runtime: str, file: Path, images: Tensor, *, half: bool
) -> dict[str, float]:
    """How near the features of an encoder in a file are to those of torch in fp32: the largest
    relative error of a layer, and the least mean cosine of a layer's tokens, after the mean over
    all is taken from them, as comparisons do."""
    errors, cosines, encode = [], [], open_encoder(runtime, file, half=half)
    for ours, theirs in zip(encode(images), backbone.encode_by_torch(images), strict=True):
        errors.append(float((ours - theirs).norm() / theirs.norm()))
        mean = theirs.mean((0, 2, 3), keepdim=True)
        cosines.append(float(F.cosine_similarity(ours - mean, theirs - mean, dim=1).mean()))
    return {"relative_error": max(errors), "centred_cosine": min(cosines)}
