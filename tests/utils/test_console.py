from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.console import say

REPO = Path(__file__).parents[2]
TALKS = """
import logging, sys
from utils.console import say
from utils.logging import setup_logging
setup_logging()
for number in range(2000):
    logging.getLogger("a").warning("line %d", number)
    say(f"text {number}")
sys.exit(sys.stderr.write("went on"))
"""
LIST = ["-m", "tools.sweep", "vision_v1", "--list"]


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [(["-c", TALKS], 7, "went on"), (LIST, 0, ""), (["train.py", "-h"], 0, "")],
)
def test_a_reader_that_leaves_ends_the_output_and_not_the_program(command, code, error):
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    options = {"stdout": writer, "stderr": subprocess.PIPE, "text": True, "cwd": REPO}
    done = subprocess.run([sys.executable, *command], **options)
    os.close(writer)
    assert (done.returncode, done.stderr) == (code, error)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk_is_a_user_error():
    with open("/dev/full", "w") as full:
        options = {"stdout": full, "stderr": subprocess.PIPE, "text": True, "cwd": REPO}
        done = subprocess.run([sys.executable, *LIST], **options)
    reason = "cannot be written (No space left on device); free space there"
    assert (done.returncode, done.stderr) == (2, f"error: <stdout> {reason}\n")


def test_names_that_are_no_text_are_printed_as_escapes(capsys):
    say(os.fsdecode(b"caf\xe9"))
    assert capsys.readouterr().out == "caf\\udce9\n"
