"""What every job of train.py and test.py has around it: its processes, its folder, its report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from yacs.config import CfgNode

from models.build import check_model
from tools.report import write_report
from utils.distributed import barrier, from_main, is_main
from utils.errors import DataError
from utils.launch import launch
from utils.logging import setup_logging
from utils.run_folder import claimed, create_run_folder, recorded, run_folder

LOG = logging.getLogger(__name__)
Job = Callable[
    [CfgNode, Path], Sequence[str] | None
]  # what failed beside what was written, for people


def run_job(job: Job, cfg: CfgNode, config_file: str, processes: int) -> Path:
    """Run `job(cfg, folder)` in one or many processes, see `utils.launch.launch`; returns the run's folder.

    Args:
        job: a module-level function.
        cfg: the config.
        config_file: whose folder names a run without RUN_NAME.
        processes: how many, unless torchrun has started them.

    Raises:
        UserError: what ends the job; DataError: a part of it failed, and the results of the rest are written.
    """
    check_model(cfg)
    return launch(_in_folder, processes, cfg.DIST_BACKEND, job, cfg, config_file)


def _in_folder(job: Job, cfg: CfgNode, config_file: str) -> Path:
    setup_logging()
    folder = from_main(run_folder(cfg, config_file))  # the name may hold the time
    with claimed(folder):
        with recorded(cfg, folder) as failed:
            failed += job(cfg, folder) or []
        if is_main():
            for fault in failed:
                LOG.error("%s", fault)
            write_report(folder)
    if failed:
        raise DataError(f"{'; '.join(failed)} (the results of the rest are in {folder})")
    return folder


def begin(
    folder: Path, cfg: CfgNode, log: str, *, reads: Sequence[str] = (), goes_on: bool = False
) -> None:
    """Make the folder this run's alone, see `utils.run_folder.create_run_folder`, and log into its file `log`; all processes
    call it."""
    create_run_folder(folder, cfg, reads=reads, goes_on=goes_on)
    barrier()  # or another process would log into a folder that makes room
    setup_logging(folder / log)
