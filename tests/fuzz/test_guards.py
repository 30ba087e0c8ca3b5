from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz import guards


def test_what_hangs_is_broken_off_whatever_it_catches(monkeypatch):
    monkeypatch.setattr(guards, "HANGS", 0.2)
    start = time.monotonic()
    with pytest.raises(guards.Hang, match=r"0\.2 s"), guards.bounded_time():
        for _ in range(100):
            with contextlib.suppress(Exception):
                time.sleep(1)
    assert time.monotonic() - start < 10
    with guards.bounded_time():
        pass
    time.sleep(0.5)  # nothing rings after a block that ended in time


def test_what_takes_too_much_cpu_fails(monkeypatch):
    monkeypatch.setattr(guards, "SECONDS", 0.01)
    with pytest.raises(AssertionError, match="of CPU"), guards.bounded_time():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass


def test_a_test_that_tries_fewer_inputs_than_it_names_fails(monkeypatch):
    monkeypatch.setattr(guards, "TALLY", None)  # these are no inputs
    guards.fuzzed(40)(given(st.binary(min_size=9))(lambda _: None))()
    with pytest.raises(AssertionError, match="2 inputs were tried"):
        guards.fuzzed(40)(given(st.booleans())(lambda _: None))()


def test_the_inputs_tried_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(guards, "TALLY", tmp_path / "tally")
    for count in (10, 20):
        guards.fuzzed(count)(given(st.binary(min_size=9))(lambda _: None))()
    first, second = map(int, (tmp_path / "tally").read_text().split())
    assert first >= 10 and second >= 20
