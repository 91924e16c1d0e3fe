"""Derives a health state from consecutive observations (F5)."""

from __future__ import annotations

from dataclasses import replace

from pytest_vmss.health.observation import Observation
from pytest_vmss.model import Health

__all__ = ["Tracker"]

_NOTHING = Observation(Health.UNKNOWN, "not looked yet")


class Tracker:
    """Tracks the health of one instance as one source observes it.

    Observations from an earlier boot never count: one from another boot than the last restarts
    the count. Use a new tracker after each swap.

    Args:
        threshold: Consecutive equal observations that change the state.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._count = 0
        self.state: Health | None = None
        self.last = _NOTHING

    @property
    def seen(self) -> Observation:
        """The last observation, but with the current state; Unknown if there is none yet."""
        if self.last.health is self.state:
            return self.last
        return replace(self.last, health=self.state or Health.UNKNOWN)

    def observe(self, seen: Observation) -> Health | None:
        """Records an observation; returns the state, or None if there is none yet."""
        if seen.boot != self.last.boot:
            self._count, self.state = 0, None
        self._count = self._count + 1 if self._count and seen.health is self.last.health else 1
        self.last = seen
        if self._count >= self._threshold:
            self.state = seen.health
        return self.state
