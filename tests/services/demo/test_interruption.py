from __future__ import annotations

import os
import signal

import pytest

from perdure_services.demo.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_taken_at_the_next_look(number):
    with Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def test_a_second_one_while_things_are_being_stopped_does_no_harm():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def test_signals_are_as_they_were_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_threads_hear_of_it_whatever_ends_the_block():
    interruption = Interruption()
    seen = []

    def fail():
        seen.append(interruption.stop.is_set())
        raise ValueError("any")

    with pytest.raises(ValueError, match="any"), interruption.stopping():
        fail()
    assert seen == [False]
    assert interruption.stop.is_set()
