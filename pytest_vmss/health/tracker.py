"""Consecutive observations make a state (F5)."""

from __future__ import annotations

from pytest_vmss.health.probe import ProbeResult

__all__ = ["Tracker"]


class Tracker:
    """The state of one instance on one boot; make a new one for each boot.

    Args:
        threshold: Consecutive equal observations that make a state.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._last: bool | None = None
        self._count = 0
        self.state: bool | None = None
        self.detail = "not probed yet"

    def observe(self, result: ProbeResult) -> bool | None:
        """Takes an observation; returns the state, None while there is none yet."""
        self._count = self._count + 1 if result.healthy == self._last else 1
        self._last = result.healthy
        self.detail = result.detail
        if self._count >= self._threshold:
            self.state = result.healthy
        return self.state
