"""Time, as the lab sees it, and the one way to wait.

Everything that waits takes a :class:`Clock`, so that simulations run on a
virtual one. Every wait has a limit and says what it waits for.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result, wait_fixed

from pytest_vmss.errors import WaitTimeoutError

__all__ = [
    "Clock",
    "Interrupted",
    "Stopped",
    "SystemClock",
    "VirtualClock",
    "side_by_side",
    "stoppable",
    "wait_for",
]

_I = TypeVar("_I")
_T = TypeVar("_T")

_SIDE_BY_SIDE = 32


class Clock(Protocol):
    """What the lab asks about time."""

    def now(self) -> datetime:
        """The time of day, in UTC."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""

    def check(self) -> None:
        """Raises :class:`Interrupted` where a wait would."""

    def close(self) -> None:
        """Makes every wait, now and later, raise :class:`Interrupted`."""


class Interrupted(BaseException):
    """The lab is being closed: every wait ends, and the journal stays as after a kill."""


class Stopped(Interrupted):
    """The same, of one operation alone: somebody stops it."""


#: What ends the waits of this thread and of those that it starts side by side.
_signal: ContextVar[threading.Event | None] = ContextVar("vmss-stop", default=None)


@contextlib.contextmanager
def stoppable(signal: threading.Event) -> Iterator[None]:
    """Lets a signal end the waits of what runs inside by :class:`Stopped`.

    Args:
        signal: Set by another thread.
    """
    token = _signal.set(signal)
    try:
        yield
    finally:
        _signal.reset(token)


class SystemClock:
    """The host's clock; closing it ends all waits on it."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._signals: weakref.WeakSet[threading.Event] = weakref.WeakSet()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Makes every wait, now and later, raise :class:`Interrupted`."""
        with self._lock:
            self._closed.set()
            for signal in self._signals:  # a thread waits on one event alone
                signal.set()

    def now(self) -> datetime:
        """The time of day, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Blocks the calling thread.

        Raises:
            Interrupted: The lab is being closed, or the operation stopped.
        """
        signal = _signal.get()
        if signal is None:
            self._closed.wait(seconds)
        else:
            with self._lock:
                self._signals.add(signal)
            if not self._closed.is_set():
                signal.wait(seconds)
        self.check()

    def check(self) -> None:
        """Raises where a wait would.

        Raises:
            Interrupted: The lab is being closed, or the operation stopped.
        """
        if self._closed.is_set():
            raise Interrupted
        signal = _signal.get()
        if signal is not None and signal.is_set():
            raise Stopped


class VirtualClock:
    """A clock on which time passes at once, for simulations.

    What runs side by side runs one after another, in an order that depends on
    the seed alone, each from the same moment; time then is the last one's end.

    Args:
        seed: The same seed gives the same order.
    """

    def __init__(self, seed: int = 0) -> None:
        self._lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311 - nothing secret
        self._elapsed = 0.0
        self._closed = False

    def now(self) -> datetime:
        """The time of day, in UTC; it begins with the year 2026."""
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._elapsed

    def sleep(self, seconds: float) -> None:
        """Lets time pass at once."""
        self.check()
        with self._lock:
            self._elapsed += seconds

    def check(self) -> None:
        """Raises where a wait would."""
        if self._closed:
            raise Interrupted
        signal = _signal.get()
        if signal is not None and signal.is_set():
            raise Stopped

    def interleave(self, items: list[_I], act: Callable[[_I], object]) -> None:
        """Acts on items as if side by side; raises the first failure after all have ended."""
        start = end = self._elapsed
        failures: list[Exception] = []
        self._random.shuffle(items)
        for item in items:
            self._elapsed = start
            try:
                act(item)
            except Exception as failure:  # noqa: BLE001 - raised below
                failures.append(failure)
            end = max(end, self._elapsed)
        self._elapsed = end
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Makes every wait, from now on, raise :class:`Interrupted`."""
        self._closed = True


def side_by_side(items: Iterable[_I], act: Callable[[_I], object], *, clock: Clock) -> None:
    """Acts on items in threads, and returns when all have ended.

    Args:
        items: What to act on.
        act: Called in a thread of its own for each; many at a time.
        clock: On which the acts wait; it is closed on Ctrl-C, so that they end.

    Raises:
        Exception: The first item's that failed, after all have ended.
    """
    waiting = list(items)
    if not waiting:
        return
    if isinstance(clock, VirtualClock):
        clock.interleave(waiting, act)
        return
    with ThreadPoolExecutor(min(len(waiting), _SIDE_BY_SIDE), "vmss") as pool:
        futures = [pool.submit(copy_context().run, act, item) for item in waiting]
        try:
            for future in futures:
                future.result()
        except KeyboardInterrupt:
            clock.close()
            raise


def wait_for(
    what: str,
    probe: Callable[[], _T | None],
    *,
    limit: float,
    clock: Clock,
    interval: float = 0.2,
    describe: Callable[[], str] = lambda: "",
) -> _T:
    """Waits until a probe answers something.

    Args:
        what: What is waited for, in words, for the error message.
        probe: Asked again and again; None means "not yet". What it raises
            ends the wait.
        limit: Seconds; a probe that is under way then may still succeed.
        clock: Whose seconds these are.
        interval: Seconds between two probes.
        describe: How far things got, for the error message.

    Raises:
        WaitTimeoutError: The limit was reached.
    """
    start = clock.monotonic()

    def is_late(_: RetryCallState) -> bool:
        return clock.monotonic() - start >= limit

    def give_up(_: RetryCallState) -> None:
        raise WaitTimeoutError(what, limit=limit, last=describe())

    answer = probe()  # mostly enough, and much cheaper than what follows
    if answer is not None:
        return answer
    if limit > 0:
        clock.sleep(interval)
    answer = Retrying(
        retry=retry_if_result(lambda value: value is None),
        wait=wait_fixed(interval),
        stop=is_late,
        sleep=clock.sleep,
        retry_error_callback=give_up,
    )(probe)
    if answer is None:  # pragma: no cover - give_up always raises
        raise WaitTimeoutError(what, limit=limit, last=describe())
    return answer
