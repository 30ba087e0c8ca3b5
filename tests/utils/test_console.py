from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.console import say
from utils.errors import OutputError

REPO = Path(__file__).parents[2]


def test_a_reader_that_leaves_ends_the_output_and_not_the_program():
    """Standard output is a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    options = {"stdout": writer, "stderr": subprocess.PIPE, "text": True, "cwd": REPO}
    done = subprocess.run([sys.executable, "train.py", "-h"], **options)
    assert (done.returncode, done.stderr) == (0, "")
    with os.fdopen(writer, "w") as stream:
        for number in range(3):
            say(f"text {number}", stream)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_on_a_full_disk_is_a_user_error():
    words = r"/dev/full cannot be written \(No space left on device\); free space there"
    with open("/dev/full", "w") as full, pytest.raises(OutputError, match=words):
        say("text", full)


def test_names_that_are_no_text_are_printed_as_escapes(capsys):
    say(os.fsdecode(b"caf\xe9"))
    assert capsys.readouterr().out == "caf\\udce9\n"
