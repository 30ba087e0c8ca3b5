"""The test job: measure on the test objects of a split, or segment open domain objects."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from datasets.build import build_test_index, view_settings
from datasets.samples import SampleIndex
from tools.evaluator import Evaluation, Protocol, evaluate
from tools.open_domain import OPEN_DOMAIN_NAME, segment_open_domain
from tools.predictor import Predictor
from utils.distributed import is_main, launch
from utils.logging import setup_logging
from utils.run import create_run_folder, discard_on_error, provenance, run_folder, write_json

LOG = logging.getLogger(__name__)


def run_test(cfg: CfgNode, config_file: str) -> Path:
    """Run test.py's job in NUM_GPUS processes; returns the run's folder."""
    folder = run_folder(cfg, config_file)
    with discard_on_error(folder):
        if cfg.DATASET.name.startswith(OPEN_DOMAIN_NAME):
            segment_open_domain(cfg, folder)
        else:
            launch(test_split, cfg.NUM_GPUS, cfg.DIST_BACKEND, cfg, folder)
    return folder


def test_split(cfg: CfgNode, folder: Path) -> None:
    """Evaluate every test set of the config and write log, metrics and figures into `folder`."""
    setup_logging()
    indices = {name: build_test_index(cfg, name) for name in cfg.DATASET.sub_datasets}
    predictor = Predictor.from_config(cfg)
    if is_main():
        create_run_folder(folder, cfg)
        setup_logging(folder / "test.log")
    for name, index in indices.items():
        suffix = "" if name == "original" else f"_{name}"
        evaluation = test_index(cfg, predictor, index, folder / f"figures{suffix}")
        if is_main():
            record(cfg, evaluation, folder / f"metrics{suffix}.json", f"test of {name}")


def test_index(cfg: CfgNode, predictor: Predictor, index: SampleIndex, figures: Path | None) -> Evaluation:
    """Evaluate one index by the protocol of the config."""
    for note in index.notes:
        LOG.info("%s", note)
    LOG.info("%d samples of %d classes in %s", len(index), len(index.classes()), index.root)
    visualize = cfg.TEST.VISUALIZE
    protocol = Protocol(
        shot=cfg.DATASET.shot,
        seed=cfg.RNG_SEED,
        repeats=cfg.DATASET.few_shot_repeated_multiple,
        multiple=cfg.DATASET.test_sample_repeated_multiple,
        scale_by=cfg.TEST.query_scale,
        num_workers=cfg.TRAIN_SETUPS.num_workers,
        batch_size=cfg.TEST_SETUPS.batch_size,
        figures=figures if visualize.save_figure else None,
        figure_probability=visualize.sample_prob,
    )
    return evaluate(predictor, index, view_settings(cfg), protocol)


def record(cfg: CfgNode, evaluation: Evaluation, file: Path, title: str, **more: Any) -> None:
    """Log the table and write the metrics of a test."""
    LOG.info("%s, split %d, %d-shot\n%s", title, cfg.DATASET.split, cfg.DATASET.shot, evaluation.table())
    settings = {
        "data_set": cfg.DATASET.name,
        "split": cfg.DATASET.split,
        "shot": cfg.DATASET.shot,
        "seed": cfg.RNG_SEED,
        "backbone": cfg.TRAIN.backbone,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(file, settings | evaluation.report() | more | provenance())
    LOG.info("figures and metrics in %s", file.parent)
