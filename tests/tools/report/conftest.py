from __future__ import annotations

import pytest

from tests.tools.report.example import Page, write_run
from tools.report import write_report


@pytest.fixture
def run(tmp_path):
    """Folder of a run with everything, to change."""
    return write_run(tmp_path / "run")


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Folder of a run with everything and two test sets, and its page; to look at only."""
    folder = write_run(tmp_path_factory.mktemp("whole"))
    write_run(folder, ["Only/here"], suffix="_validation")
    return folder, Page(write_report(folder).read_text(encoding="utf-8"))
