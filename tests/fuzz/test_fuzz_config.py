"""Invented YAML files load into a frozen tree or end in a ConfigError."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from method_config import get_defaults, load_config
from tests.fuzz.inputs import changed, fuzzed, spoilt
from utils.errors import ConfigError

TEXT = get_defaults().dump()
LINES = [
    "DATASET: {shot: .inf, crop_ratio: [.nan, 1]}", "NUM_GPUS: 1e400", "RUN_NAME: /tmp/x",
    "RUN_NAME: !!python/object/apply:os.system [ls]", "TEST: []", "? [a]\n: 1", "null: 3", "\ufeff",
    "<<: {RNG_SEED: 3}", "%YAML 9.9", "RUN_NAME: |\n  a\n  b", "TRAIN.SOFS: 1", "--- a",
]  # fmt: skip


def test_odd_files_load_or_are_refused(tmp_path):
    path = tmp_path / "my.yaml"
    trees = changed(yaml.safe_load(TEXT)).map(yaml.dump)
    lines = st.lists(st.sampled_from(LINES), max_size=4).map("\n".join)
    texts = (trees | lines).map(lambda text: text.encode("utf-8", "backslashreplace"))

    @fuzzed(30)
    @given(texts | spoilt(TEXT[:400].encode()) | st.binary(max_size=60))
    def load(content):
        path.write_bytes(content)
        try:
            cfg = load_config(path)
        except ConfigError as error:
            assert 0 < max(map(len, str(error).splitlines())) < 4000
        else:
            assert cfg.is_frozen() and not cfg.RUN_NAME.startswith(("/", "../"))

    load()
