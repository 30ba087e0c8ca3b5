"""What runs the encoder, side by side: each runtime in a process of its own, asked in turn."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import torch
from yacs.config import CfgNode

from datasets.images import read_image
from models.runtime import RUNTIMES, TORCH
from tools.benchmark.figures import Figure, counted_passes
from tools.benchmark.inference import (
    encode_windows,
    file_to_file,
    random_image,
    random_predictor,
    teach,
    windows_of,
)
from tools.export.job import export
from tools.predictor import Predictor

INT8 = "int8"
ALONE = 8  # windows, at most, of the bare backbone
Size = tuple[int, int]
_predictor: Predictor | None = None  # of a measuring process


def measure_runtimes(
    images: Sequence[tuple[CfgNode, Size, int]], runtimes: Sequence[str] = RUNTIMES, *, int8: bool
) -> list[Figure]:
    """Figures of torch and other runtimes, and with `int8` of OpenVINO in int8: start-up with the
    encoder in the cache, peak memory, and the time of bare backbone and file to mask file.

    `images` have a config with the same backbone, a size (h, w), and a number of repeats in turn,
    over which times, ratios and peaks are medians. Needs Linux.
    """
    figures, name = [], images[0][0].TRAIN.backbone
    with TemporaryDirectory(prefix="sofs_benchmark_") as place:
        variants = {runtime: {"TEST.runtime": runtime} for runtime in (TORCH, *runtimes)}
        if int8:
            picture, folder = Path(place) / "picture.png", Path(place) / INT8
            cv2.imwrite(str(picture), random_image((1036, 1036), seed=9))
            torch.manual_seed(images[0][0].RNG_SEED)  # weights as in `random_predictor`
            export(Namespace(format="openvino", precision=INT8, out=folder, images=[picture],
                             support=None), images[0][0])  # fmt: skip
            variants[INT8] = {"TEST.runtime": "openvino", "TEST.runtime_path": str(folder)}
        # exports the encoder for all, if the cache does not have it
        random_predictor(_changed(images[0][0], {"TEST.runtime": runtimes[0]}))
        for number, (cfg, size, repeats) in enumerate(images):
            file, processes = Path(place) / f"{number}.jpg", {}
            cv2.imwrite(str(file), random_image(size))
            image = f"{name}, {size[0]} x {size[1]}"
            for variant, changes in variants.items():
                config = _changed(cfg, changes).dump()
                start = time.perf_counter()
                processes[variant] = _process()
                processes[variant].submit(_start, config).result()
                seconds = time.perf_counter() - start
                figures.append(Figure("runtimes", f"{image}, {variant}: start", seconds, "s"))
            rows = {variant: [] for variant in variants}
            for _ in range(repeats):
                for variant, process in processes.items():
                    rows[variant].append(process.submit(_measure, file).result())
            for variant, process in processes.items():
                bare, whole, peak = map(median, zip(*rows[variant], strict=True))
                gain = median(t[1] / r[1] for t, r in zip(rows[TORCH], rows[variant], strict=True))
                values = [("bare backbone, a window", bare, "s"), ("file to mask file", whole, "s"),
                          ("torch / this", gain, ""), ("peak memory", peak, "MB")]  # fmt: skip
                for what, *value in values:
                    figures.append(Figure("runtimes", f"{image}, {variant}: {what}", *value))
                process.shutdown()
    return figures


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _changed(cfg: CfgNode, changes: dict[str, str]) -> CfgNode:
    other = cfg.clone()
    other.defrost()
    other.merge_from_list([part for entry in changes.items() for part in entry])
    return other


def _start(config: str) -> None:
    """Give this process a predictor by a config, as text, that has encoded supports."""
    global _predictor
    _predictor = random_predictor(CfgNode.load_cfg(config))
    teach(_predictor)
    _predictor.predict(random_image((64, 64)))  # the first time is dearer


def _measure(file: Path) -> tuple[float, float, float]:
    """Of an image in a file: seconds of the bare backbone for a window, seconds from file to mask
    file, and the peak memory of that in MB."""
    windows = windows_of(_predictor, read_image(file))
    some = windows[:ALONE]
    start = time.perf_counter()
    encode_windows(_predictor, some)
    alone = (time.perf_counter() - start) / len(some)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    with counted_passes(_predictor.backbone) as passes:
        start = time.perf_counter()
        file_to_file(_predictor, file)
        whole = time.perf_counter() - start
    if sum(passes) != len(windows):
        raise RuntimeError(f"{sum(passes)} of {len(windows)} windows were encoded")
    status = Path("/proc/self/status").read_text()
    return alone, whole, int(status.split("VmHWM:")[1].split()[0]) / 1e3
