from __future__ import annotations

import os
import signal

import pytest

from utils.errors import OutputError
from utils.signals import SIGNALS, Interrupted, interruptible, postponed


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_block_ends_at_once_and_a_postponed_one_where_it_reads_the_signal(number):
    handlers, steps = [signal.getsignal(n) for n in SIGNALS], []
    with pytest.raises(Interrupted) as error, interruptible():
        send(number)
        steps.append("never")
    assert error.value.exit_code == 128 + number
    assert str(error.value) == f"interrupted by {number.name}"
    words = f"interrupted by {number.name}: saved"
    with pytest.raises(Interrupted, match=words), postponed(alone=True) as pending:
        for step in range(5):
            steps.append(step)
            if step == 2:
                send(number)
            if pending.number:
                raise Interrupted(pending.number, "saved")
    assert steps == [0, 1, 2] and [signal.getsignal(n) for n in SIGNALS] == handlers


def test_a_second_signal_ends_a_lone_process_at_once_and_one_of_several_not():
    """One that was not read is not lost."""
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
    for after, error in [(True, RuntimeError), (True, OutputError), (False, RuntimeError)]:
        expected = Interrupted if after and error is RuntimeError else error
        with pytest.raises(expected), postponed(alone=True):
            if after:
                send(signal.SIGTERM)
            raise error("connection closed")
