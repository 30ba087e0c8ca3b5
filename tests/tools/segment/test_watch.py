from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import tools.segment.watch
from tests.tools.open_domain_data import save
from tests.tools.segment.conftest import contents, drawn


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, seconds in (("POLL", 0.05), ("SETTLED", 0.2), ("RETRY", 0.2), ("GIVE_UP", 1.5)):
        monkeypatch.setattr(tools.segment.watch, name, seconds)


def during(act):
    """Run a function beside the command, then end it as Ctrl-C does."""

    def run():
        try:
            act()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def until(condition):
    for _ in range(4800):
        if condition():
            return
        time.sleep(0.05)


def test_images_are_segmented_as_they_arrive_each_once(data, segment):
    """A file that is written slowly is waited for; the same command goes on, and ends with what it
    writes of all images at once."""
    out, queries = data / "out", data / "queries"
    save(drawn(seed=42)[0], data / "slow.png")
    content = (data / "slow.png").read_bytes()

    def arrive():
        until((out / "masks" / "c.png").exists)
        with (queries / "d.png").open("wb") as file:
            for start in range(0, len(content), len(content) // 4):
                file.write(content[start : start + len(content) // 4])
                file.flush()
                time.sleep(0.3)  # longer than files have to be unchanged
        until((out / "masks" / "d.png").exists)

    thread = during(arrive)
    assert segment("--watch") == 1
    thread.join()
    segment(out="at once")
    assert contents(out) == contents(data / "at once")
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    (queries / "a.png").unlink()  # its row stays

    def more():
        save(drawn(seed=43)[0], queries / "e.png")
        until((out / "masks" / "e.png").exists)

    thread = during(more)
    assert segment("--watch") == 1
    thread.join()
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    table = (out / "defects.csv").read_text()
    assert "\na.png," in table and "\ne.png," in table


def test_what_cannot_be_decoded_is_named_in_the_end_unless_it_is_mended(data, segment, capsys):
    queries, out = data / "queries", data / "out"
    for name in ("bad.png", "mended.png"):
        (queries / name).write_bytes(b"\x89PNG\r\n\x1a\n nothing")

    def mend():
        until(lambda: "bad.png: cannot be read" in (out / ".segment" / "log.txt").read_text()
              if (out / ".segment" / "log.txt").exists() else False)  # fmt: skip
        save(drawn(seed=44)[0], queries / "mended.png")
        until((out / "masks" / "mended.png").exists)

    thread = during(mend)
    assert segment("--watch") == 2
    thread.join()
    error = capsys.readouterr().err
    assert "1 of 5 images could not be read" in error and "bad.png" in error


def test_a_name_stays_when_another_suffix_arrives(data, segment):
    save(drawn(seed=45)[0], data / "later" / "a.bmp")

    def arrive():
        until((data / "out" / "masks" / "c.png").exists)
        os.replace(data / "later" / "a.bmp", data / "queries" / "a.bmp")
        until((data / "out" / "masks" / "a.bmp.png").exists)

    thread = during(arrive)
    assert segment("--watch") == 1
    thread.join()
    assert {"a.png", "a.bmp.png"} <= set(contents(data / "out" / "masks"))
