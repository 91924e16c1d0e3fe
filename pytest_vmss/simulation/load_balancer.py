"""A load balancer in memory: the same protocol, no traffic (for the simulation ring)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pytest_vmss.clock import Clock
from pytest_vmss.load_balancer.protocol import Member
from pytest_vmss.simulation.clock import preempt

__all__ = ["SimulatedBalancer"]


class SimulatedBalancer:
    """Implements :class:`~pytest_vmss.load_balancer.protocol.Balancer`.

    Args:
        probe: Whether an instance is healthy now.
        clock: On which others may run before each change.

    Attributes:
        members: By name, with whether each is in service.
        busy: Connections by name.
    """

    def __init__(self, probe: Callable[[str], bool], clock: Clock) -> None:
        self._probe = probe
        self._clock = clock
        self.members: dict[str, bool] = {}
        self.busy: dict[str, int] = {}
        self.running = False

    def ensure(self, members: Sequence[Member]) -> None:
        """Runs, with these members and no others."""
        preempt(self._clock)
        self.running = True
        self.members = {member.name: member.in_service for member in members}

    def add(self, member: Member) -> None:
        """Takes a member in."""
        preempt(self._clock)
        self.members[member.name] = member.in_service

    def remove(self, name: str) -> None:
        """Lets a member go."""
        preempt(self._clock)
        self.members.pop(name, None)

    def take_out(self, name: str) -> None:
        """Sends a member no new connections."""
        preempt(self._clock)
        if name in self.members:
            self.members[name] = False

    def put_back(self, name: str) -> None:
        """Sends a member connections again."""
        preempt(self._clock)
        if name in self.members:
            self.members[name] = True

    def connections(self, name: str) -> int:
        """How many connections a member has now; one ends at each look."""
        left = self.busy.get(name, 0)
        self.busy[name] = max(left - 1, 0)
        return left

    def healthy(self, name: str) -> bool | None:
        """What the probe says of a member."""
        return self._probe(name) if name in self.members else None

    def stop(self) -> None:
        """Ends."""
        preempt(self._clock)
        self.running = False
        self.members = {}
