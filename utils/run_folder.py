"""The folder of a run and what every run records."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from utils.distributed import from_main, is_main, world_size
from utils.errors import ConfigError, UserError
from utils.output_files import PARTIAL, write_text
from utils.precision import pick_device

LOG = logging.getLogger(__name__)
LOCK_WAIT = 30  # seconds
SETTING = "OUTPUT_DIR, RUN_NAME"  # what names the folder of a run
CONFIG = "config.yaml"
RUN = "run.json"
NO_RESULT = (CONFIG, "train.log", "test.log", "events", "feature_bank")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")


def run_folder(cfg: CfgNode, config_file: str) -> Path:
    """OUTPUT_DIR / RUN_NAME, or a name made of the config's folder, the split and the time."""
    name = cfg.RUN_NAME
    if not name:
        stem = re.sub(r"\W+", "_", Path(config_file).resolve().parent.name)
        name = f"{stem}_split{cfg.DATASET.split}_{datetime.now():%Y%m%d-%H%M%S}"
    return Path(cfg.OUTPUT_DIR) / name


@contextmanager
def claimed(folder: Path, patience: int = LOCK_WAIT, *, setting: str = SETTING) -> Iterator[None]:
    """A block in which the folder is made and is its own, after `patience` seconds at most;
    all its processes call it. Where a UserError ends it before there is any result, folders that
    are new are removed. `setting` is what names it. ConfigError: it cannot be made, or another run
    is using it."""
    made, handle = [], None
    if is_main():
        with _faults_named(folder, setting):
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            handle = _lock(folder, patience, setting)
    made = from_main(made)
    try:
        yield
    except UserError:  # in any process: the main one may only miss the one that failed
        with suppress(OSError):  # another process has removed it, or the folder above is in use
            if folder in made and not _holds_results(folder):
                shutil.rmtree(folder, ignore_errors=True)
                for path in made[1:]:
                    path.rmdir()
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _lock(folder: Path, patience: int, setting: str) -> int:
    """Make and lock the folder; loader workers of a killed run hold its lock for some seconds."""
    for second in range(patience + 1):
        folder.resolve().mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # or the other run has removed the folder on its way out
            if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
                return handle
        except BlockingIOError:
            if second == 0:
                LOG.warning("waiting for another run that is using %s", folder)
        except OSError as error:  # some network file systems have no locks
            LOG.warning("%s cannot be locked (%s): start no other run", folder, error.strerror)
            return handle
        os.close(handle)
        if second < patience:
            time.sleep(1)
    raise ConfigError(f"{setting}: another run is using {folder}; choose another name, or end it")


def create_run_folder(
    folder: Path, cfg: CfgNode, *, reads: Sequence[str] = (), goes_on: bool = False
) -> None:
    """In the main process, write config.yaml into the folder, after all of an earlier run there has
    moved to `NAME.1`, `NAME.2` and so on beside it; where the run `goes_on`, its files stay.

    ConfigError: one of the files that the run `reads`, such as weights, lies there, or something
    else than one earlier run, or the folder lies in that of another run.
    """
    if not is_main():
        return
    reads = [*reads, cfg.TRAIN.dataset_path, cfg.TEST.dataset_path]
    if reason := _obstacle(folder, Path(cfg.OUTPUT_DIR), () if goes_on else reads):
        raise ConfigError(f"RUN_NAME: {reason}; choose another RUN_NAME")
    with _faults_named(folder):
        for path in folder.rglob(f".*{PARTIAL}"):
            path.unlink()
        if not goes_on and (folder / CONFIG).is_file():
            _make_room(folder)
    write_text(folder / CONFIG, cfg.dump())


def _obstacle(folder: Path, output: Path, reads: Sequence[str]) -> str:
    """Why the folder is none for a run, or must not be moved; "": it may. Without `reads` all
    stays."""
    for above in folder.parents:
        if above != output and above.is_relative_to(output) and (above / CONFIG).is_file():
            return f"{folder} lies in {above}, which is the folder of another run"
    if not reads or not folder.is_dir():
        return ""
    if (folder / CONFIG).is_file():
        for file in filter(None, reads):
            if Path(file).resolve().is_relative_to(folder.resolve()):
                return (f"{file}, which this run reads, lies in its folder {folder}, from where "
                        "the files of an earlier run would be moved")  # fmt: skip
        inner = next((path.parent for path in folder.rglob(f"*/{CONFIG}")), None)
        return f"{folder} holds another run, {inner}, which would be moved with it" if inner else ""
    for path in folder.iterdir():
        expected = path.name in NO_RESULT or path.name[0] == "."
        if path.is_dir() and not expected and any(path.iterdir()):
            return f"{folder} holds {path.name}/, but no {CONFIG}, so it is not of a run"
    return ""


def _make_room(folder: Path) -> None:
    """Move the content of an earlier run, which keeps the lock and a link to the folder; what a run
    without results has left is deleted."""
    if not _holds_results(folder):
        for path in (folder / name for name in NO_RESULT):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return
    place = folder.resolve()
    beside = (place.with_name(f"{place.name}.{number}") for number in count(1))
    earlier = next(path for path in beside if not os.path.lexists(path))
    earlier.mkdir()
    # the config at last, by which a move that is cut off is taken up again
    for path in sorted(place.iterdir(), key=lambda path: path.name == CONFIG):
        path.rename(earlier / path.name)
    LOG.warning("%s holds an earlier run, which has moved to %s", folder, earlier)


def _holds_results(folder: Path) -> bool:
    """Whether there is more than settings, log lines and what a run needs on its way."""
    files = (path for path in folder.rglob("*") if not path.is_dir() and path.suffix != PARTIAL)
    return any(file.relative_to(folder).parts[0] not in NO_RESULT for file in files)


@contextmanager
def _faults_named(folder: Path, setting: str = SETTING) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{folder} cannot be written ({error.strerror})"
        raise ConfigError(f"{setting}: {reason}; choose another place") from error


def run_facts(cfg: CfgNode, weights: str) -> dict[str, Any]:
    """The settings in every metrics file, and which `weights` the backbone has: nothing that
    differs between runs of one command."""
    data = cfg.DATASET
    return {"data_set": data.name, "split": data.split, "shot": data.shot, "seed": cfg.RNG_SEED,
            "backbone": cfg.TRAIN.backbone, "backbone_weights": weights}  # fmt: skip


def run_record(cfg: CfgNode, seconds: float, failed: Sequence[str]) -> dict[str, Any]:
    """The content of run.json, which differs between runs of one command."""
    device = pick_device(cfg.DEVICE)
    facts = {
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    return facts | ({"failed": list(failed)} if failed else {})


def provenance() -> dict[str, Any]:
    """Git revision, see `git_revision`, and versions (None: another build is installed)."""
    versions: dict[str, Any] = {"git_revision": git_revision(), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def git_revision() -> str | None:
    """Revision of the checkout of this code, with `+` where it has changes; None outside one."""
    folder = str(Path(__file__).resolve().parent)
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--dirty=+",
               "--exclude=*"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
