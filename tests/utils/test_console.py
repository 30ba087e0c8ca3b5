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
    say(f"fault {number}", sys.stderr)
open(sys.argv[1], "w").write("went on")
"""


def run_without_reader(command, **options):
    """Run a command whose standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(command, stdout=writer, text=True, cwd=REPO, **options)
    finally:
        os.close(writer)


def test_a_reader_that_leaves_ends_the_output_and_not_the_program(tmp_path):
    end = tmp_path / "end"
    command = [sys.executable, "-c", TALKS, str(end)]
    assert run_without_reader(command, stderr=subprocess.STDOUT).returncode == 0
    assert end.read_text() == "went on"


@pytest.mark.parametrize("command", ["-m tools.sweep vision_v1 --list", "train.py -h"])
def test_a_reader_that_leaves_is_no_fault(command):
    command = [sys.executable, *command.split()]
    done = run_without_reader(command, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk_is_a_user_error():
    command = [sys.executable, "-m", "tools.sweep", "vision_v1", "--list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPO)
    reason = "cannot be written (No space left on device); free space there"
    assert (done.returncode, done.stderr) == (2, f"error: <stdout> {reason}\n")


def test_names_that_are_no_text_are_printed_as_escapes(capsys):
    say(os.fsdecode(b"caf\xe9"))
    assert capsys.readouterr().out == "caf\\udce9\n"
