"""Upgrades that start by themselves when a newer version is published (C1)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pytest_vmss.clock import Interrupted

__all__ = ["Watcher"]


class Watcher:
    """A thread that runs due upgrades whenever it is woken.

    Args:
        run_due: Runs every upgrade that is due, one set after another or side
            by side, and returns when none is.
    """

    def __init__(self, run_due: Callable[[], None]) -> None:
        self._run_due = run_due
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
        """Whether nothing is due and nothing runs."""
        with self._condition:
            return not self._woken and not self._busy

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
                    self._condition.wait()
                if self._closed:
                    return
                self._woken = False
                self._busy = True
            try:
                self._run_due()
            except Interrupted:
                return
            except Exception as error:  # noqa: BLE001 - shown by whoever waits for the upgrade
                self.error = error
            finally:
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()
