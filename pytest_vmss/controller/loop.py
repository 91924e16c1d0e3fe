"""The control loop, which starts upgrades when a newer version is published (C1)."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from pytest_vmss.clock import Interrupted

__all__ = ["ControlLoop"]

#: Seconds of real time between two reads of the lab's clock while a rollout is delayed.
_LOOK_S = 0.2
#: The same between two regular checks, and before the first retry.
_EVERY_S = 5.0
#: The most seconds between two tries.
_RETRY_S = 300.0


class ControlLoop:
    """A thread that runs due upgrades whenever it is woken.

    It ends only when the lab is closed: any other error of a turn is reported, and the loop
    continues.

    Args:
        run_due: Runs upgrades until none is due; returns whether something failed and is to
            be retried after a while.
        seconds_to_next: Returns the seconds on the lab's clock until a delayed upgrade is
            due; None if there is none.
        wants_looks: Returns whether something needs regular checks, such as the health of
            instances with automatic repairs.
        failed: Called with an error that none of these has handled.
        closing: Returns whether the lab is being closed.
    """

    def __init__(
        self,
        run_due: Callable[[], bool],
        seconds_to_next: Callable[[], float | None],
        wants_looks: Callable[[], bool],
        failed: Callable[[BaseException], None],
        closing: Callable[[], bool],
    ) -> None:
        self._run_due = run_due
        self._seconds_to_next = seconds_to_next
        self._wants_looks = wants_looks
        self._failed = failed
        self._closing = closing
        self._delayed = False
        self._retry_at: float | None = None
        self._tries = 0
        self._condition = threading.Condition()
        self._woken = False
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="vmss-control-loop", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Wakes the thread: something may be due."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    @property
    def idle(self) -> bool:
        """Whether nothing is due, delayed or running; retries may still be pending."""
        with self._condition:
            return not self._woken and not self._busy and not self._delayed

    def close(self) -> None:
        """Joins the thread; close the lab's clock first, so that waits end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while self._wait_for_turn():
            again, delayed = True, False
            try:
                again = self._run_due()
                delayed = self._seconds_to_next() is not None
            except Interrupted:
                if self._closing():
                    return
            except BaseException as error:  # noqa: BLE001 - an error must not end the loop
                with contextlib.suppress(Exception):
                    self._failed(error)
            with self._condition:
                self._delayed = delayed
                self._tries = self._tries + 1 if again else 0
                self._retry_at = None
                if again:
                    pause = min(_EVERY_S * 2.0 ** (self._tries - 1), _RETRY_S)
                    self._retry_at = time.monotonic() + pause
                self._busy = False
                self._condition.notify_all()

    def _wait_for_turn(self) -> bool:
        """Waits until there is something to do; returns False if the loop is being closed."""
        next_look = time.monotonic() + _EVERY_S
        with self._condition:
            while not self._woken and not self._closed:
                looks = self._asked(self._wants_looks)
                moments = [next_look] if looks else []
                moments += [] if self._retry_at is None else [self._retry_at]
                if self._condition.wait(self._patience(moments)):
                    continue
                if self._delayed and self._asked(lambda: self._seconds_to_next() in (None, 0.0)):
                    break
                if any(time.monotonic() >= moment for moment in moments):
                    break
            self._woken = False
            self._busy = not self._closed
            return not self._closed

    def _patience(self, moments: list[float]) -> float | None:
        """Seconds to wait unless woken; None for no timeout."""
        waits = [max(moment - time.monotonic(), 0.0) for moment in moments]
        return min([*waits, _LOOK_S] if self._delayed else waits, default=None)

    @staticmethod
    def _asked(question: Callable[[], bool]) -> bool:
        """Calls a predicate; True if it raises, so that the next turn reports the error."""
        try:
            return question()
        except Interrupted:
            return False
        except BaseException:  # noqa: BLE001 - see above
            return True
