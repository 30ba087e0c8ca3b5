"""Invented trees of JSON and YAML: valid ones whose values are replaced, taken out or doubled."""

from __future__ import annotations

import copy

from hypothesis import strategies as st

NAMES = [
    "",
    ".",
    "..",
    "/",
    "../a.png",
    "/etc/passwd",
    "a/../../b",
    "./a.png",
    "a.png\0",
    "a\nb.png",
]
NAMES += ["\ud800.png", "\udc80.png", "ü 漢.png", "x" * 256, "y" * 4097, "C:\\a", "~", "%s", "{}"]
NUMBERS = [0, 1, -1, 2, 3, 16, 17, 255, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5]
NUMBERS += [-0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"), 8.5, 1e9, 16777216.0]
OTHERS = [None, True, False, [], {}, [[]], [{}], {"a": {}}, [[1.0]], [None], "1", "true", "[1, 2]"]
ODD = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NUMBERS),
    st.sampled_from(OTHERS),
    st.lists(st.sampled_from(NUMBERS), max_size=9),
    st.lists(st.lists(st.integers(-9, 40), max_size=9), max_size=3),
    st.integers(-40, 40),
    st.text(max_size=9),
).map(copy.deepcopy)


def _places(tree, path=()):
    yield path
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _places(value, (*path, key))


@st.composite
def changed(draw, tree, most=4):
    """A copy of a tree with up to `most` changes."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(0, most))):
        path = draw(st.sampled_from(list(_places(tree))))
        if not path:
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(["odd", "odd", "odd", "drop", "double", "swap"]))
        if kind == "odd":
            parent[path[-1]] = draw(ODD)
        elif kind == "drop":
            del parent[path[-1]]
        elif kind == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(NAMES))] = parent[path[-1]]
    return tree


@st.composite
def spoilt(draw, text):
    """A text, some bytes of which are replaced, taken out, put in or repeated."""
    content = bytearray(text, "utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 4))):
        start, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        part = content[start : start + length]
        new = [b"", b"[", b"{", b'"', b":", b"\0", b"9", b"[" * 5000, b'{"a":' * 5000, part * 300]
        content[start : start + length] = draw(st.sampled_from(new) | st.binary(max_size=20))
    return bytes(content)
