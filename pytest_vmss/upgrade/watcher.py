"""Upgrades that start by themselves when a newer version is published (C1)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pytest_vmss.clock import Interrupted

__all__ = ["Watcher"]

#: Seconds of the host between two looks at the lab's clock, while a rollout is delayed.
_LOOK_S = 0.2
#: The same between two looks at what is looked at regularly.
_EVERY_S = 5.0


class Watcher:
    """A thread that runs due upgrades whenever it is woken.

    Args:
        run_due: Runs every upgrade that is due, one set after another or side
            by side, and returns when none is.
        seconds_to_next: Seconds on the lab's clock until one that is delayed will be
            due; None where none is coming.
        wants_looks: Whether something is to be looked at now and then, such as the health
            of instances that are repaired.
    """

    def __init__(
        self,
        run_due: Callable[[], None],
        seconds_to_next: Callable[[], float | None],
        wants_looks: Callable[[], bool],
    ) -> None:
        self._run_due = run_due
        self._seconds_to_next = seconds_to_next
        self._wants_looks = wants_looks
        self._delayed = False
        self._condition = threading.Condition()
        self._woken = False
        self._busy = False
        self._closed = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="vmss-watcher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Says that something may be due."""
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    @property
    def idle(self) -> bool:
        """Whether nothing is due or delayed, and nothing runs."""
        with self._condition:
            return not self._woken and not self._busy and not self._delayed

    def close(self) -> None:
        """Ends the thread; close the lab's clock first, so that waits end."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._woken and not self._closed:
                    looks = self._wants_looks()
                    woken = self._condition.wait(
                        _LOOK_S if self._delayed else _EVERY_S if looks else None
                    )
                    if self._delayed and self._seconds_to_next() in (None, 0.0):
                        self._woken = True
                    elif looks and not woken:
                        break
                if self._closed:
                    return
                self._woken = False
                self._busy = True
            try:
                self._run_due()
                self._delayed = self._seconds_to_next() is not None
            except Interrupted:
                return
            except Exception as error:  # noqa: BLE001 - shown by whoever waits for the upgrade
                self.error = error
            finally:
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()
