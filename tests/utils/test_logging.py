from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from tests.helpers import own_logging
from utils import logging as own
from utils.errors import OutputError
from utils.logging import progress_bar, setup_logging

REPO = Path(__file__).parents[2]


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path):
    (tmp_path / "train.log").mkdir()
    with own_logging(), pytest.raises(OutputError, match=r"train\.log cannot be written"):
        setup_logging(tmp_path / "train.log")


def test_what_is_said_before_the_run_has_a_file_is_in_it_once(tmp_path, capsys):
    log = logging.getLogger("test")
    setup_logging()
    log.warning("first")
    setup_logging()
    log.warning("second")
    setup_logging(tmp_path / "run" / "test.log")
    log.warning("third")
    setup_logging()
    log.warning("elsewhere")
    kept, shown = (tmp_path / "run" / "test.log").read_text(), capsys.readouterr().out
    assert [line.split()[-1] for line in kept.splitlines()] == ["second", "third"]
    assert [line.split()[-1] for line in shown.splitlines()] == [
        "first",
        "second",
        "third",
        "elsewhere",
    ]


def test_progress_that_is_kept_is_a_line_now_and_then(monkeypatch, capsys):
    """Nothing of short loops, no carriage return, and as many lines as there is time for."""
    setup_logging()
    for _ in progress_bar(range(1000), desc="short"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(own, "NOW_AND_THEN", 0.1)
    start, count = time.monotonic(), 0
    with progress_bar(total=10**9, desc="All A", unit="query") as bar:
        while time.monotonic() - start < 1:
            bar.update()
            bar.set_postfix(refresh=False, loss=count)
            count += 1
    out, err = capsys.readouterr()
    assert err == "" and "\r" not in out and 4 <= len(out.splitlines()) <= 12 < count
    assert all(" INFO All A:" in line and "query/s" in line for line in out.splitlines())


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in progress_bar(range(10), desc="shown"):
        pass
    assert "\rshown: 100%" in capsys.readouterr().err


TALKS = """
import logging, sys
from utils.console import say
from utils.logging import setup_logging
setup_logging()
for number in range(2000):
    logging.getLogger("a").warning("line %d", number)
    say(f"text {number}")
    say(f"fault {number}", sys.stderr)
open(sys.argv[1], "w").write("went on")
"""


def test_a_reader_that_has_gone_ends_the_output_and_not_the_program(tmp_path):
    """Of standard output and standard error, in one pipe, as `2>&1 | head` has it."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", TALKS, str(tmp_path / "end")]
    done = subprocess.run(command, stdout=writer, stderr=writer, cwd=REPO)
    os.close(writer)
    assert done.returncode == 0 and (tmp_path / "end").read_text() == "went on"


def test_a_reader_that_has_gone_is_not_told_of_on_standard_error(tmp_path):
    for arguments in (
        ["-m", "tools.sweep", "vision_v1", "--list"],
        ["-m", "tools.compare", "-h"],
        ["train.py", "-h"],
    ):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=REPO
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, ""), arguments


def test_closed_streams_lead_nowhere(tmp_path):
    """A daemon may have closed them; the next file that is opened must not get their numbers."""
    lines = "from utils.console import complete_streams; complete_streams()" + TALKS
    lines += 'sys.stdin.read(); assert open(sys.argv[1]).fileno() > 2; open(sys.argv[1], "a").write(", as it should")'
    command = f'exec "{sys.executable}" -c "$0" "{tmp_path}/end" <&- >&- 2>&-'
    done = subprocess.run(["sh", "-c", command, lines], cwd=REPO)
    assert done.returncode == 0 and (tmp_path / "end").read_text() == "went on, as it should"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk_is_told_of_once():
    """What only prints fails; what keeps a log of its own goes on."""
    with open("/dev/full", "w") as full:
        listed = [sys.executable, "-m", "tools.sweep", "vision_v1", "--list"]
        lines = "from utils.logging import *; setup_logging()\nfor n in range(3): LOG.warning(n)"
        for command, code in ((listed, 2), ([sys.executable, "-c", lines], 0)):
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPO)
            told = "error: standard output cannot be written (No space left on device); free space there\n"
            assert (done.returncode, done.stderr) == (code, told)


def test_log_lines_keep_clear_of_a_bar(monkeypatch, capsys):
    """On a terminal the bar is taken away for the line and drawn again below it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    setup_logging()
    with tqdm(total=3, file=sys.stderr) as bar:
        bar.update()
        capsys.readouterr()
        logging.getLogger("test").warning("a line")
        out, err = capsys.readouterr()
    assert out.endswith("WARNING a line\n") and err.startswith("\r") and "1/3" in err
