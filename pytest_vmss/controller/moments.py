"""How long ago something was, whatever becomes of the host's time of day."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from pytest_vmss.clock import Clock

__all__ = ["Moments"]

#: Less than this is how clocks drift and are read, not a step.
_DRIFT = timedelta(seconds=2)
_KEPT = 4096


class Moments:
    """Recorded times of day, shifted along where the host's clock is set back or forward.

    A laptop that wakes up, or a VM whose clock is put right, must neither skip a grace
    period nor wait for years until the clock has caught up.

    Args:
        clock: Gives the lab's clock.
    """

    def __init__(self, clock: Callable[[], Clock]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[datetime, tuple[datetime, float]] = {}

    def placed(self, moment: datetime) -> datetime:
        """When a moment was, by the time of day as the host's clock has it now.

        Steps of the clock since this process first asked about the moment are undone; one
        that lay in the future then is taken for that time.
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
