"""Values from YAML files and the command line, decoded to the types of the schema and merged into it."""

from __future__ import annotations

import difflib
import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from method_config.defaults import PATHS, WORDS
from utils.errors import ConfigError

_EXPONENT = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+"
)  # numbers that a YAML 1.1 reader takes for a string
_LONGEST_FILE = 1 << 20  # characters
_MOST_NODES = 10_000  # of a tree once its aliases are written out
_LARGEST = (
    2**53
)  # integers from here on are no sizes or counts, and no floating point number holds them all
_LONGEST = 200  # characters of a value that an error shows
# what PyYAML stumbles over in texts that are no YAML, beside its own YAMLError
_PARSER_ERRORS = (
    *(
        yaml.YAMLError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ),
    MemoryError,
)
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist = 3, 20
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _LONGEST
_TYPE_NAMES = {
    bool: "True or False",
    int: "an integer",
    float: "a finite number",
    str: "a string (quote it in YAML)",
}


def shown(value: Any) -> str:
    """A value for an error message, of bounded length whatever it is."""
    try:
        return f"{_REPR.repr(value):.{_LONGEST}}"
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a {type(value).__name__} too large to show"


def leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full dotted key, value) of a nested mapping, depth first; an empty mapping counts as a value."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value


def get(cfg: CfgNode, key: str) -> Any:
    """The value, or the section, at a full dotted key; KeyError where there is none."""
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping):
            raise KeyError(key)
        node = node[part]
    return node


def _put(cfg: CfgNode, key: str, value: Any) -> None:
    section, _, name = key.rpartition(".")
    (get(cfg, section) if section else cfg)[name] = value


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option most like `word`, compared whole and by the part after the last dot; None if nothing is like it."""

    def likeness(option: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, word.lower(), option.lower()).ratio()
        ends = (text.rpartition(".")[2].lower() for text in (word, option))
        return max(whole, difflib.SequenceMatcher(None, *ends).ratio()), whole

    best = max(options, key=likeness)
    return best if likeness(best)[0] >= 0.6 else None


def hint(word: str, options: Iterable[str], otherwise: str) -> str:
    """The sentence that ends an error about an unknown word: the nearest option, or `otherwise`."""
    found = nearest(word, options) if len(word) <= _LONGEST else None
    return f"Did you mean {found}?" if found else otherwise


def expected(default: Any) -> str:
    """In words, what a key with this default takes."""
    if isinstance(default, list):
        return f"a list, each element {_TYPE_NAMES[_element_type(default)]}"
    return _TYPE_NAMES[type(default)]


def _element_type(default: list[Any]) -> type:
    return type(default[0]) if default else str


def _to_number(value: Any, kind: type) -> int | float:
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    if kind is int and (value != int(value) or abs(value) > _LARGEST):
        raise TypeError
    return kind(value)


def _to_scalar(value: Any, kind: type) -> Any:
    if kind in (int, float):
        return _to_number(value, kind)
    if kind is str and value is None:  # a key left empty in YAML
        return ""
    if not isinstance(value, kind) or (kind is str and not _is_text(value)):
        raise TypeError
    return value


def _is_text(value: str) -> bool:
    """Whether the system takes a string as a file name: without NUL and half characters."""
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _split_list(text: str, kind: type) -> Any:
    """A list written as text: [a, b], (a, b), one element alone, or nothing."""
    if text[:1] + text[-1:] in ("()", "[]"):
        text = f"[{text[1:-1]}]"
    elif kind is str:
        return [text] if text else []
    # the base loader leaves every element a string: an object may be called 007
    return parse_yaml(text, yaml.BaseLoader if kind is str else yaml.SafeLoader)


def _to_list(value: Any, kind: type) -> list[Any]:
    if isinstance(value, str):
        value = _split_list(value.strip(), kind)
    if value is None:
        return []
    return [
        _to_scalar(item, kind) for item in (value if isinstance(value, list | tuple) else [value])
    ]


def coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """`value` in the type of `default`; ConfigError naming key, value, source and expected type if it has none."""
    try:
        if isinstance(default, list):
            return _to_list(value, _element_type(default))
        if key in WORDS:
            return value if value in WORDS[key] else _to_number(value, float)
        return _to_scalar(value, type(default))
    except (TypeError, ValueError, OverflowError):
        words = "".join(f", or {word}" for word in WORDS.get(key, ()))
        wanted = expected(0.0 if words else default) + words
        raise ConfigError(f"{source}: {key} is {shown(value)}, but it takes {wanted}.") from None


def merge(cfg: CfgNode, pairs: Iterable[tuple[str, Any]], source: str) -> list[str]:
    """Set `pairs` of (full dotted key, value) in `cfg`, decoded to the types that it holds; return the keys set.

    ConfigError names `source` for an unknown key (and the one most like it), and for a value of the wrong type.
    """
    changed = []
    for key, value in pairs:
        try:
            current = get(cfg, key)
        except KeyError:
            known = [name for name, _ in leaves(cfg)]
            advice = hint(key, known, "method_config/defaults.py lists all keys.")
            raise ConfigError(f"{source}: unknown key {key:.{_LONGEST}}. {advice}") from None
        if not isinstance(current, CfgNode):
            _put(cfg, key, coerce(key, value, current, source))
            changed.append(key)
        elif value:  # a section left empty changes nothing
            raise ConfigError(
                f"{source}: {key} is {shown(value)}, but it is a section of keys: {', '.join(current)}."
            )
    return changed


def expand_paths(cfg: CfgNode) -> None:
    """Write out `~`, `~user` and `$NAME` in all keys that are paths."""
    for key in PATHS:
        value = get(cfg, key)
        _put(
            cfg,
            key,
            [expanded(path) for path in value] if isinstance(value, list) else expanded(value),
        )


def expanded(path: str) -> str:
    """A path with the home folder in place of `~` or `~user`, and the environment's values in place of `$NAME`."""
    return os.path.expanduser(os.path.expandvars(path))


