from __future__ import annotations

import logging
import sys

import pytest
from tqdm import tqdm

from utils import logging as our_logging
from utils.errors import OutputError
from utils.logging import progress_bar, setup_logging


def last_words(text):
    return [line.split()[-1] for line in text.splitlines()]


def test_the_file_begins_with_the_lines_since_logging_was_set_up(tmp_path, capsys):
    log = logging.getLogger("test")
    for word, file in (("first", None), ("second", None), ("third", tmp_path / "run" / "test.log")):
        setup_logging(file)
        log.warning(word)
    setup_logging()
    log.warning("elsewhere")
    assert last_words((tmp_path / "run" / "test.log").read_text()) == ["second", "third"]
    assert last_words(capsys.readouterr().out) == ["first", "second", "third", "elsewhere"]
    with pytest.raises(OutputError, match=r"run cannot be written"):
        setup_logging(tmp_path / "run")


def test_progress_without_a_terminal_is_a_log_line_now_and_then(monkeypatch, capsys):
    """Nothing of short loops, and no carriage return."""
    setup_logging()
    list(progress_bar(range(1000), desc="short"))
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(our_logging, "SECONDS_BETWEEN_LINES", 0)
    list(progress_bar(range(3), desc="All A", unit="query", miniters=1))
    out, err = capsys.readouterr()
    assert err == "" and "\r" not in out and len(out.splitlines()) >= 3
    assert all(" INFO All A:" in line and "query" in line for line in out.splitlines())


def test_progress_on_a_terminal_is_a_bar_above_which_lines_are_logged(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    setup_logging()
    list(progress_bar(range(10), desc="shown"))
    assert "\rshown: 100%" in capsys.readouterr().err
    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        capsys.readouterr()
        logging.getLogger("test").warning("a line")
        out, err = capsys.readouterr()
    assert out.endswith("WARNING a line\n") and err.startswith("\r") and "1/3" in err
