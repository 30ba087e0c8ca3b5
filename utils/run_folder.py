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
from utils.output_files import PARTIAL, remove_partial, write_json, write_text
from utils.precision import pick_device

LOG = logging.getLogger(__name__)
LOCK_WAIT = 30  # seconds
CONFIG = "config.yaml"
RUN = "run.json"
_LOCKS: dict[Path, int] = {}  # open handles of the folders that this process has locked
BY_THE_WAY = (
    CONFIG,
    "train.log",
    "test.log",
    "events",
    "feature_bank",
)  # what of a run is no result

PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")


def run_folder(cfg: CfgNode, config_file: str) -> Path:
    """OUTPUT_DIR / RUN_NAME, or a name made of the config's folder, the split and the time; not created yet."""
    name = cfg.RUN_NAME
    if not name:
        stem = re.sub(r"\W+", "_", Path(config_file).resolve().parent.name)
        name = f"{stem}_split{cfg.DATASET.split}_{datetime.now():%Y%m%d-%H%M%S}"
    return Path(cfg.OUTPUT_DIR) / name


def create_run_folder(
    folder: Path, cfg: CfgNode, *, reads: Sequence[str] = (), goes_on: bool = False
) -> None:
    """Make the folder this run's alone and write config.yaml. Only the main process does; others may call it, too.

    An earlier run that is there moves as a whole to `NAME.1`, `NAME.2` and so on beside it.

    Args:
        folder: of the run.
        cfg: the config.
        reads: files that the run reads, such as weights.
        goes_on: the run is the earlier one, resumed, and its files stay.

    Raises:
        ConfigError: a file that is read lies there, or something else than one earlier run; it lies in another run's.
        OutputError: it cannot be written.
    """
    if not is_main():
        return
    for above in folder.parents:
        if (
            above.is_relative_to(cfg.OUTPUT_DIR)
            and (above / CONFIG).is_file()
            and above != Path(cfg.OUTPUT_DIR)
        ):
            raise ConfigError(f"RUN_NAME: {folder} lies in {above}, which is the folder of another run; choose "
                              "another RUN_NAME")  # fmt: skip
    remove_partial(folder)
    if not goes_on and folder.is_dir():
        _refuse_other_folders(folder, [*reads, cfg.TRAIN.dataset_path, cfg.TEST.dataset_path])
        if (folder / CONFIG).is_file():
            _make_room(folder)
    write_text(folder / CONFIG, cfg.dump())


def _refuse_other_folders(folder: Path, reads: Sequence[str]) -> None:
    """Raises ConfigError where the folder holds what is read, other runs, or what is no run."""
    remedy = "choose another RUN_NAME"
    if (folder / CONFIG).is_file():
        for file in filter(None, reads):
            if Path(file).resolve().is_relative_to(folder.resolve()):
                raise ConfigError(f"RUN_NAME: {file}, which this run reads, lies in its folder {folder}, where the "
                                  f"files of an earlier run make room; {remedy}")  # fmt: skip
        if inner := next((path.parent for path in folder.rglob(f"*/{CONFIG}")), None):
            raise ConfigError(
                f"RUN_NAME: {folder} holds another run, {inner}, which would be moved with it; {remedy}"
            )
    else:
        found = (
            path
            for path in folder.iterdir()
            if path.is_dir() and path.name[0] != "." and any(path.iterdir())
        )
        if other := next((path for path in found if path.name not in BY_THE_WAY), None):
            raise ConfigError(f"RUN_NAME: {folder} holds {other.name}/, but no {CONFIG}, so it is not of a run; "
                              f"{remedy}")  # fmt: skip


def _make_room(folder: Path) -> None:
    """Move an earlier run into a folder of its own; if it has found nothing, delete what it left."""
    try:
        if not _holds_results(folder):
            for path in (folder / name for name in BY_THE_WAY):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return
        place = folder.resolve()  # a link to it stays
        beside = (place.with_name(f"{place.name}.{number}") for number in count(1))
        earlier = next(path for path in beside if not os.path.lexists(path))
        place.rename(earlier)
    except OSError as error:
        raise _unfit(folder, error) from error
    if folder in _LOCKS:
        os.close(_LOCKS.pop(folder))
        _lock(folder, patience=1)
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
    if is_main():
        _lock(folder, patience)
    try:
        yield
    except UserError:  # of any process: the main one may only miss it
        _discard(made, folder)
        raise
    finally:
        if is_main():
            os.close(_LOCKS.pop(folder))


def _not_there(folder: Path) -> list[Path]:
    """The folder and those above it that are still to be made."""
    try:
        return [path for path in (folder, *folder.parents) if not path.exists()]
    except OSError as error:  # a name that is too long
        raise _unfit(folder, error) from error


def _unfit(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"OUTPUT_DIR, RUN_NAME: {folder} cannot be written ({error.strerror}); choose another place"
    )


def _lock(folder: Path, patience: int) -> None:
    """Make the folder and lock it for as long as the handle is open; loader workers of a killed run hold it for some
    seconds."""
    waits = 0
    while True:
        try:
            folder.resolve().mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise _unfit(folder, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if waits == patience:
                raise ConfigError(
                    f"RUN_NAME: another run goes on in {folder}; choose another name, or end it"
                ) from None
            if waits == 0:
                LOG.warning("waiting for another run that ends in %s", folder)
            waits += 1
            time.sleep(1)
            continue
        except OSError as error:  # some network file systems
            LOG.warning(
                "%s cannot be locked (%s): start no other run in it", folder, error.strerror
            )
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            _LOCKS[folder] = handle
            return
        os.close(handle)  # another run has moved or removed it meanwhile


def _discard(made: list[Path], folder: Path) -> None:
    with suppress(OSError):  # another process may do the same; a folder that is not empty stays
        if folder in made and not _holds_results(folder):
            shutil.rmtree(folder, ignore_errors=True)
            for path in made[1:]:
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
def recorded(cfg: CfgNode, folder: Path) -> Iterator[list[str]]:
    """Write run.json where the block ends without an error: when, how long, in how many processes, on what, and what
    failed, which the block adds to the list. The same command gives the same metrics.json, byte for byte; what differs
    from run to run is kept apart from it."""
    start, failed = time.perf_counter(), list[str]()
    yield failed
    if not is_main():
        return
    device = pick_device(cfg.DEVICE)
    facts = {
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "processes": world_size(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    write_json(folder / RUN, facts | ({"failed": failed} if failed else {}))


def provenance() -> dict[str, Any]:
    """Git revision (None outside a checkout, `+` after it for uncommitted changes) and versions (None: not installed,
    such as where another build of OpenCV took the place of opencv-python-headless)."""
    return {"git_revision": git_revision(), "python": platform.python_version()} | {
        p: _version(p) for p in PACKAGES
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Revision of the checkout that this code runs from."""
    where = Path(__file__).resolve().parent
    command = [
        "git",
        "-C",
        str(where),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+",
        "--exclude=*",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if found.returncode == 0 else None
