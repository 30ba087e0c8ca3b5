"""The folder of a run and what every run records."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from utils.errors import ConfigError, UserError
from utils.files import write_json, write_text
from utils.precision import pick_device

PACKAGES = ("torch", "torchvision", "timm", "numpy", "opencv-python-headless", "pillow")


def run_folder(cfg: CfgNode, config_file: str) -> Path:
    """OUTPUT_DIR / RUN_NAME, or a name made of the config's folder, the split and the time; not created yet."""
    name = cfg.RUN_NAME
    if not name:
        stem = re.sub(r"\W+", "_", Path(config_file).resolve().parent.name)
        name = f"{stem}_split{cfg.DATASET.split}_{datetime.now():%Y%m%d-%H%M%S}"
    return Path(cfg.OUTPUT_DIR) / name


def create_run_folder(folder: Path, cfg: CfgNode) -> None:
    """Make the folder and write config.yaml.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", cfg.dump())
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR, RUN_NAME: {folder} cannot be written ({error.strerror})") from error


@contextmanager
def discard_on_error(folder: Path) -> Iterator[None]:
    """Remove the folder again where the block made it and a UserError ends the block before the first checkpoint."""
    is_new = not folder.exists()
    try:
        yield
    except UserError:
        if is_new and not (folder / "checkpoints").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


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
def recorded(cfg: CfgNode, folder: Path, processes: int) -> Iterator[None]:
    """Write run.json where the block ends without an error: when, how long, in how many processes and on what. The
    same command gives the same metrics.json, byte for byte; what differs from run to run is kept apart from it."""
    start = time.perf_counter()
    yield
    device = pick_device(cfg.DEVICE)
    facts = {
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "processes": processes,
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
