"""Consecutive observations make a state (F5)."""

from __future__ import annotations

from dataclasses import replace

from pytest_vmss.health.observation import Observation
from pytest_vmss.model import Health

__all__ = ["Tracker"]


class Tracker:
    """The state of one instance, as one source sees it.

    What was seen on an earlier boot never counts: an observation from another boot than
    the one before begins anew. Make a new tracker for each swap.

    Args:
        threshold: Consecutive equal observations that make a state.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._count = 0
        self.state: Health | None = None
        self.last = Observation(Health.UNKNOWN, "not looked yet")

    @property
    def seen(self) -> Observation:
        """What was seen last, with the state that it has made of it; Unknown while there is none."""
        if self.last.health is self.state:
            return self.last
        return replace(self.last, health=self.state or Health.UNKNOWN)

    def observe(self, seen: Observation) -> Health | None:
        """Takes an observation; returns the state, None while there is none yet."""
        if seen.boot != self.last.boot:
            self._count, self.state = 0, None
        self._count = self._count + 1 if self._count and seen.health is self.last.health else 1
        self.last = seen
        if self._count >= self._threshold:
            self.state = seen.health
        return self.state
