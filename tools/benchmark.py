"""How long an image takes, and what remembering the supports saves: `python -m tools.benchmark --cfg FILE`.

Times are medians over repeats; the ratio compares, in turn within one run, supports encoded once with supports encoded
again for every batch of windows, which is what the published code does.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from yacs.config import CfgNode

from datasets.tiling import tile
from method_config import add_config_arguments, load_config
from models.build import build_model
from tools.cli import exit_code
from tools.methods import build_predictor
from tools.predictor import Predictor
from utils.precision import pick_device


def measure(cfg: CfgNode, height: int, width: int, repeats: int) -> dict[str, float]:
    """Seconds per image of random pixels, medians over repeats.

    Args:
        cfg: the config; its head stays random, which takes as long as a trained one.
        height, width: of the image, pixels.
        repeats: how often each way is timed, in turn.

    Returns:
        `once`: supports encoded once per image; `again`: for every batch of windows; `ratio`: median of again / once;
        and the number of `windows` and `supports`.
    """
    device = pick_device(cfg.DEVICE)
    predictor = build_predictor(cfg, {"SOFS": build_model(cfg)}, device)
    random = np.random.default_rng(cfg.RNG_SEED)
    image = random.integers(0, 256, (height, width, 3), np.uint8)
    count, side = cfg.DATASET.shot * (cfg.DATASET.s_in_shot + cfg.DATASET.normal_views), cfg.DATASET.image_size
    supports = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(cfg.RNG_SEED))
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    masks[:, : side // 8, : side // 8] = 1
    ways = {
        "once": lambda: predictor.segment(image, predictor.remember(supports, masks), windowed=True),
        "again": lambda: _encode_again(predictor, image, supports, masks),
    }
    for way in ways.values():
        way()
    times = [{name: _seconds(way, device) for name, way in ways.items()} for _ in range(repeats)]
    medians = {name: statistics.median(t[name] for t in times) for name in ways}
    ratio = statistics.median(t["again"] / t["once"] for t in times)
    return medians | {"ratio": ratio, "windows": len(tile(height, width, cfg.DATASET.crop_size)), "supports": count}


def _encode_again(predictor: Predictor, image: np.ndarray, supports: torch.Tensor, masks: torch.Tensor) -> None:
    """The published way: each batch of windows meets its supports anew."""
    windows = len(tile(*image.shape[:2], predictor.crop_size))
    for _ in range(-(-windows // predictor.window_batch)):
        memory = predictor.remember(supports, masks)
    predictor.segment(image, memory, windowed=True)


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--size", nargs=2, type=int, default=(1000, 1500), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found = measure(load_config(args.cfg, args.opts), *args.size, args.repeats)
    print(
        f"{args.size[0]} x {args.size[1]} px, {found['windows']} windows, {found['supports']} support views: "
        f"{found['once']:.2f} s per image; with the supports encoded for every batch {found['ratio']:.2f} times as long"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
