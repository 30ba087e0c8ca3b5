"""Invented YAML files and options load into a frozen tree or end in a ConfigError."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from method_config import get_defaults, load_config
from method_config.values import SCHEMA
from tests.fuzz.inputs import NAMES, ODD, changed, fuzzed, spoilt
from utils.errors import ConfigError

TEXT = get_defaults().dump()
LINES = [
    "DATASET: {shot: .inf, crop_ratio: [.nan, 1]}", "NUM_GPUS: 1e400", "RUN_NAME: /tmp/x",
    "RUN_NAME: !!python/object/apply:os.system [ls]", "TEST: []", "? [a]\n: 1", "null: 3", "\ufeff",
    "DATASET: {train_objects: [/a, ..]}", "<<: {RNG_SEED: 3}", "%YAML 9.9", "RUN_NAME: \u2028",
    "RUN_NAME: |\n  a\n  b", "TRAIN.SOFS: 1", "--- a",
]  # fmt: skip


def check(files, opts=()):
    try:
        cfg = load_config(files, opts)
    except ConfigError as error:
        assert 0 < max(map(len, str(error).splitlines())) < 4000
        return
    assert cfg.is_frozen() and not cfg.RUN_NAME.startswith(("/", "../"))


def test_odd_files_load_or_are_refused(tmp_path):
    path = tmp_path / "my.yaml"
    trees = changed(yaml.safe_load(TEXT)).map(
        lambda tree: yaml.dump(tree).encode("utf-8", "backslashreplace")
    )
    lines = st.lists(st.sampled_from(LINES), max_size=4).map(lambda some: "\n".join(some).encode())

    @fuzzed(80)
    @given(st.one_of(trees, spoilt(TEXT[:400].encode()), lines, st.binary(max_size=60)))
    def load(content):
        path.write_bytes(content)
        check(path)

    load()


def test_odd_options_load_or_are_refused():
    keys = st.sampled_from([*SCHEMA, *NAMES]) | st.text(max_size=9)
    values = ODD | ODD.map(str) | st.sampled_from(LINES) | st.text(max_size=20)

    @fuzzed(150)
    @given(st.lists(st.tuples(keys, values), max_size=3), st.booleans())
    def load(pairs, one_less):
        opts = [part for pair in pairs for part in pair]
        check([], opts[: len(opts) - one_less])

    load()
