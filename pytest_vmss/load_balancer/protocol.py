"""What the lab asks of a load balancer. Every call can be repeated without harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pytest_vmss.model import Probe

__all__ = ["Balancer", "Member", "Rule"]


@dataclass(frozen=True)
class Rule:
    """From a port of the frontend to a port of every instance.

    Attributes:
        name: Azure's name of the rule.
        address: Loopback address of the frontend.
        port: Port of the host on it.
        backend_port: Port of the guests.
        probe: What tells whether an instance gets traffic; None: every one does.
    """

    name: str
    address: str
    port: int
    backend_port: int
    probe: Probe | None


@dataclass(frozen=True)
class Member:
    """An instance behind the load balancer.

    Attributes:
        name: Azure's name of the instance.
        address: Loopback address that leads to it.
        forwards: Guest port to host port on that address.
        in_service: Whether it may get traffic, where it is healthy.
    """

    name: str
    address: str
    forwards: dict[int, int]
    in_service: bool = True


class Balancer(Protocol):
    """Distributes traffic over the healthy instances of one set."""

    def ensure(self, members: Sequence[Member]) -> None:
        """Runs, with these members and no others, each in or out of service as it says."""

    def add(self, member: Member) -> None:
        """Takes a member in, in service or not."""

    def remove(self, name: str) -> None:
        """Lets a member go; it must be out of service."""

    def take_out(self, name: str) -> None:
        """Sends a member no new connections; those that it has go on."""

    def put_back(self, name: str) -> None:
        """Sends a member connections again, as soon as it is healthy."""

    def connections(self, name: str) -> int:
        """How many connections a member has now."""

    def healthy(self, name: str) -> bool | None:
        """What the probe says of a member; None where nothing is known yet."""

    def stop(self) -> None:
        """Ends; nothing of it is left."""
