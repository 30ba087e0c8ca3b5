from __future__ import annotations

import os
import signal

import pytest

from utils.errors import OutputError
from utils.signals import SIGNALS, Interrupted, interruptible, postponed


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_block_ends_at_once(number):
    handlers, after = [signal.getsignal(n) for n in SIGNALS], False
    with pytest.raises(Interrupted) as error, interruptible():
        send(number)
        after = True
    assert not after and error.value.exit_code == 128 + number
    assert str(error.value) == f"interrupted by {number.name}"
    assert [signal.getsignal(n) for n in SIGNALS] == handlers


@pytest.mark.parametrize("number", SIGNALS)
def test_a_postponed_block_ends_where_it_reads_the_signal(number):
    handlers, steps = [signal.getsignal(n) for n in SIGNALS], []
    words = f"interrupted by {number.name}: saved"
    with pytest.raises(Interrupted, match=words), postponed(alone=True) as pending:
        for step in range(5):
            steps.append(step)
            if step == 2:
                send(number)
            if pending.number:
                raise Interrupted(pending.number, "saved")
    assert steps == [0, 1, 2] and [signal.getsignal(n) for n in SIGNALS] == handlers


def test_a_signal_that_was_not_read_is_not_lost():
    with pytest.raises(Interrupted), postponed(alone=True):
        send(signal.SIGTERM)


def test_a_second_signal_ends_a_lone_process_at_once_and_one_of_several_not():
    steps = []
    with pytest.raises(Interrupted), postponed(alone=True):
        send(signal.SIGINT)
        steps.append("first")
        send(signal.SIGINT)
        steps.append("never")
    with pytest.raises(Interrupted), postponed(alone=False):
        send(signal.SIGINT)
        send(signal.SIGTERM)
        steps.append("both")
    assert steps == ["first", "both"]


def test_a_lost_connection_after_a_signal_is_its_consequence_and_other_faults_are_not():
    with pytest.raises(Interrupted) as error, postponed(alone=True):
        send(signal.SIGTERM)
        raise RuntimeError("connection closed")
    assert isinstance(error.value.__cause__, RuntimeError)
    with pytest.raises(OutputError), postponed(alone=True):
        send(signal.SIGTERM)
        raise OutputError("not saved")
    with pytest.raises(RuntimeError), postponed(alone=True):
        raise RuntimeError("before any signal")
