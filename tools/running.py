"""What every job of train.py and test.py has around it: its processes, its folder, its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from yacs.config import CfgNode

from models.build import check_model
from tools.report import write_report
from utils.distributed import barrier, from_main, is_main, launch
from utils.errors import DataError
from utils.logging import setup_logging
from utils.output_files import write_json
from utils.run_folder import RUN, claimed, create_run_folder, run_folder, run_record

LOG = logging.getLogger(__name__)
Job = Callable[[CfgNode, Path], Sequence[str] | None]  # returns a line for each part that failed


def run_job(job: Job, cfg: CfgNode, config_file: str, processes: int) -> Path:
    """Run `job(cfg, folder)` in one or many processes, see `launch`; returns its folder, which
    `config_file` names where RUN_NAME does not. DataError: a part of it failed, the results of the
    rest are written."""
    check_model(cfg)
    return launch(_in_folder, processes, cfg.DIST_BACKEND, job, cfg, config_file)


def _in_folder(job: Job, cfg: CfgNode, config_file: str) -> Path:
    setup_logging()
    folder, start = from_main(run_folder(cfg, config_file)), time.perf_counter()
    with claimed(folder):
        failed = job(cfg, folder) or []
        if is_main():
            write_json(folder / RUN, run_record(cfg, time.perf_counter() - start, failed))
            for line in failed:
                LOG.error("%s", line)
            write_report(folder)
    if failed:
        raise DataError(f"{'; '.join(failed)} (the results of the rest are in {folder})")
    return folder


def begin(
    folder: Path, cfg: CfgNode, log: str, *, reads: Sequence[str] = (), goes_on: bool = False
) -> None:
    """Start to write, in all processes: make room in the folder, see `create_run_folder`, and log
    into its file `log`."""
    create_run_folder(folder, cfg, reads=reads, goes_on=goes_on)
    barrier()  # or another process would log into a folder that makes room
    setup_logging(folder / log)
