"""Recorded times of day, corrected for steps of the host's clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from pytest_vmss.clock import Clock

__all__ = ["Moments"]

#: A smaller difference is drift or the time between two reads, not a step.
_DRIFT = timedelta(seconds=2)
_KEPT = 4096


class Moments:
    """Recorded times of day, shifted when the host's clock is set back or forward.

    A laptop that wakes up, or a VM whose clock is corrected, must neither skip a grace
    period nor wait for years until the clock has caught up.

    Args:
        clock: Returns the lab's clock.
    """

    def __init__(self, clock: Callable[[], Clock]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[datetime, tuple[datetime, float]] = {}

    def placed(self, moment: datetime) -> datetime:
        """Converts a recorded moment to the host clock's current time of day.

        Steps of the clock since this process first asked about the moment are undone; a
        moment that lay in the future then is replaced by the time of that first call.
        """
        clock = self._clock()
        now, elapsed = clock.now(), clock.monotonic()
        with self._lock:
            if len(self._seen) >= _KEPT:
                self._seen.pop(next(iter(self._seen)))
            first_now, first_elapsed = self._seen.setdefault(moment, (now, elapsed))
        step = (now - first_now) - timedelta(seconds=elapsed - first_elapsed)
        placed = min(moment, first_now)
        return placed if abs(step) < _DRIFT else placed + step
