"""Protocols: `method_config/protocols/NAME.yaml` says which trainings and tests make up an experiment.

config: VISION_V1/SOFS.yaml               # relative to method_config/
shots: [1, 5]                             # supports per query, a test each
splits: {0: {KEY: VALUE, ...}, ...}       # settings of each split; left out where the data have none
train: {KEY: VALUE, ...}                  # settings of the trainings; left out where nothing is trained
test: {KEY: VALUE, ...}                   # settings of the tests
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from method_config import get_defaults
from method_config.values import hint, leaves, merge, read_yaml
from utils.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "method_config"
FOLDER = CONFIGS / "protocols"

Settings = dict[str, Any]  # full dotted key -> value


@dataclass(frozen=True)
class Protocol:
    """One experiment.

    Attributes:
        name: of the file, without suffix.
        config: YAML file that all runs start from.
        shots: supports per query; a test for each.
        splits: settings of the runs of each split; the one key None where there are no splits.
        train: settings of the trainings; None: nothing is trained.
        test: settings of the tests.
    """

    name: str
    config: Path
    shots: list[int]
    splits: dict[int | None, Settings]
    train: Settings | None
    test: Settings


def protocol_names() -> list[str]:
    """Names of the protocols that there are, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_protocol(name: str, folder: Path = FOLDER) -> Protocol:
    """The protocol of that name.

    Raises:
        ConfigError: no such file, or it does not hold what this module's text says.
    """
    file, known = folder / f"{name}.yaml", protocol_names()
    if not file.is_file():
        raise ConfigError(
            f"{name}: no such protocol; known: {', '.join(known)}. {hint(name, known, '')}".rstrip()
        )
    tree = read_yaml(file)
    strange = set(tree) - {f.name for f in fields(Protocol) if f.name != "name"}
    try:
        if strange or not tree["shots"]:
            raise ValueError(f"unknown: {', '.join(map(str, strange))}" if strange else "no shots")
        splits = {
            int(split): _settings(part, file) for split, part in tree.get("splits", {}).items()
        }
        return Protocol(
            name=name,
            config=CONFIGS / tree["config"],
            shots=[int(shot) for shot in tree["shots"]],
            splits=splits or {None: {}},
            train=_settings(tree["train"], file) if "train" in tree else None,
            test=_settings(tree.get("test"), file),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        form = "config (a file), shots (a list), and optionally splits, train, test (mappings)"
        raise ConfigError(
            f"{file}: {type(error).__name__}: {error}; a protocol holds {form}"
        ) from error


def _settings(part: Mapping[str, Any] | None, file: Path) -> Settings:
    """Settings by their dotted keys; keys and types are checked here, where the error can name the file."""
    settings = dict(leaves(part or {}))
    merge(get_defaults(), settings.items(), str(file))
    return settings
