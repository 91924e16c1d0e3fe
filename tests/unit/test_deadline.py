"""Q1: a limit of time is kept by one helper, on the clock of whoever waits."""

from __future__ import annotations

import gc

import pytest

from pytest_vmss.clock import Deadline, wait_for
from pytest_vmss.simulation.clock import VirtualClock


def test_what_is_left_never_falls_below_nothing() -> None:
    clock = VirtualClock()
    deadline = Deadline(3.0, clock.monotonic)
    clock.sleep(1.0)
    assert (deadline.left(), deadline.require(), deadline.passed) == (2.0, 2.0, False)
    clock.sleep(2.0)
    assert (deadline.left(), deadline.passed) == (0.0, True)
    clock.sleep(5.0)
    assert deadline.left() == 0.0
    with pytest.raises(TimeoutError):
        deadline.require()


def test_it_is_the_hosts_clock_unless_another_is_given() -> None:
    assert 59.0 < Deadline(60.0).left() <= 60.0
    assert Deadline(0.0).passed


def test_a_wait_leaves_no_garbage() -> None:
    """Else a thousand instances leave tens of thousands of objects to the garbage collector."""
    clock = VirtualClock()
    gc.collect()
    gc.disable()
    try:
        for answer in (True, 2):
            answers = iter([None, None, answer])
            assert wait_for("an answer", answers.__next__, timeout=60.0, clock=clock) == answer
        assert gc.collect() == 0
    finally:
        gc.enable()
