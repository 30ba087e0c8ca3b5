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
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from utils.distributed import barrier, from_main, is_main, world_size
from utils.errors import ConfigError, UserError
from utils.files import PARTIAL, remove_partial, write_json, write_text
from utils.precision import pick_device

LOG = logging.getLogger(__name__)
LOCK_WAIT = 30  # seconds
CONFIG = "config.yaml"
BY_THE_WAY = (CONFIG, "train.log", "test.log", "events", "feature_bank")  # what of a run is no result

PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")


def run_folder(cfg: CfgNode, config_file: str) -> Path:
    """OUTPUT_DIR / RUN_NAME, or a name made of the config's folder, the split and the time; not created yet."""
    name = cfg.RUN_NAME
    if not name:
        stem = re.sub(r"\W+", "_", Path(config_file).resolve().parent.name)
        name = f"{stem}_split{cfg.DATASET.split}_{datetime.now():%Y%m%d-%H%M%S}"
    return Path(cfg.OUTPUT_DIR) / name


def create_run_folder(folder: Path, cfg: CfgNode, *, reads: Sequence[str] = (), goes_on: bool = False) -> None:
    """Make the folder this run's alone and write config.yaml; all processes of the run call it.

    The results of an earlier run that are there move into a folder beside it, `NAME.1`, `NAME.2` and so on.

    Args:
        folder: of the run.
        cfg: the config.
        reads: files that the run reads, such as weights.
        goes_on: the run is the earlier one, resumed, and its files stay.

    Raises:
        ConfigError: a file that is read lies there.
        OutputError: it cannot be written.
    """
    if is_main():
        if not goes_on and (folder / CONFIG).is_file():
            for file in reads:
                if Path(file).resolve().is_relative_to(folder.resolve()):
                    raise ConfigError(f"RUN_NAME: {file}, which this run reads, lies in its folder {folder}, where the "
                                      "files of an earlier run make room; choose another RUN_NAME")  # fmt: skip
            _make_room(folder)
        write_text(folder / CONFIG, cfg.dump())
        remove_partial(folder)
    barrier()


def _make_room(folder: Path) -> None:
    """Move what an earlier run has found into a folder of its own; if it has found nothing, delete what it left."""
    try:
        if not _holds_results(folder):
            for path in (folder / name for name in BY_THE_WAY):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return
        beside = (folder.with_name(f"{folder.name}.{number}") for number in count(1))
        earlier = next(path for path in beside if not path.exists())
        earlier.mkdir()
        for path in folder.iterdir():
            path.rename(earlier / path.name)
    except OSError as error:
        raise _unfit(folder, error) from error
    LOG.warning("%s holds an earlier run, which is in %s from here on", folder, earlier)


def _holds_results(folder: Path) -> bool:
    """Whether there is more than settings, log lines and what a run needs on its way."""
    files = (path for path in folder.rglob("*") if not path.is_dir() and path.suffix != PARTIAL)
    return any(file.relative_to(folder).parts[0] not in BY_THE_WAY for file in files)


@contextmanager
def claimed(folder: Path, patience: int = LOCK_WAIT) -> Iterator[None]:
    """A block in which the folder is this run's alone; all its processes call it.

    What is new of the folder and those above it goes again where a UserError ends the block before any result is
    there.

    Args:
        folder: of the run.
        patience: seconds to wait for another run to end.

    Raises:
        ConfigError: the folder cannot be made, or another run goes on in it.
    """
    made = from_main(_not_there(folder))
    lock = _lock(folder, patience) if is_main() else None
    try:
        yield
    except UserError:  # of any process: the main one may only miss it
        _discard(made, folder)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _not_there(folder: Path) -> list[Path]:
    """The folder and those above it that are still to be made."""
    try:
        return [path for path in (folder, *folder.parents) if not path.exists()]
    except OSError as error:  # a name that is too long
        raise _unfit(folder, error) from error


def _unfit(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"OUTPUT_DIR, RUN_NAME: {folder} cannot be written ({error.strerror}); choose another place")


def _lock(folder: Path, patience: int) -> int:
    """Make the folder and lock it for as long as the handle is open; loader workers of a killed run hold it for some
    seconds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise _unfit(folder, error) from error
    for second in range(patience):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if second == 0:
                LOG.warning("waiting for another run that ends in %s", folder)
            time.sleep(1)
        except OSError as error:  # some network file systems
            LOG.warning("%s cannot be locked (%s): start no other run in it", folder, error.strerror)
            return handle
    os.close(handle)
    raise ConfigError(f"RUN_NAME: another run goes on in {folder}; choose another name, or end it")


def _discard(made: list[Path], folder: Path) -> None:
    if folder not in made or _holds_results(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for path in made[1:]:
        if not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()


def run_facts(cfg: CfgNode) -> dict[str, Any]:
    """What every metrics file says of its test: nothing that another run of the same command would not say."""
    return {
        "data_set": cfg.DATASET.name,
        "split": cfg.DATASET.split,
        "shot": cfg.DATASET.shot,
        "seed": cfg.RNG_SEED,
        "backbone": cfg.TRAIN.backbone,
    }


@contextmanager
def recorded(cfg: CfgNode, folder: Path) -> Iterator[None]:
    """Write run.json where the block ends without an error: when, how long, in how many processes and on what. The
    same command gives the same metrics.json, byte for byte; what differs from run to run is kept apart from it."""
    start = time.perf_counter()
    yield
    if not is_main():
        return
    device = pick_device(cfg.DEVICE)
    facts = {
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    write_json(folder / "run.json", facts)


def provenance() -> dict[str, Any]:
    """Git revision (None outside a checkout, `+` after it for uncommitted changes) and versions (None: not installed,
    such as where another build of OpenCV took the place of opencv-python-headless)."""
    return {"git_revision": git_revision(), "python": platform.python_version()} | {p: _version(p) for p in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Revision of the checkout that this code runs from."""
    where = Path(__file__).resolve().parent
    command = ["git", "-C", str(where), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
