"""Encoders outside torch: a backbone as an ONNX graph, and what runs it on a CPU.

ONNX Runtime and OpenVINO come with `requirements-export.txt`; OpenVINO reads ONNX files, too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from models.backbone import Backbone
from utils.errors import ConfigError, WeightsError
from utils.output_files import write_json, write_whole
from utils.precision import arithmetic, autocast

if TYPE_CHECKING:
    from onnx import ModelProto

LOG = logging.getLogger(__name__)
TORCH, AUTO = "torch", "auto"
RUNTIMES = ("openvino", "onnxruntime")  # values of TEST.runtime, and names of packages
FORMATS = {".xml": ("openvino",), ".onnx": ("openvino", "onnxruntime")}  # what reads which file
INPUT = "images"
MANIFEST = "manifest.json"  # of an exported folder
WINDOWS, PASSES = 2, 5  # of the passes that are timed for `auto`
Encode = Callable[[Tensor], list[Tensor]]


class EncoderGraph(nn.Module):
    """A backbone as it is exported: images to one map (B, h, w, C_l) float32 per layer, in which
    the channels of a token lie side by side, as comparisons want."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """images: (B, 3, S, S) float32, normalised with ImageNet mean and std."""
        return tuple(layer.movedim(1, -1) for layer in self.backbone.encode_by_torch(images))


def output_names(backbone: Backbone) -> list[str]:
    """Names of the outputs of an exported encoder, one per layer."""
    return [f"layer_{number}" for number in backbone.layers]


def write_encoder(backbone: Backbone, image_size: int, path: Path) -> None:
    """Write a backbone on the CPU as ONNX in fp32, for any number of images of this side; whole or
    not at all. ConfigError: a package is missing, or the model cannot be exported."""
    images, shapes = torch.zeros(2, 3, image_size, image_size), {INPUT: {0: Dim("batch")}}
    model = onnx_model(EncoderGraph(backbone), (images,), [INPUT], output_names(backbone), shapes)
    write_model(model, path)


def onnx_model(
    module: nn.Module,
    arguments: tuple,
    inputs: Sequence[str],
    outputs: Sequence[str],
    shapes: dict[str, Any],
) -> ModelProto:
    """A module as ONNX by its arguments, whose dimensions in `shapes` may have other sizes.

    ConfigError: a package is missing, or the module cannot be exported."""
    require("onnxscript", "an export")
    for library in ("onnxscript", "onnx_ir"):  # which tell of every graph rewriting
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            return torch.onnx.export(
                module.eval(), arguments, input_names=inputs, output_names=outputs, dynamo=True,
                dynamic_shapes=shapes, verbose=False,
            ).model_proto  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(
            f"TRAIN.backbone, TEST.method: cannot be exported to ONNX ({reason:.200}); set "
            "TEST.runtime to torch, or choose others"
        ) from error


def write_model(model: ModelProto, path: Path) -> None:
    """Write a model in ONNX, whole or not at all. ConfigError: it is too large for one file."""
    from google.protobuf.message import EncodeError

    try:
        content = model.SerializeToString()
    except EncodeError as error:
        raise ConfigError(
            "TRAIN.backbone: this model is larger than the 2 GB of an ONNX file; set TEST.runtime "
            "to torch, or choose a smaller one"
        ) from error
    write_whole(path, content)


def require(package: str, purpose: str) -> None:
    """ConfigError if a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{purpose} needs the package {package}, which is not installed; run `pip install -r "
            "requirements-export.txt`"
        )


def open_encoder(name: str, path: Path, *, half: bool) -> Encode:
    """An encoder in a file of `write_encoder` or `tools.export`, run by ONNX Runtime or OpenVINO
    on as many threads as torch has.

    Images (B, 3, S, S) float32 give maps (B, C_l, h, w) float32, as a `Backbone` does.
    half: compute in bf16 what is not in int8, which OpenVINO can. ConfigError: the package is
    missing or does not read such files; WeightsError: the file is missing or broken.
    """
    require(name, f"TEST.runtime {name}")
    if name not in FORMATS.get(path.suffix, ()):
        raise ConfigError(f"TEST.runtime is {name}, but {path} is of the other format; set it to "
                          f"{' or '.join(FORMATS.get(path.suffix, RUNTIMES))}")  # fmt: skip
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; write it with `python -m tools.export`")
    try:
        run = (_openvino if name == "openvino" else _onnxruntime)(path, half)
    except RuntimeError as error:  # what both raise
        raise WeightsError(f"{path}: {name} cannot read it ({error!s:.200}); export it again"
                           ) from error  # fmt: skip

    def encode(images: Tensor) -> list[Tensor]:
        maps = run(images.float().contiguous().numpy())
        return [torch.from_numpy(layer).movedim(-1, 1) for layer in maps]

    return encode


