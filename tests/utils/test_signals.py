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
    with pytest.raises(Interrupted, match=f"^interrupted by {number.name}$"), interruptible():
        send(number)
        steps.append("never")
    words = f"interrupted by {number.name}: saved"
    with pytest.raises(Interrupted, match=words), postponed(alone=True) as pending:
        for step in range(5):
            steps.append(step)
            if step == 2:
                send(number)
            if pending.number:
                raise Interrupted(pending.number, "saved")
    assert steps == [0, 1, 2] and [signal.getsignal(n) for n in SIGNALS] == handlers


@pytest.mark.parametrize(("alone", "expected"), [(True, ["first"]), (False, ["first", "second"])])
def test_a_second_signal_ends_a_lone_process_at_once_and_one_of_several_not(alone, expected):
    """One that was not read is not lost."""
    steps = []
    with pytest.raises(Interrupted), postponed(alone=alone):
        send(signal.SIGINT)
        steps.append("first")
        send(signal.SIGTERM)
        steps.append("second")
    assert steps == expected


def test_a_lost_connection_after_a_signal_is_its_consequence_and_other_faults_are_not():
    for after, error in [(True, RuntimeError), (True, OutputError), (False, RuntimeError)]:
        expected = Interrupted if after and error is RuntimeError else error
        with pytest.raises(expected), postponed(alone=True):
            if after:
                send(signal.SIGTERM)
            raise error("connection closed")
