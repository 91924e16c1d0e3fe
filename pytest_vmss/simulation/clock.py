"""A clock on which time passes at once, and threads take turns in an order of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from pytest_vmss.clock import Clock, Interrupted, check_signal
from pytest_vmss.simulation.scheduler import Baton, Killed

__all__ = ["VirtualClock", "preempt"]

_I = TypeVar("_I")


class VirtualClock:
    """A clock on which time passes at once, for simulations.

    What runs side by side runs on threads of its own, of which one at a time has its
    turn, in an order that depends on the seed alone; each sleep and each effect lets others
    run. Many items are taken one after another instead, each from the same moment: that
    costs less, and hosts do not take so many at once either.

    Args:
        seed: The same seed gives the same order.
        threads: Up to how many items run on threads.

    Attributes:
        held: Whether the calling thread holds a lock that others may wait for: it is not
            preempted then.
    """

    def __init__(self, seed: int = 0, *, threads: int = 8) -> None:
        self.held: Callable[[], bool] = lambda: False
        self._baton = Baton(seed)
        self._threads = threads
        self._here = threading.local()
        self._closed = False

    def now(self) -> datetime:
        """The time of day, in UTC; it begins with the year 2026."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._baton.elapsed + (self._apart or 0.0)

    def sleep(self, seconds: float) -> None:
        """Lets time pass at once, and others run meanwhile.

        Raises:
            Interrupted: The lab is being closed, or the operation stopped.
        """
        self.check()
        if self._apart is not None:
            self._apart += seconds
        elif self.held():
            self._baton.advance(seconds)
        else:
            self._baton.sleep(seconds)
        self.check()

    def preempt(self) -> None:
        """Lets others run first, where a real thread might be preempted too."""
        if self._apart is None and not self.held():
            self._baton.sleep(0.0)

    @property
    def _apart(self) -> float | None:
        """By how much this thread's time is ahead, where it takes items one after another."""
        apart: float | None = getattr(self._here, "apart", None)
        return apart

    @_apart.setter
    def _apart(self, seconds: float | None) -> None:
        self._here.apart = seconds

    def check(self) -> None:
        """Raises where a wait would."""
        if self._closed:
            raise Interrupted
        check_signal()

    def run_concurrently(self, items: Sequence[_I], act: Callable[[_I], object]) -> None:
        """Acts on items as if side by side; raises the first one's failure after all have ended."""
        if len(items) > self._threads or self._apart is not None:
            raised = self._in_turn(items, act)
        elif len(items) == 1:
            act(items[0])
            return
        else:
            contexts = [(copy_context(), item) for item in items]
            raised = self._baton.run(
                contexts, lambda one: one[0].run(act, one[1]), interrupt=self.close
            )
        failed = [error for error in raised if error is not None]
        if failed:
            if any(isinstance(error, KeyboardInterrupt) for error in failed):
                self.close()
            raise failed[0]

    def _in_turn(
        self, items: Sequence[_I], act: Callable[[_I], object]
    ) -> list[BaseException | None]:
        outer = self._apart
        start = end = outer or 0.0
        raised: list[BaseException | None] = [None] * len(items)
        order = list(range(len(items)))
        self._baton.shuffle(order)
        try:
            for number in order:
                self._apart = start
                try:
                    act(items[number])
                except Killed:
                    raise
                except BaseException as error:  # noqa: BLE001 - raised by the caller
                    raised[number] = error
                end = max(end, self._apart)
        finally:
            self._apart = outer
        if outer is None:
            self._baton.sleep(end)
        else:
            self._apart = end
        return raised

    def close(self) -> None:
        """Makes every wait, from now on, raise :class:`Interrupted`."""
        self._closed = True


def preempt(clock: Clock) -> None:
    """Lets others run first, on a virtual clock; simulated effects begin so."""
    if isinstance(clock, VirtualClock):
        clock.preempt()
