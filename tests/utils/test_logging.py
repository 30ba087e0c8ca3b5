from __future__ import annotations

import pytest

from tests.helpers import own_logging
from utils.errors import OutputError
from utils.logging import setup_logging


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "train.log").mkdir()
    with own_logging(), pytest.raises(OutputError, match=r"train\.log cannot be written"):
        setup_logging(tmp_path / "train.log")