def _openvino(path: Path, half: bool) -> Callable:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "bf16" if half else "f32", "PERFORMANCE_HINT": "LATENCY",
               "INFERENCE_NUM_THREADS": torch.get_num_threads()}  # fmt: skip
    model = openvino.Core().compile_model(path, "CPU", options)
    return lambda images: [layer.copy() for layer in model({INPUT: images}).values()]


def _onnxruntime(path: Path, half: bool) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf as error:
        raise RuntimeError(error) from error
    return lambda images: session.run(None, {INPUT: images})


def exported_encoder(folder: Path, backbone: Backbone, image_size: int) -> tuple[Path, str]:
    """The encoder that `tools.export` wrote to a folder, and its arithmetic where it has no
    integers. WeightsError: there is none, or it is of another backbone."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["encoder"]
        path, precision = folder / manifest["file"], manifest["floating_point"]
        about = [manifest[name] for name in ("weights", "layers", "stride", "image_size")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"TEST.runtime_path: {folder} holds no readable {MANIFEST} ({error}); write one with "
            "`python -m tools.export`"
        ) from error
    ours = [backbone.identity, backbone.layers, backbone.stride, image_size]
    if about != ours:
        raise WeightsError(
            f"TEST.runtime_path: {folder} is the export of another encoder: weights, layers, "
            f"stride, image size are {about}, here {ours}; export it with this config"
        )
    return path, precision


def cached_encoder(backbone: Backbone, image_size: int) -> Path:
    """The encoder of these exact weights in the cache, where the first use exports it."""
    about = f"{backbone.identity} {backbone.layers} {backbone.stride} {image_size}"
    name = hashlib.sha256(f"{about} {torch.__version__}".encode()).hexdigest()[:20]
    path = Path(torch.hub.get_dir()) / "encoders" / f"{name}.onnx"
    if not path.is_file():
        LOG.info("the encoder is exported once to %s", path)
        write_encoder(backbone, image_size, path)
    return path


def fastest(backbone: Backbone, image_size: int, precision: str) -> str:
    """Which of torch and the installed runtimes encodes windows in the least time on this machine:
    measured in turn at the first use, and read from the cache from then on."""
    names = [name for name in RUNTIMES if importlib.util.find_spec(name)]
    if not names:
        LOG.info("TEST.runtime auto: torch, as neither %s is installed", " nor ".join(RUNTIMES))
        return TORCH
    path, device = cached_encoder(backbone, image_size), torch.device("cpu")
    threads, versions = torch.get_num_threads(), [importlib.metadata.version(n) for n in names]
    precision = arithmetic(device, precision)
    about = f"{precision} {threads} {platform.node()} {names} {versions}"
    file = path.with_suffix(f".{hashlib.sha256(about.encode()).hexdigest()[:8]}.json")
    if file.is_file():
        seconds = json.loads(file.read_text())
    else:
        encoders = {name: open_encoder(name, path, half=precision == "bf16") for name in names}
        encoders = {TORCH: backbone.encode_by_torch} | encoders
        seconds = _in_turn(encoders, torch.randn(WINDOWS, 3, image_size, image_size), precision)
        write_json(file, seconds)
    best = min(seconds, key=seconds.get)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
    LOG.info("TEST.runtime auto: %s (seconds per window, %s: %s)", best, precision, shown)
    return best


@torch.inference_mode()
def _in_turn(encoders: dict[str, Encode], images: Tensor, precision: str) -> dict[str, float]:
    """Least seconds per image of each, as other work on the machine only adds to them."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    with autocast(torch.device("cpu"), precision):
        for _ in range(PASSES):
            for name, encode in encoders.items():
                start = time.perf_counter()
                encode(images)
                seconds[name].append((time.perf_counter() - start) / len(images))
    return {name: min(values) for name, values in seconds.items()}
