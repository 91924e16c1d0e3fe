"""Time, as the lab sees it, and the one way to wait.

Everything that waits takes a :class:`Clock`, so that simulations run on a
virtual one. Every wait has a limit and says what it waits for.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result, wait_fixed

from pytest_vmss.errors import WaitTimeoutError
from pytest_vmss.simulation.scheduler import Baton, Killed

__all__ = [
    "Clock",
    "Interrupted",
    "Killed",
    "Stopped",
    "SystemClock",
    "VirtualClock",
    "is_stopped_by",
    "preempt",
    "run_concurrently",
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


def is_stopped_by(signal: threading.Event) -> bool:
    """Whether a signal would end the waits of this very thread."""
    return _signal.get() is signal


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
        signal = _signal.get()
        if signal is not None and signal.is_set():
            raise Stopped

    def interleave(self, items: list[_I], act: Callable[[_I], object]) -> None:
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

    def _in_turn(self, items: list[_I], act: Callable[[_I], object]) -> list[BaseException | None]:
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


def run_concurrently(items: Iterable[_I], act: Callable[[_I], object], *, clock: Clock) -> None:
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
    pool = ThreadPoolExecutor(min(len(waiting), _SIDE_BY_SIDE), "vmss")
    futures: list[Future[object]] = []
    ended_by: BaseException | None = None
    try:
        for item in waiting:
            futures.append(pool.submit(copy_context().run, act, item))  # noqa: PERF401 - each counts
        wait(futures)
    except BaseException as error:  # noqa: BLE001 - raised once all have ended
        ended_by = error
    while True:
        # Nobody gives up what it has claimed while a thread may still act on it, however
        # often Ctrl-C is pressed.
        try:
            if isinstance(ended_by, KeyboardInterrupt):
                clock.close()
            pool.shutdown(wait=True, cancel_futures=ended_by is not None)
            break
        except KeyboardInterrupt as error:
            ended_by = error
    if ended_by is not None:
        raise ended_by
    for future in futures:
        future.result()


def wait_for(
    what: str,
    probe: Callable[[], _T | None],
    *,
    timeout: float,
    clock: Clock,
    interval: float = 0.2,
    describe: Callable[[], str] = lambda: "",
) -> _T:
    """Waits until a probe answers something.

    Args:
        what: What is waited for, in words, for the error message.
        probe: Asked again and again; None means "not yet". What it raises
            ends the wait.
        timeout: Seconds; a probe that is under way then may still succeed.
        clock: Whose seconds these are.
        interval: Seconds between two probes.
        describe: How far things got, for the error message.

    Raises:
        WaitTimeoutError: The limit was reached.
    """
    start = clock.monotonic()

    def is_late(_: RetryCallState) -> bool:
        return clock.monotonic() - start >= timeout

    def give_up(_: RetryCallState) -> None:
        raise WaitTimeoutError(what, timeout=timeout, last=describe())

    answer = probe()  # mostly enough, and much cheaper than what follows
    if answer is not None:
        return answer
    if timeout > 0:
        clock.sleep(interval)
    answer = Retrying(
        retry=retry_if_result(lambda value: value is None),
        wait=wait_fixed(interval),
        stop=is_late,
        sleep=clock.sleep,
        retry_error_callback=give_up,
    )(probe)
    if answer is None:  # pragma: no cover - give_up always raises
        raise WaitTimeoutError(what, timeout=timeout, last=describe())
    return answer
