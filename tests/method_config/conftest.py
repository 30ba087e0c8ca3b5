from __future__ import annotations

import pytest

from method_config import load_config
from utils.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Write a YAML file; return its path."""

    def write(text, name="my.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def load():
    """Load the defaults with KEY VALUE pairs as they come from the command line."""
    return lambda *opts: load_config([], opts)


@pytest.fixture
def fault():
    """The message of the ConfigError that loading files and opts must raise."""

    def fault(files=(), *opts):
        with pytest.raises(ConfigError) as error:
            load_config(files, opts)
        return str(error.value)

    return fault
