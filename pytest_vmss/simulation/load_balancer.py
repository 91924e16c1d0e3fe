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
        probe: Returns whether an instance is healthy now.
        clock: The clock that lets other threads run before each change.

    Attributes:
        members: Whether each member is in service, by name.
        busy: Connections by name.
        judges: Whether it has the set's own health probe.
    """

    def __init__(self, probe: Callable[[str], bool], clock: Clock) -> None:
        self._probe = probe
        self._clock = clock
        self.members: dict[str, bool] = {}
        self.busy: dict[str, int] = {}
        self.running = False
        self.judges = True

    def ensure(self, members: Sequence[Member]) -> None:
        """Starts it with exactly these members."""
        preempt(self._clock)
        self.running = True
        self.members = {member.name: member.in_service for member in members}

    def add(self, member: Member) -> None:
        """Adds a member."""
        preempt(self._clock)
        self.members[member.name] = member.in_service

    def remove(self, name: str) -> None:
        """Removes a member."""
        preempt(self._clock)
        self.members.pop(name, None)

    def take_out(self, name: str) -> None:
        """Stops sending a member new connections."""
        preempt(self._clock)
        if name in self.members:
            self.members[name] = False

    def put_back(self, name: str) -> None:
        """Resumes sending a member connections."""
        preempt(self._clock)
        if name in self.members:
            self.members[name] = True

    def connections(self, name: str) -> int:
        """The number of a member's connections; one ends with each call."""
        left = self.busy.get(name, 0)
        self.busy[name] = max(left - 1, 0)
        return left

    def healthy(self, name: str) -> bool | None:
        """Whether the probe finds a member healthy; None for no such member."""
        return self._probe(name) if name in self.members else None

    def verdicts(self) -> dict[str, bool]:
        """Whether the probe finds each member healthy."""
        return {name: self._probe(name) for name in list(self.members)}

    def report(self) -> str:
        """Its members, as CSV."""
        return "\n".join(("# svname", *sorted(self.members))) + "\n"

    def stop(self) -> None:
        """Stops it."""
        preempt(self._clock)
        self.running = False
        self.members = {}
