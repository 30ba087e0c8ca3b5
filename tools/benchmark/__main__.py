"""Measure what inference, training and indexing cost, and hold it against bounds.

`python -m tools.benchmark`: ratios are taken in turn within one run, on whatever device is there;
`--quick` takes a small backbone and small images, with generous bounds on time. It prints a line
per figure, writes JSON, and exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from method_config import load_config
from tools.benchmark.figures import Figure
from tools.benchmark.index import measure_index
from tools.benchmark.inference import (
    measure_growth,
    measure_inference,
    measure_published,
    measure_supports,
)
from tools.benchmark.training import measure_training
from tools.cli import exit_code
from utils.console import say
from utils.output_files import write_json
from utils.run_folder import provenance

CONFIG = Path(__file__).parents[2] / "method_config" / "Open_Domain" / "SOFS.yaml"
RANDOM = {"TRAIN.backbone_load_state_dict": False, "TEST.load_checkpoint": False}
RANDOM |= {"TRAIN.precision": "auto"}
SMALL = {f"DATASET.{name}": 224 for name in ("image_size", "mask_size", "crop_size")}
SMALL |= {"TRAIN.backbone": "dinov2_vits14"}
ALONE = {"NUM_GPUS": 1, "TRAIN_SETUPS.num_workers": 2, "TRAIN.feature_bank": 2}
WINDOW = 518  # native pixels of the larger images' windows, so that their number stays small
Sections = dict[str, Callable[[], list[Figure]]]


def sections(quick: bool, opts: list[str]) -> Sections:
    """The sections at the sizes that users have, or small ones in under a minute."""

    def config(*changes: dict[str, Any]) -> CfgNode:
        settings = [
            part for change in (RANDOM, *changes) for pair in change.items() for part in pair
        ]
        return load_config(CONFIG, settings + opts)

    if quick:
        cfg, training = config(SMALL), config(SMALL, ALONE, {"TRAIN_SETUPS.batch_size": 2})
        return {
            "inference": lambda: measure_inference(cfg, (256, 1600), repeats=3, most=(3, 3)),
            "published": lambda: measure_published(cfg, (224, 800), repeats=1, least=2),
            "growth": lambda: [
                *measure_growth(cfg, (4, 7, 60), slack=2),
                *measure_supports(cfg, 5, 8, slack=2),
            ],
            "training": lambda: measure_training(training, iterations=4, repeats=1, slack=2),
            "index": lambda: measure_index(images=100),
        }
    cfg, wide = config(), config({"DATASET.crop_size": WINDOW})
    training = config(ALONE, {"TRAIN_SETUPS.batch_size": 1})
    most = (1.25, 1.10)
    return {
        "inference": lambda: [
            *measure_inference(cfg, (256, 1600), repeats=5, most=most),
            *measure_inference(wide, (1080, 1920), repeats=3, most=most),
            *measure_inference(wide, (2748, 3840), repeats=2, most=most),
        ],
        "published": lambda: measure_published(cfg, (256, 1600), repeats=2, least=9),
        "growth": lambda: [
            *measure_growth(wide, (4, 7, 200), slack=1),
            *measure_supports(cfg, 20, 8, slack=1),
        ],
        "training": lambda: measure_training(training, iterations=8, repeats=1),
        "index": measure_index,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, generous bounds on time")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="some of the sections")
    parser.add_argument(
        "--json", type=Path, default=Path("log/benchmark.json"), help="file to write"
    )
    parser.add_argument(
        "--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings that win"
    )
    args = parser.parse_args()
    logging.disable(logging.INFO)
    available = sections(args.quick, args.opts)
    if unknown := set(args.only or ()) - set(available):
        names = ", ".join(available)
        parser.error(f"--only: no section {', '.join(sorted(unknown))}; there are {names}")
    hold([available[name] for name in args.only or available], args.json)


def hold(measures: Iterable[Callable[[], list[Figure]]], file: Path) -> None:
    """Measure, print a line per figure as it comes, and write all as JSON.

    Raises:
        SystemExit: with 1, a bound is missed.
    """
    figures: list[Figure] = []
    start = time.perf_counter()
    for measure in measures:
        for figure in measure():
            say(figure.line())
            figures.append(figure)
    missed = sum(not figure.kept for figure in figures)
    say(f"{len(figures)} figures in {time.perf_counter() - start:.0f} s, {missed} bounds missed")
    device = f"CPU, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    content = [asdict(figure) | {"kept": figure.kept} for figure in figures]
    write_json(file, {"figures": content, "device": device, **provenance()})
    if missed:
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(exit_code(main))
