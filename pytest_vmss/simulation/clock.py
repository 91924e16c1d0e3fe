"""A virtual clock: sleeps return at once, and threads take turns in an order set by a seed."""

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

_START = datetime(2026, 1, 1, tzinfo=UTC)


class _Here(threading.local):
    """What a thread knows of itself.

    Attributes:
        apart: Seconds that it is ahead while it runs items one after another, else None.
    """

    apart: float | None = None


class VirtualClock:
    """A clock on which sleeps return at once, for simulations.

    Concurrent items run on threads of their own, one at a time, in an order that depends only
    on the seed; each sleep and each effect lets other threads run. More items than ``threads``
    are run one after another instead, each starting at the same time: that costs less, and
    hosts do not run so many at once either.

    Args:
        seed: The same seed gives the same order.
        threads: The most items that run on threads.

    Attributes:
        held: Returns whether the calling thread holds a lock that others may wait for; it is
            then not preempted.
    """

    def __init__(self, seed: int = 0, *, threads: int = 8) -> None:
        self.held: Callable[[], bool] = lambda: False
        self._baton = Baton(seed)
        self._threads = threads
        self._here = _Here()
        self._closed = False

    def now(self) -> datetime:
        """The time of day in UTC; it starts at the beginning of 2026."""
        return _START + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        """Seconds since the clock was created."""
        return self._baton.elapsed + (self._here.apart or 0.0)

    def sleep(self, seconds: float) -> None:
        """Advances the time, and lets other threads run meanwhile.

        Raises:
            Interrupted: The lab is being closed, or the operation was stopped.
        """
        self.check()
        if self._here.apart is not None:
            self._here.apart += seconds
        elif self.held():
            self._baton.advance(seconds)
        else:
            self._baton.sleep(seconds)
        self.check()

    def preempt(self) -> None:
        """Lets other threads run first, where a real thread might be preempted too."""
        if self._here.apart is None and not self.held():
            self._baton.sleep(0.0)

    def check(self) -> None:
        """Raises :class:`Interrupted` if a wait would."""
        if self._closed:
            raise Interrupted
        check_signal()

    def run_concurrently(self, items: Sequence[_I], act: Callable[[_I], object]) -> None:
        """Acts on items as if concurrently; raises the first failure after all have ended."""
        if len(items) > self._threads or self._here.apart is not None:
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
        outer = self._here.apart
        start = end = outer or 0.0
        raised: list[BaseException | None] = [None] * len(items)
        order = list(range(len(items)))
        self._baton.shuffle(order)
        try:
            for number in order:
                self._here.apart = start
                try:
                    act(items[number])
                except Killed:
                    raise
                except BaseException as error:  # noqa: BLE001 - raised by the caller
                    raised[number] = error
                end = max(end, self._here.apart)
        finally:
            self._here.apart = outer
        if outer is None:
            self._baton.sleep(end)
        else:
            self._here.apart = end
        return raised

    def close(self) -> None:
        """Makes every later wait raise :class:`Interrupted`."""
        self._closed = True


def preempt(clock: Clock) -> None:
    """Lets other threads run first, on a virtual clock; called before every simulated effect."""
    if isinstance(clock, VirtualClock):
        clock.preempt()
