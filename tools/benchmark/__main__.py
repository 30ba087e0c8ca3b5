"""Measure what inference and training cost, and hold it against bounds.

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
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from method_config import load_config
from models.runtime import RUNTIMES
from tools.benchmark import inference
from tools.benchmark.figures import Figure
from tools.benchmark.runtimes import measure_runtimes
from tools.benchmark.training import measure_training
from tools.cli import exit_code
from utils.console import say
from utils.output_files import write_json
from utils.run_folder import provenance

CONFIGS = Path(__file__).parents[2] / "method_config"
CONFIG, GENERAL = (CONFIGS / name / "SOFS.yaml" for name in ("Open_Domain", "General"))
RANDOM = {"TRAIN.backbone_load_state_dict": False, "TEST.load_checkpoint": False}
RANDOM |= {"TRAIN.precision": "auto"}
SMALL = {f"DATASET.{name}": 168 for name in ("image_size", "mask_size", "crop_size")}
SMALL |= {"TRAIN.backbone": "dinov2_vits14"}
ALONE = {"NUM_GPUS": 1, "TRAIN_SETUPS.num_workers": 2, "TRAIN.feature_bank": 2}
LIGHT = {"TRAIN.backbone": "efficientnet_lite0", "TRAIN.SOFS.vit_patch_size": 8,
         "TRAIN.SOFS.prior_layer_pointer": [1, 2, 3], "DATASET.image_size": 256,
         "DATASET.mask_size": 256}  # fmt: skip
ENCODERS = [*({"TRAIN.backbone": name} for name in ("dinov2_vits14", "dinov2_vitb14")), LIGHT]
WINDOW = 518  # native pixels of the larger images' windows, so that their number stays small
SECTIONS = ("published", "inference", "runtimes", "growth", "training")
Measure = Callable[[], list[Figure]]


def sections(quick: bool, opts: list[str]) -> dict[str, list[Measure]]:
    """The measurements at the sizes that users have, or small ones in a minute or two."""

    def config(changes: dict[str, Any], file: Path = CONFIG) -> CfgNode:
        return load_config(file, [*chain(*(RANDOM | changes).items()), *opts])

    cfg = config(SMALL if quick else {})
    wide = cfg if quick else config({"DATASET.crop_size": WINDOW})
    batch = {"TRAIN_SETUPS.batch_size": 2 if quick else 1}
    training = config((SMALL if quick else {}) | ALONE | batch)
    bounds, slack = ((3, 3), 2) if quick else ((1.25, 1.10), 1)
    images = [(cfg, (256, 1600), 2 if quick else 5)]
    images += [] if quick else [(wide, (1080, 1920), 3), (wide, (2748, 3840), 2)]
    size, repeats, least = ((168, 600), 1, 2) if quick else ((256, 1600), 2, 9)
    most_windows, supports, iterations = (32, 4, 3) if quick else (200, 20, 8)
    inferences = [
        partial(inference.measure_inference, c, s, repeats=n, most=bounds) for c, s, n in images
    ]
    general = config(SMALL | {"TEST.support_tokens": 512} if quick else {}, GENERAL)
    times, most = (3, 3) if quick else (24, 1.15)
    head = partial(inference.measure_windows, general, repeats=times, most=most)
    published = partial(inference.measure_published, cfg, size, repeats=repeats, least=least)
    growth = partial(inference.measure_growth, wide, (4, 7, most_windows), slack=slack)
    more = partial(inference.measure_supports, cfg, supports, 8, slack=slack)
    trained = partial(measure_training, training, iterations=iterations, slack=slack)
    tiny = [(cfg, (168, 336), 1)]
    runtimes = [partial(measure_runtimes, tiny, RUNTIMES[:1], int8=False)] if quick else []
    for changes in () if quick else ENCODERS:
        near, far = (config(changes | {"DATASET.crop_size": side}) for side in (256, WINDOW))
        far = near if changes is LIGHT else far
        at = [(near, (256, 1600), 3), (far, (1080, 1920), 2), (far, (2748, 3840), 1)]
        runtimes.append(partial(measure_runtimes, at, int8=True))
    measures = ([published], [head, *inferences], runtimes, [growth, more], [trained])
    return dict(zip(SECTIONS, measures, strict=True))


def hold(measures: Iterable[Measure], file: Path) -> None:
    """Measure, print a line per figure as it comes, and write all as JSON.

    Raises SystemExit with 1 if a bound is missed.
    """
    figures: list[Figure] = []
    start = time.perf_counter()
    for figure in chain.from_iterable(measure() for measure in measures):
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m tools.benchmark", description=__doc__)
    add, to = parser.add_argument, Path("log/benchmark.json")
    add("--quick", action="store_true", help="small sizes, generous bounds on time")
    add("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="some of the sections")
    add("--json", type=Path, default=to, help="file to write")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="settings that win")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    available = sections(args.quick, args.opts)
    hold(chain.from_iterable(available[name] for name in args.only), args.json)


if __name__ == "__main__":
    sys.exit(exit_code(main))