def parse_yaml(text: str, loader: type = yaml.SafeLoader) -> Any:
    """The tree that a YAML text stands for. Raises ValueError for whatever is none, or too large for settings."""
    if len(text) > _LONGEST_FILE:
        raise ValueError(f"longer than {_LONGEST_FILE} characters, which no settings are")
    try:
        parser = loader(text)
        try:
            root = parser.get_single_node()
            if root is None:
                return None
            if _node_count(root, {}) > _MOST_NODES:
                raise ValueError(
                    f"more than {_MOST_NODES} values, aliases written out, which no settings have"
                )
            if twice := _given_twice(root):
                raise ValueError(
                    f"{twice} stands there twice, of which YAML would drop the first; keep one"
                )
            return parser.construct_document(root)
        finally:
            parser.dispose()
    except _PARSER_ERRORS as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _node_count(node: yaml.Node, known: dict[int, float]) -> float:
    """How many nodes a tree has once its aliases are written out; infinite for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is counted
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        known[id(node)] = 1 + sum(
            _node_count(part, known)
            for pair in parts
            for part in (pair if isinstance(pair, tuple) else (pair,))
        )
    return known[id(node)]


def _given_twice(node: yaml.Node) -> str:
    """A key that comes twice in one mapping of a tree, and where; "" for none."""
    parts = [] if isinstance(node, yaml.ScalarNode) else node.value
    known: set[str] = set()
    for part in parts:
        pair = part if isinstance(part, tuple) else (part,)
        key = pair[0]
        if len(pair) == 2 and isinstance(key, yaml.ScalarNode):
            if key.value in known and key.value != "<<":
                return f"{shown(key.value)} (line {key.start_mark.line + 1})"
            known.add(key.value)
        if found := next(filter(None, map(_given_twice, pair)), ""):
            return found
    return ""


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The tree in a YAML file; an empty file is an empty tree. ConfigError if it cannot be read or is no mapping."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST_FILE + 1)
        tree = parse_yaml(text)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); --cfg takes the path of a YAML file."
        ) from error
    except ValueError as error:  # also: not UTF-8
        raise ConfigError(f"{path}: not a YAML file: {error!s:.500}") from error
    if tree is None:
        return {}
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"{path}: holds {type(tree).__name__}, but a mapping of keys to values is expected."
        )
    return tree


def decode_opts(cfg: CfgNode, opts: Sequence[Any]) -> list[tuple[str, Any]]:
    """Pairs of key and value from KEY VALUE KEY VALUE ...; text is read as YAML unless `cfg` holds a string there."""
    if len(opts) % 2:
        raise ConfigError(
            f"command line: --opts takes KEY VALUE pairs, but {shown(opts[-1])} stands alone."
        )
    return [
        (str(key), _decode(cfg, str(key), value))
        for key, value in zip(opts[::2], opts[1::2], strict=True)
    ]


def _decode(cfg: CfgNode, key: str, value: Any) -> Any:
    known = dict(leaves(cfg))
    if not isinstance(value, str) or not (
        key in WORDS or isinstance(known.get(key), bool | int | float)
    ):
        return value  # strings and lists are read by `coerce`, an unknown key is refused by `merge`
    try:
        return parse_yaml(value)
    except ValueError:
        wanted = expected(known[key])
        raise ConfigError(
            f"command line: {key} is {shown(value)}, but it takes {wanted}."
        ) from None
