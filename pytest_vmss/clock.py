"""Clocks, and the one way to wait.

Everything that waits takes a :class:`Clock`, so that simulations can run on a virtual one.
Every wait has a timeout and says what it waits for.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result

from pytest_vmss.errors import WaitTimeoutError

__all__ = [
    "Clock",
    "Deadline",
    "Interrupted",
    "Stopped",
    "SystemClock",
    "check_signal",
    "is_stopped_by",
    "run_concurrently",
    "stoppable",
    "wait_for",
]

_I = TypeVar("_I")
_T = TypeVar("_T")

_MOST_THREADS = 32
#: Seconds in which Ctrl-C is noticed, whichever thread the kernel gives it to.
_WAKE_S = 0.25
#: The shortest sleep between two probes, in seconds.
_LEAST_S = 0.001


class Clock(Protocol):
    """The interface to time; simulations implement it with a virtual clock."""

    def now(self) -> datetime:
        """Returns the current time in UTC."""

    def monotonic(self) -> float:
        """Returns seconds that never go backwards."""

    def sleep(self, seconds: float) -> None:
        """Sleeps for some seconds."""

    def check(self) -> None:
        """Raises :class:`Interrupted` if a wait would."""

    def close(self) -> None:
        """Makes every wait, now and later, raise :class:`Interrupted`."""

    def run_concurrently(self, items: Sequence[_I], act: Callable[[_I], object]) -> None:
        """Calls ``act`` on all items concurrently, and returns when all calls have ended."""


class Interrupted(BaseException):
    """The lab is being closed: every wait ends, and the journal stays as it would after a kill."""


class Stopped(Interrupted):
    """A single operation is being stopped, rather than the whole lab."""


#: The event that ends waits in this thread, and in threads started by ``run_concurrently``.
_signal: ContextVar[threading.Event | None] = ContextVar("vmss-stop", default=None)


@contextlib.contextmanager
def stoppable(signal: threading.Event) -> Iterator[None]:
    """Makes a signal end waits inside the ``with`` block by raising :class:`Stopped`.

    Args:
        signal: Set by another thread.
    """
    token = _signal.set(signal)
    try:
        yield
    finally:
        _signal.reset(token)


def check_signal() -> None:
    """Raises :class:`Stopped` if this thread's signal is set."""
    signal = _signal.get()
    if signal is not None and signal.is_set():
        raise Stopped


def is_stopped_by(signal: threading.Event) -> bool:
    """Whether a signal is the one that ends waits in the calling thread."""
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
            for signal in self._signals:  # a thread can wait on only one event
                signal.set()

    def now(self) -> datetime:
        """Returns the current time in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Returns seconds since an arbitrary moment."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Blocks the calling thread.

        Raises:
            Interrupted: The lab is being closed, or the operation is being stopped.
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
        """Raises :class:`Interrupted` if a wait would.

        Raises:
            Interrupted: The lab is being closed, or the operation is being stopped.
        """
        if self._closed.is_set():
            raise Interrupted
        check_signal()

    def run_concurrently(self, items: Sequence[_I], act: Callable[[_I], object]) -> None:
        """Calls ``act`` on all items in threads; see :func:`run_concurrently`."""
        pool = ThreadPoolExecutor(min(len(items), _MOST_THREADS), "vmss")
        futures: list[Future[object]] = []
        ended_by: BaseException | None = None
        try:
            for item in items:
                futures.append(pool.submit(copy_context().run, act, item))  # noqa: PERF401 - each counts
            # The kernel may give a signal to any thread; Python acts on it when this one wakes.
            while wait(futures, timeout=_WAKE_S).not_done:
                pass
        except BaseException as error:  # noqa: BLE001 - raised once all have ended
            ended_by = error
        while True:
            # No lock may be released while a thread may still act on what it guards, however
            # often Ctrl-C is pressed.
            try:
                if isinstance(ended_by, KeyboardInterrupt):
                    self.close()
                pool.shutdown(wait=True, cancel_futures=ended_by is not None)
                break
            except KeyboardInterrupt as error:
                ended_by = error
        if ended_by is not None:
            raise ended_by
        for future in futures:
            future.result()


def run_concurrently(items: Iterable[_I], act: Callable[[_I], object], *, clock: Clock) -> None:
    """Calls a function on items concurrently, and returns when all calls have ended.

    Args:
        items: What to act on.
        act: Called for each item in a thread; many run at a time.
        clock: The clock on which the calls wait; Ctrl-C closes it, so that they end.

    Raises:
        Exception: That of the first item, in order, that failed; raised after all have ended.
    """
    waiting = list(items)
    if waiting:
        clock.run_concurrently(waiting, act)


class Deadline:
    """The end of a time limit, on a monotonic clock.

    Args:
        seconds: The limit, from now.
        monotonic: Returns the time. The default is the host's; pass the ``monotonic`` of the
            lab's clock for what a simulated lab does too.
    """

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._end = monotonic() + seconds

    def left(self) -> float:
        """Returns the seconds that are left; never less than 0."""
        return max(self._end - self._monotonic(), 0.0)

    @property
    def passed(self) -> bool:
        """Whether none are left."""
        return self._monotonic() >= self._end

    def require(self) -> float:
        """Returns the seconds that are left, e.g. as the timeout of a socket.

        Raises:
            TimeoutError: None are.
        """
        left = self.left()
        if left <= 0:
            raise TimeoutError
        return left


def wait_for(
    what: str,
    probe: Callable[[], _T | None],
    *,
    timeout: float,
    clock: Clock,
    interval: float = 0.2,
    describe: Callable[[], str] = lambda: "",
) -> _T:
    """Polls a probe until it returns something other than None.

    Args:
        what: What is being waited for, for the error message.
        probe: Called repeatedly; None means "not yet". If it raises, the wait ends.
        timeout: In seconds; a probe that is already running then may still succeed.
        clock: The clock that measures these seconds.
        interval: Seconds between two probes.
        describe: Returns how far things got, for the error message.

    Returns:
        What the probe returned.

    Raises:
        WaitTimeoutError: The timeout was reached.
    """
    deadline = Deadline(timeout, clock.monotonic)

    def is_late(_: RetryCallState) -> bool:
        return deadline.passed

    def until_next(_: RetryCallState | None) -> float:
        return max(min(interval, deadline.left()), _LEAST_S)

    def give_up(_: RetryCallState) -> None:
        raise WaitTimeoutError(what, timeout=timeout, last=describe())

    answer = probe()  # usually enough, and much cheaper than what follows
    if answer is not None:
        return answer
    if timeout > 0:
        clock.sleep(until_next(None))
    retrying = Retrying(
        retry=retry_if_result(lambda value: value is None),
        wait=until_next,
        stop=is_late,
        sleep=clock.sleep,
        retry_error_callback=give_up,
    )
    try:
        answer = retrying(probe)
    finally:
        # Else it refers to itself, and it and the probe live until the garbage is collected.
        retrying.iter_state.reset()
    if answer is None:  # pragma: no cover - give_up always raises
        raise WaitTimeoutError(what, timeout=timeout, last=describe())
    return answer
