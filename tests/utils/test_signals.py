from __future__ import annotations

import os
import signal

import pytest

from utils.signals import Interrupted, interruptible, postponed

BOTH = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture(autouse=True)
def handlers():
    """As before, after every test."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    earlier = {number: signal.getsignal(number) for number in numbers}
    yield earlier
    for number, handler in earlier.items():
        signal.signal(number, handler)


def tell(number):
    os.kill(os.getpid(), number)


@BOTH
def test_a_block_is_ended_at_once(number, handlers):
    after = False
    with pytest.raises(Interrupted) as error, interruptible():
        tell(number)
        after = True
    assert (
        not after
        and error.value.exit_code == 128 + number
        and str(error.value) == f"interrupted by {number.name}"
    )
    assert all(signal.getsignal(n) == handlers[n] for n in (signal.SIGTERM, signal.SIGINT))


@BOTH
def test_a_block_ends_where_it_asks(number, handlers):
    done = []
    with (
        pytest.raises(Interrupted, match=f"interrupted by {number.name}: saved"),
        postponed(alone=True) as pending,
    ):
        for step in range(5):
            done.append(step)
            if step == 2:
                tell(number)
            if pending.number:
                raise Interrupted(pending.number, "saved")
    assert done == [0, 1, 2]
    assert all(signal.getsignal(n) == handlers[n] for n in (signal.SIGTERM, signal.SIGINT))


def test_what_comes_after_the_last_question_is_not_lost():
    with pytest.raises(Interrupted), postponed(alone=True):
        tell(signal.SIGTERM)


def test_told_twice_a_lone_process_ends_at_once_and_one_of_several_goes_on():
    steps = []
    with pytest.raises(Interrupted), postponed(alone=True):
        tell(signal.SIGINT)
        steps.append("told")
        tell(signal.SIGINT)
        steps.append("never")
    with pytest.raises(Interrupted), postponed(alone=False):
        tell(signal.SIGINT)
        tell(signal.SIGTERM)
        steps.append("both")
    assert steps == ["told", "both"]


def test_a_fault_after_it_was_told_is_taken_for_a_consequence_and_one_before_is_not():
    with pytest.raises(Interrupted) as error, postponed(alone=True):
        tell(signal.SIGTERM)
        raise RuntimeError("connection closed")
    assert isinstance(error.value.__cause__, RuntimeError)
    with pytest.raises(RuntimeError, match="own"), postponed(alone=True):
        raise RuntimeError("own")


def test_workers_that_end_after_it_was_told_raise_nothing(handlers):
    def worker_died(number, frame):
        raise AssertionError("a worker has died")

    signal.signal(signal.SIGCHLD, worker_died)
    with pytest.raises(Interrupted), postponed(alone=True):
        tell(signal.SIGTERM)
        tell(signal.SIGCHLD)
