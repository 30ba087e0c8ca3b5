"""Values from YAML files and the command line: read, converted to a key's type, put in the tree."""

from __future__ import annotations

import difflib
import functools
import math
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from method_config.defaults import PATH_ENDINGS, WORDS, get_defaults
from method_config.published import REPLACED, WITHOUT_EFFECT
from utils.errors import ConfigError

_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # ValueError: not UTF-8
_LONGEST = 200  # characters of a value that an error shows
_TYPES = {bool: "True or False", int: "an integer", float: "a finite number"}
_TYPES[str] = "a string (quote it in YAML)"


def shown(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    return repr(value)[:_LONGEST]


def hint(word: str, options: Iterable[str], otherwise: str) -> str:
    """The sentence that ends an error about an unknown word: the nearest option, or `otherwise`.

    Dotted keys are compared whole, then by their last part, which finds a key of another section.
    """
    whole = {option.lower(): option for option in options}
    last = {option.rpartition(".")[2]: name for option, name in whole.items()}
    word = word[:_LONGEST].lower()
    for text, names in ((word, whole), (word.rpartition(".")[2], last)):
        if near := difflib.get_close_matches(text, names, 1):
            return f"Did you mean {names[near[0]]}?"
    return otherwise


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full dotted key, value) of a nested mapping; an empty mapping counts as a value."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def get(cfg: CfgNode, key: str) -> Any:
    """The value, or the section, at a full dotted key; KeyError where there is none."""
    return functools.reduce(operator.getitem, key.split("."), cfg)


def expanded(path: str) -> str:
    """A path with the home folder for `~` or `~user` and values of the environment for `$NAME`."""
    return os.path.expanduser(os.path.expandvars(path))


# Key -> a value of its type.
SCHEMA = dict(leaves(get_defaults())) | WITHOUT_EFFECT


def coerce(key: str, value: Any, source: str) -> Any:
    """`value` in the type of its key, paths written out; ConfigError for one of another type."""
    default = SCHEMA[key]
    several = isinstance(default, list)
    kind = type((default or [""])[0] if several else default)
    try:
        if key in WORDS and value == WORDS[key]:
            return value
        values = [_scalar(item, kind) for item in (_elements(value) if several else [value])]
    except (TypeError, OverflowError, *_NOT_YAML) as error:
        wanted = ("a list, each element " if several else "") + _TYPES[kind]
        wanted += f", or {WORDS[key]}" if key in WORDS else ""
        raise ConfigError(f"{source}: {key} is {shown(value)}, but it takes {wanted}.") from error
    if kind is str and key.endswith(PATH_ENDINGS):
        values = [expanded(path) for path in values]
    return values if several else values[0]


def _elements(value: Any) -> Sequence[Any]:
    """The elements of a list; as text it is [a, b], (a, b), one element alone, or nothing."""
    if isinstance(value, str):
        value = value.strip()
        if value[:1] + value[-1:] in ("()", "[]"):
            # this loader leaves every element text: an object may be called 007
            value = yaml.load(f"[{value[1:-1]}]", yaml.BaseLoader)  # noqa: S506
    if value is None or value == "":
        return []
    return value if isinstance(value, list | tuple) else [value]


def _scalar(value: Any, kind: type) -> Any:
    """`value` as a bool, int, float or str; TypeError or ValueError if it is none."""
    if kind is str:
        value = "" if value is None else value  # a key left empty in YAML
    elif isinstance(value, str):
        value = yaml.safe_load(value)
    right = isinstance(value, kind)
    if kind in (int, float):
        value = float(value) if isinstance(value, str) else value  # YAML 1.1 reads 1e-5 as text
        right = not isinstance(value, bool) and math.isfinite(value) and kind(value) == value
    if not right:
        raise TypeError(f"not of type {kind.__name__}")
    return kind(value)


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice: YAML would silently drop the first value."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        names = [key.value for key, _ in node.value]
        for i, (key, _) in enumerate(node.value):
            if key.value in names[:i]:
                problem = f"{shown(key.value)} is given twice; keep one"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return node


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The tree in a YAML file, empty in an empty one; ConfigError for any other file."""
    try:
        with path.open(encoding="utf-8") as file:
            tree = yaml.load(file, _Loader)  # noqa: S506
    except OSError as error:
        fault = f"{path}: cannot be read ({error.strerror})"
        raise ConfigError(f"{fault}; --cfg takes the path of a YAML file.") from error
    except _NOT_YAML as error:
        raise ConfigError(f"{path}: not a valid YAML file: {error}") from error
    if not isinstance(tree, Mapping | None):
        raise ConfigError(f"{path}: holds {shown(tree)}, but it must map keys to values.")
    return tree or {}


def merge(cfg: CfgNode, pairs: Iterable[tuple[str, Any]], source: str) -> list[str]:
    """Set `pairs` of (full dotted key, value) in the whole tree `cfg`; return the keys set.
    ConfigErrors, for unknown keys and wrong types, name `source`."""
    changed = []
    for key, value in pairs:
        if key in WITHOUT_EFFECT:
            coerce(key, value, source)
        elif key in SCHEMA:
            section, _, name = key.rpartition(".")
            (get(cfg, section) if section else cfg)[name] = coerce(key, value, source)
            changed.append(key)
        elif any(name.startswith(f"{key}.") for name in SCHEMA):
            if value:  # a section left empty changes nothing
                fault = f"{key} is {shown(value)}, but it is a section: {', '.join(get(cfg, key))}."
                raise ConfigError(f"{source}: {fault}")
        else:
            advice = REPLACED.get(key) or hint(key, SCHEMA, "docs/configuration.md lists all keys.")
            raise ConfigError(f"{source}: unknown key {key[:_LONGEST]}. {advice}")
    return changed
