from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from method_config import get_defaults, load_config
from method_config.values import leaves
from tests.fuzz.guards import bounded_memory, bounded_time, fuzzed, writes_only
from tests.fuzz.trees import NAMES, ODD, changed, spoilt
from utils.errors import ConfigError

KEYS = [key for key, _ in leaves(get_defaults())]
TREE = yaml.safe_load(get_defaults().dump())
TEXT = get_defaults().dump()
LINES = [
    "a: &a [x, x, x, x, x, x, x, x, x]", "b: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]", "c: &c [*b, *b, *b, *b, *b]",
    "DATASET: &d {<<: [*a, *b]}", "TRAIN: &t {SOFS: *t}", "RNG_SEED: " + "9" * 5000, "RNG_SEED: 0x" + "f" * 5000,
    "RNG_SEED: !!int ''", "RUN_NAME: !!bool foo", "RUN_NAME: 2001-99-99", "RUN_NAME: !!timestamp foo", "? [a]\n: 1",
    "RUN_NAME: !!python/object/apply:os.system [ls]", "1: 2", "null: 3", "? {a: 1}\n: 2", "RUN_NAME: !!binary é",
    "DATASET: {shot: .inf, crop_ratio: [.nan, 1]}", "RUN_NAME: ../../x", "RUN_NAME: /tmp/x", 'RUN_NAME: "\\0"',
    'RUN_NAME: "\\ud800"', "NUM_GPUS: 1e400", "DEVICE: 1:99:99", "x" * 5000 + ": 1", "OUTPUT_DIR: [a]", "--- a",
    "<<: {RNG_SEED: 3}", "TRAIN.SOFS.smooth_r: 1", "TRAIN.SOFS: 1", "TEST: []", "DATASET: {train_objects: [/a, ..]}",
    "- a", "%YAML 9.9", "...", "RUN_NAME: |\n  a\n  b", "TEST: {threshold: auto}", "\ufeff", "RUN_NAME: \u2028",
]  # fmt: skip


def check(call):
    """A frozen tree that its dump gives again, or an error of bounded length."""
    try:
        with bounded_time():
            cfg = call()
    except ConfigError as error:
        assert max(map(len, str(error).splitlines())) < 4000
        return
    assert cfg.is_frozen()
    assert ".." not in cfg.RUN_NAME.split("/") and not cfg.RUN_NAME.startswith("/")


def test_odd_settings_load_or_are_refused(tmp_path):
    path = tmp_path / "my.yaml"
    odd_trees = changed(TREE).map(lambda tree: yaml.dump(tree).encode("utf-8", "backslashreplace"))
    lines = st.lists(st.sampled_from(LINES), max_size=4).map(
        lambda found: "\n".join(found).encode("utf-8")
    )

    @fuzzed(120)
    @given(st.one_of(odd_trees, spoilt(TEXT[:400]), lines, st.binary(max_size=60)))
    def load(content):
        path.write_bytes(content)
        with writes_only(tmp_path / "nowhere"):
            check(lambda: load_config(path))

    with bounded_memory():
        load()


def test_odd_options_load_or_are_refused():
    keys = st.sampled_from(KEYS) | st.sampled_from(NAMES) | st.text(max_size=9)
    values = ODD | ODD.map(str) | st.sampled_from(LINES) | st.text(max_size=20)

    @fuzzed(150)
    @given(st.lists(st.tuples(keys, values), max_size=3), st.booleans())
    def load(pairs, one_less):
        opts = [part for pair in pairs for part in pair]
        check(lambda: load_config([], opts[: len(opts) - one_less]))

    load()


def test_what_loads_is_what_its_dump_loads(tmp_path):
    path = tmp_path / "again.yaml"

    @fuzzed(60)
    @given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=9), max_size=3))
    def load(name, objects):
        try:
            cfg = load_config([], ["RUN_NAME", name, "DATASET.train_objects", objects])
        except ConfigError:
            return
        path.write_text(cfg.dump(), encoding="utf-8")
        assert load_config(path) == cfg

    load()
