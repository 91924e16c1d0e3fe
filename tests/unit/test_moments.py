"""C2, K1: delays and grace periods on a host whose clock is set back or forward."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pytest_vmss.controller.moments import Moments
from pytest_vmss.simulation.clock import VirtualClock

HOUR, YEAR = timedelta(hours=1), timedelta(days=365)


class Stepped(VirtualClock):
    """A clock whose time of day somebody sets."""

    step = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.step


def passed(moments: Moments, clock: Stepped, moment: datetime) -> timedelta:
    return clock.now() - moments.placed(moment)


def test_without_steps_a_moment_stays_what_it_is() -> None:
    clock = Stepped()
    moments, moment = Moments(lambda: clock), clock.now() - HOUR
    for _ in range(3):
        assert moments.placed(moment) == moment
        clock.sleep(1234.56789)


@pytest.mark.parametrize("step", [YEAR, -YEAR, HOUR, -HOUR, timedelta(seconds=-3)])
def test_a_step_of_the_clock_is_not_time_that_passed(step: timedelta) -> None:
    clock = Stepped()
    moments, moment = Moments(lambda: clock), clock.now() - HOUR
    moments.placed(moment)
    clock.sleep(60)
    clock.step += step
    assert passed(moments, clock, moment) == HOUR + timedelta(seconds=60)
    clock.sleep(60)
    clock.step -= step
    assert passed(moments, clock, moment) == HOUR + timedelta(seconds=120)


def test_what_lies_in_the_future_is_counted_from_now_on() -> None:
    """The clock was wrong when it was recorded; nobody waits until it has caught up."""
    clock = Stepped()
    moments, moment = Moments(lambda: clock), datetime(2099, 1, 1, tzinfo=UTC)
    assert passed(moments, clock, moment) == timedelta(0)
    clock.sleep(600)
    assert passed(moments, clock, moment) == timedelta(seconds=600)


def test_it_remembers_no_more_than_it_must() -> None:
    clock = Stepped()
    moments = Moments(lambda: clock)
    for number in range(10_000):
        moments.placed(clock.now() - timedelta(seconds=number))
    assert len(moments._seen) < 5_000
