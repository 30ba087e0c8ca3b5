"""Settings: `load_config` merges defaults, YAML files and command line, checks and freezes them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from method_config.checks import check_config
from method_config.defaults import get_defaults
from method_config.values import leaves, merge, read_yaml, shown
from utils.errors import ConfigError

__all__ = ["add_config_arguments", "get_defaults", "load_config"]


def load_config(path: str | Path | Sequence[str | Path], opts: Sequence[Any] = ()) -> CfgNode:
    """Merge defaults, the YAML files in their order, then `opts`; check every value; freeze.

    Args:
        path: a YAML file of differences from the defaults, or several, of which a later one wins.
        opts: KEY VALUE KEY VALUE ..., keys in full ("TRAIN.SOFS.smooth_r"). Text is read as YAML,
            without evaluation; keys that hold text take it as it is.

    Returns the frozen tree, whose `dump()` loads again to an equal one. An unreadable file, unknown
    key, wrong type or impossible value raises a `utils.errors.ConfigError`.
    """
    files = [path] if isinstance(path, str | Path) else path
    parts = [(str(file), leaves(read_yaml(Path(file).expanduser()))) for file in files]
    if len(opts) % 2:
        fault = f"--opts takes KEY VALUE pairs, but {shown(opts[-1])} stands alone."
        raise ConfigError(f"command line: {fault}")
    parts.append(("command line", zip(map(str, opts[::2]), opts[1::2], strict=True)))
    cfg, sources = get_defaults(), {}
    for source, pairs in parts:
        sources |= dict.fromkeys(merge(cfg, pairs, source), source)
    check_config(cfg, sources)
    cfg.freeze()
    return cfg


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add --cfg FILE ... and --opts KEY VALUE ..., the arguments of `load_config`, to `parser`; a
    `cfg` that is not required is None where it is not given."""
    several = {"nargs": "+", "action": "extend", "metavar": "FILE"}
    parser.add_argument("--cfg", required=required, help="YAML files; a later one wins", **several)
    text = "settings that win over the files, e.g. --opts DATASET.split 1 TRAIN.SOFS.smooth_r 1"
    several |= {"nargs": "*", "metavar": "KEY VALUE"}
    parser.add_argument("--opts", default=[], help=text, **several)
