"""Carry out the runs of a sweep; what an earlier call has finished is kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from method_config import load_config
from method_config.merge import get, leaves
from tools.checkpoint import AUTO, STATE, load_state
from tools.sweep.plan import CHECKPOINTS, LAST_HEAD, Run
from tools.tester import run_test
from tools.trainer import run_training
from utils.errors import ConfigError, WeightsError
from utils.logging import setup_logging
from utils.output_files import sha256_of
from utils.run_folder import RUN

LOG = logging.getLogger(__name__)
METRICS = "metrics.json"
HEAD_KEY, RESUME_KEY = "TEST.load_model_path", "TRAIN.resume"


def check_folders(runs: Sequence[Run]) -> None:
    """Compare the config.yaml of every run that is there already with that of the plan.

    Raises:
        ConfigError: they differ; names the first differing key.
    """
    for run in runs:
        file = run.folder / "config.yaml"
        if not file.is_file():
            continue
        found = load_config(file)
        for key, value in leaves(run.cfg):
            if get(found, key) != value and not _may_differ(run, key, get(found, key)):
                raise ConfigError(f"{file}: {key} is {get(found, key)!r}, but this sweep has {value!r}; choose another "
                                  "folder for it with --name, or repeat the earlier settings")  # fmt: skip


def _may_differ(run: Run, key: str, found: Any) -> bool:
    """A training that went on says so; a test names either of the heads that its training keeps."""
    if key == HEAD_KEY and run.training:
        return Path(found).parent == run.training.head.parent
    return key == RESUME_KEY


def carry_out(runs: Sequence[Run]) -> None:
    """Do, in their order, all runs that are not finished.

    A training is left out, too, where all its tests are there. One that was cut off goes on where it was.
    Tests that are older than their training, or of another head than it holds, are done again.
    """
    for number, run in enumerate(runs, 1):
        setup_logging()  # on the console alone: the last run's log file is closed
        tests = [test for test in runs if test.training is run]
        if is_finished(run):
            LOG.info("%d of %d, %s: kept, it is finished", number, len(runs), run.folder)
        elif run.trains and all(is_finished(test) for test in tests):
            LOG.info(
                "%d of %d, %s: not needed, its tests are finished", number, len(runs), run.folder
            )
        elif run.trains:
            LOG.info("%d of %d, %s: training", number, len(runs), run.folder)
            run_training(_with(run.cfg, RESUME_KEY, AUTO), str(run.file))
            for test in tests:
                (test.folder / METRICS).unlink(missing_ok=True)
        else:
            LOG.info("%d of %d, %s: test", number, len(runs), run.folder)
            run_test(
                _with(run.cfg, HEAD_KEY, str(run.training.head)) if run.training else run.cfg,
                str(run.file),
            )
    setup_logging()


def is_finished(run: Run) -> bool:
    """Whether a run's folder holds all that it was to leave there.

    Of a test the metrics of all that was to be tested, with the head that its training holds now; of a training the
    head, trained for all epochs, and validated where the config asks for it.
    """
    if not run.trains:
        return _is_tested(run)
    if not (run.folder / CHECKPOINTS / LAST_HEAD).is_file():
        return False
    return _epochs_done(run) >= run.cfg.TRAIN_SETUPS.epochs


def _is_tested(run: Run) -> bool:
    ended, metrics = _json(run.folder / RUN), _json(run.folder / METRICS)
    if not metrics or not ended or ended.get("failed"):
        return False
    head = run.training.head if run.training else Path()
    return not head.is_file() or metrics.get("head_sha256") == sha256_of(head)


def _json(file: Path) -> dict[str, Any]:
    """Content of a file; nothing where there is none, or none that can be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _state(run: Run) -> Path:
    return run.folder / STATE


def _epochs_done(run: Run) -> int:
    if not _state(run).is_file():
        return 0
    try:
        return load_state(_state(run))["epoch"]
    except WeightsError as error:
        raise WeightsError(
            f"{_state(run)}: no readable training state; remove {run.folder} to train anew"
        ) from error


def _with(cfg: CfgNode, key: str, value: str) -> CfgNode:
    """A frozen copy with another value."""
    changed = cfg.clone()
    changed.defrost()
    section, _, name = key.rpartition(".")
    get(changed, section)[name] = value
    changed.freeze()
    return changed
