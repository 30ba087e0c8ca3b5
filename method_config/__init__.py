"""Settings of the program: `load_config` merges defaults, YAML files and command line, checks and freezes them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from method_config.checks import check_config
from method_config.defaults import get_defaults
from method_config.values import decode_opts, expand_paths, leaves, merge, read_yaml

__all__ = ["add_config_arguments", "check_config", "get_defaults", "load_config"]


def load_config(path: str | Path | Sequence[str | Path], opts: Sequence[Any] = ()) -> CfgNode:
    """Merge defaults, then the YAML file or files in their order, then `opts`; check every value; freeze.

    Args:
        path: a YAML file of differences from the defaults, or several, of which a later one wins.
        opts: KEY VALUE KEY VALUE ..., keys in full ("TRAIN.SOFS.smooth_r"). Text is read as YAML, without evaluation;
            keys that hold a string take it as it is.

    Returns:
        The frozen tree. Its `dump()`, written to a file, loads again to an equal tree.

    Raises:
        utils.errors.ConfigError: for an unreadable file, an unknown key, a wrong type or an impossible value.
    """
    cfg, sources = get_defaults(), {}
    for file in [path] if isinstance(path, str | Path) else path:
        sources |= dict.fromkeys(
            merge(cfg, leaves(read_yaml(Path(file).expanduser())), str(file)), str(file)
        )
    sources |= dict.fromkeys(merge(cfg, decode_opts(cfg, opts), "command line"), "command line")
    expand_paths(cfg)
    check_config(cfg, sources)
    cfg.freeze()
    return cfg


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --cfg FILE [FILE ...] and --opts KEY VALUE [KEY VALUE ...], the arguments of `load_config`, to `parser`."""
    parser.add_argument(
        "--cfg",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="YAML files; a later one wins",
    )
    parser.add_argument(
        "--opts",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings that win over the files, e.g. --opts DATASET.split 1 TRAIN.SOFS.smooth_r 1",
    )
