from __future__ import annotations

from pathlib import Path

import pytest

from method_config import load_config
from utils.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    """Write a YAML file; return its path."""

    def write(text: str, name: str = "my.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(write):
    """Load the defaults with KEY VALUE pairs as they come from the command line."""
    path = write("", "empty.yaml")
    return lambda *opts: load_config(path, opts)


@pytest.fixture
def fault():
    """Call a function that must raise a ConfigError; return its message."""

    def fault(call, *args) -> str:
        with pytest.raises(ConfigError) as error:
            call(*args)
        return str(error.value)

    return fault
