from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import contextmanager

import pytest
import torch

import tools.segment.watch
from tests.killing import FORKS, ended, until
from tests.tools.open_domain_data import save
from tests.tools.segment.conftest import contents, drawn
from tools.segment.__main__ import main


def _watch(arguments, errors):
    """The command in a process of its own, which waits less."""
    for name, seconds in (("POLL", 0.05), ("SETTLED", 0.2), ("RETRY", 0.2), ("GIVE_UP", 1.5)):
        setattr(tools.segment.watch, name, seconds)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    sys.exit(main(arguments))


@pytest.fixture
def watching(data, arguments):
    """A block beside the command, which ends as by Ctrl-C, with this exit code."""

    @contextmanager
    def block(code):
        process = FORKS.Process(target=_watch, args=(arguments("--watch"), data / "errors.txt"))
        process.start()
        try:
            yield process
            os.kill(process.pid, signal.SIGINT)
            assert ended(process) == code
        finally:
            process.kill()

    return block


def test_images_are_segmented_as_they_arrive_each_once(data, segment, watching):
    """A file that is written slowly is waited for; the same command goes on, and ends with what it
    writes of all images at once."""
    out, queries = data / "out", data / "queries"
    save(drawn(seed=42)[0], data / "slow.png")
    content = (data / "slow.png").read_bytes()
    with watching(1) as process:
        until((out / "masks" / "c.png").exists, process)
        with (queries / "d.png").open("wb") as file:
            for start in range(0, len(content), len(content) // 4 + 1):  # the last is no small rest
                file.write(content[start : start + len(content) // 4 + 1])
                file.flush()
                time.sleep(0.3)  # longer than files have to be unchanged
        until((out / "masks" / "d.png").exists, process)
    segment(out="at once")
    assert contents(out) == contents(data / "at once")
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (queries / "a.png").unlink()  # its row stays
    with watching(1) as process:
        save(drawn(seed=43)[0], queries / "e.png")
        until((out / "masks" / "e.png").exists, process)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    table = (out / "defects.csv").read_text()
    assert "\na.png," in table and "\ne.png," in table


def test_what_cannot_be_decoded_is_named_in_the_end_unless_it_is_mended(data, watching):
    queries, log = data / "queries", data / "out" / ".segment" / "log.txt"
    for name in ("bad.png", "mended.png"):
        (queries / name).write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    with watching(2) as process:
        until(lambda: log.exists() and "bad.png: cannot be read" in log.read_text(), process)
        save(drawn(seed=44)[0], queries / "mended.png")
        until((data / "out" / "masks" / "mended.png").exists, process)
    error = (data / "errors.txt").read_text()
    assert "1 of 5 images could not be read" in error and "bad.png" in error


def test_a_name_stays_when_another_suffix_arrives(data, watching):
    save(drawn(seed=45)[0], data / "later" / "a.bmp")
    with watching(1) as process:
        until((data / "out" / "masks" / "c.png").exists, process)
        os.replace(data / "later" / "a.bmp", data / "queries" / "a.bmp")
        until((data / "out" / "masks" / "a.bmp.png").exists, process)
    assert {"a.png", "a.bmp.png"} <= set(contents(data / "out" / "masks"))
