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
from yacs.config import CfgNode

from datasets.images import read_image
from models.runtime import PACKAGES, TORCH
from tools.benchmark.figures import Figure, counted_passes
from tools.benchmark.inference import (
    bare,
    file_to_file,
    random_image,
    random_predictor,
    teach,
    windows_of,
)
from tools.export.job import export
from tools.predictor import Predictor

INT8 = "int8"
_predictor: Predictor | None = None  # of a measuring process


def measure_runtimes(
    cfg: CfgNode, sizes: Sequence[tuple[int, int]], *, repeats: int, int8: bool
) -> list[Figure]:
    """Figures of torch, OpenVINO and ONNX Runtime, and with `int8` of OpenVINO in int8, on images
    of some sizes (h, w): start-up with the encoder in the cache, peak memory, and the time of bare
    backbone and file to mask file. Ratios are medians over repeats in turn. Needs Linux.
    """
    with TemporaryDirectory(prefix="sofs_benchmark_") as place:
        variants = {runtime: {"TEST.runtime": runtime} for runtime in (TORCH, *PACKAGES)}
        if int8:
            picture, folder = Path(place) / "picture.png", Path(place) / INT8
            cv2.imwrite(str(picture), random_image((1036, 1036), seed=9))
            export(Namespace(format="openvino", precision=INT8, out=folder, images=[picture],
                             support=None), cfg)  # fmt: skip
            variants[INT8] = {"TEST.runtime": "openvino", "TEST.runtime_path": str(folder)}
        name, processes, figures = cfg.TRAIN.backbone, {}, []
        for variant, changes in variants.items():
            config = _changed(cfg, changes).dump()
            for _ in range(2):  # the first may export the encoder
                start = time.perf_counter()
                processes[variant] = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                processes[variant].submit(_start, config).result()
                seconds = time.perf_counter() - start
            figures.append(Figure("runtimes", f"{name}, {variant}: start", seconds, "s"))
        for size in sizes:
            file, taken = Path(place) / "image.jpg", {variant: [] for variant in variants}
            cv2.imwrite(str(file), random_image(size))
            for _ in range(1 + repeats):
                for variant, process in processes.items():
                    taken[variant].append(process.submit(_measure, file).result())
            torch_rows = taken[TORCH][1:]
            for variant, rows in taken.items():
                alone, whole, peak, counts = zip(*rows[1:], strict=True)
                gain = median(row[1] / ours for row, ours in zip(torch_rows, whole, strict=True))
                first = f"{name}, {size[0]} x {size[1]}, {variant}"
                values = [("bare backbone", counts[0] / median(alone), "windows/s"),
                          ("file to mask file", median(whole), "s"), ("torch / this", gain, ""),
                          ("peak memory", max(peak), "MB")]  # fmt: skip
                figures += [Figure("runtimes", f"{first}: {what}", *rest) for what, *rest in values]
        for process in processes.values():
            process.shutdown()
    return figures


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


def _measure(file: Path) -> tuple[float, float, float, int]:
    """Of an image in a file: seconds of the bare backbone and from file to mask file, the peak
    memory of that in MB, and its windows."""
    windows = windows_of(_predictor, read_image(file))
    start = time.perf_counter()
    bare(_predictor, windows)
    alone = time.perf_counter() - start
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    with counted_passes(_predictor.backbone) as passes:
        start = time.perf_counter()
        file_to_file(_predictor, file)
        whole = time.perf_counter() - start
    if sum(passes) != len(windows):
        raise RuntimeError(f"{sum(passes)} of {len(windows)} windows were encoded")
    status = Path("/proc/self/status").read_text()
    return alone, whole, int(status.split("VmHWM:")[1].split()[0]) / 1e3, len(windows)
