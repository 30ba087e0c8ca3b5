"""The export itself: two graphs, the memory of a defect, and the manifest that explains them."""

from __future__ import annotations

import importlib.metadata
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from yacs.config import CfgNode

from datasets.build import build_test_index, view_settings
from datasets.episodes import read_sample
from datasets.folders import images_below
from datasets.images import limit_pixels, read_image
from datasets.readers import reader_of
from datasets.views import normal_views, prepare_image, window_sides
from models.backbone import Backbone
from models.memory import Memory
from models.runtime import INPUT, MANIFEST, RUNTIMES, output_names, require
from tools.export.answer import OUTPUT, graph_memory, write_answer
from tools.export.encoder import RUNS_IN, SUFFIXES, convert, write_encoder_as
from tools.methods import load_methods
from tools.open_domain import read_tasks
from tools.predictor import Predictor
from utils.console import say
from utils.errors import ConfigError, DataError
from utils.output_files import sha256_of, write_json, write_whole

PICTURES, WINDOWS = 24, 24  # at most, of a calibration
IN_TORCH = {"TEST.runtime": "torch", "TEST.runtime_path": "", "TRAIN.feature_cache_path": "",
            "TRAIN.precision": "fp32", "TEST.baseline": False}  # fmt: skip


def export(args: Namespace, cfg: CfgNode) -> None:
    """Do what the arguments of `tools.export` ask, and say how near the encoder is to torch.

    ConfigError, DataError, WeightsError: an argument, an image or a file is not as it must be.
    """
    if args.format == "onnx" and args.precision == "bf16":
        raise ConfigError("--precision bf16: ONNX Runtime has no bf16 products on CPUs; take "
                          "--format openvino, or fp32 or int8")  # fmt: skip
    require(RUNS_IN[args.format], f"--format {args.format}")
    cfg, out, size = cfg.clone(), args.out, cfg.DATASET.image_size
    cfg.defrost()
    cfg.merge_from_list([part for entry in IN_TORCH.items() for part in entry])
    limit_pixels(cfg.DATASET.max_pixels)
    windows = calibration_windows(args.images, cfg)
    predictor = Predictor.from_config(cfg, load_methods(cfg), torch.device("cpu"))
    method, backbone = predictor.methods[predictor.main], predictor.backbone
    memory = predictor.load_support(args.support) if args.support else None
    if memory and not memory.is_marked:
        raise ConfigError(f"--support: {args.support} holds normal images alone; teach a defect")
    out.mkdir(parents=True, exist_ok=True)
    encoder, answer = (out / f"{name}{SUFFIXES[args.format]}" for name in ("encoder", "answer"))
    near = write_encoder_as(backbone, args.format, args.precision, windows, encoder)
    normal, graph = len(memory.normal) if memory else 0, out / "answer.onnx"
    grid = (size // backbone.stride,) * 2
    inputs = write_answer(method, invented(predictor, normal), grid, size, graph)
    if graph != answer:
        convert(graph, answer, half=False)
        graph.unlink()
    memories = []
    for scale, name in zip(memory.scales if memory else (), ("memory", "coarse"), strict=False):
        tensors, file = graph_memory(scale, method), out / f"{name}.safetensors"
        write_whole(file, save({n: tensors[n].contiguous() for n in inputs if n in tensors}))
        memories.append({"file": file.name, "window": scale.window})
    head = {"head_sha256": sha256_of(cfg.TEST.load_model_path)} if method.needs_training else {}
    thresholds = memory.thresholds if memory else {}
    write_json(out / MANIFEST, {
        "format": args.format, "precision": args.precision, "versions": versions(),
        "encoder": {"file": encoder.name} | near | about_encoder(backbone, cfg),
        "answer": {
            "file": answer.name, "method": method.name, "inputs": inputs, "normal_images": normal,
            "output": {"name": OUTPUT, "shape": ["batch", size, size], "type": "float32"},
            "threshold": thresholds.get(method.name, predictor.threshold),
            "gate": memory.gates.get(method.name) if memory else None,
        } | head,
        "memories": memories,
    })  # fmt: skip
    error, cosine = near["relative_error"], near["centred_cosine"]
    say(f"{out}: {encoder.name}, {answer.name}, {MANIFEST}; features differ from torch by "
        f"{error:.2g}, cosine after centring {cosine:.5f}")  # fmt: skip


def about_encoder(backbone: Backbone, cfg: CfgNode) -> dict[str, Any]:
    """What the manifest says of an encoder, whatever its format."""
    size, checkpoint = cfg.DATASET.image_size, cfg.TRAIN.backbone_checkpoint
    grid, names = size // backbone.stride, output_names(backbone)
    about = {
        "backbone": cfg.TRAIN.backbone, "source": backbone.source, "weights": backbone.identity,
        "layers": backbone.layers, "stride": backbone.stride, "image_size": size,
        "input": {"name": INPUT, "shape": ["batch", 3, size, size], "type": "float32",
                  "pixels": "RGB from 0 to 1, less mean, by std", "mean": IMAGENET_DEFAULT_MEAN,
                  "std": IMAGENET_DEFAULT_STD},
        "outputs": [{"name": name, "shape": ["batch", grid, grid, count], "type": "float32"}
                    for name, count in zip(names, backbone.channels, strict=True)],
    }  # fmt: skip
    return about | ({"checkpoint_sha256": sha256_of(checkpoint)} if checkpoint else {})


def versions() -> dict[str, str]:
    """Versions of the packages that make and run graphs, as far as they are installed."""
    names = {"torch", "timm", "onnx", "onnxscript", "nncf", *RUNTIMES}
    installed = importlib.metadata.packages_distributions().keys() & names
    return {name: importlib.metadata.version(name) for name in sorted(installed)}


def calibration_windows(given: Sequence[Path], cfg: CfgNode) -> list[np.ndarray]:
    """Windows (1, 3, S, S) float32 of images as queries are seen, evenly taken; of those that are
    given, else of the supports of open-domain objects or of labelled images of the test objects.

    DataError: there is none, or one cannot be read.
    """
    settings, windows = view_settings(cfg), []
    for image, mask in _pictures(given, cfg):
        side = window_sides([] if mask is None else [mask], settings)[0]
        windows += normal_views(image, side)
    return [prepare_image(w, settings.image_size)[None].numpy() for w in _some(windows, WINDOWS)]


def _pictures(given: Sequence[Path], cfg: CfgNode) -> list[tuple[np.ndarray, np.ndarray | None]]:
    if given:
        files = []
        for place in given:
            found = images_below(place) if place.is_dir() else [place]
            if not found:
                raise DataError(f"--images: {place} holds no image")
            files += found
        return [(read_image(file), None) for file in _some(files, PICTURES)]
    if reader_of(cfg.DATASET.name).kind == "open_domain":
        sets = (pairs for task in read_tasks(cfg) for pairs in task.supports.values())
        return _some([pair for pairs in sets for pair in pairs], PICTURES)
    index = build_test_index(cfg)
    return [read_sample(index, sample) for sample in _some(index.samples, PICTURES)]


def _some(items: Sequence, most: int) -> list:
    """At most so many of the items, evenly taken."""
    places = np.linspace(0, len(items) - 1, min(len(items), most))
    return [items[round(place)] for place in places]


def invented(predictor: Predictor, normal: int) -> Memory:
    """A memory of noise, with so many normal images: an example of what the graph takes."""
    size = predictor.settings.image_size
    masks = torch.zeros(2, size, size, dtype=torch.uint8)
    masks[:, : size // 2, : size // 2] = 1
    part = predictor.encoder.encode(torch.randn(2, 3, size, size), masks)
    images = (torch.randn(1, 3, size, size) for _ in range(normal))
    others = [predictor.encoder.encode_normal([image]) for image in images]
    return predictor.encoder.remember([part], others, window=0)
