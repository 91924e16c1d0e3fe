"""The interface to a load balancer. Every call is idempotent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from pytest_vmss.model import Probe

__all__ = ["Balancer", "Member", "Rule"]


@dataclass(frozen=True)
class Rule:
    """A load-balancing rule: from a port of the frontend to a port of every instance.

    Attributes:
        name: Azure's name of the rule.
        address: Loopback address of the frontend.
        port: Port of the host on that address.
        backend_port: Port of the guests.
        probe: The probe that decides whether an instance gets traffic; None if all do.
        judges: Whether that is the set's own health probe, which decides on health too.
    """

    name: str
    address: str
    port: int
    backend_port: int
    probe: Probe | None
    judges: bool = True


class Member(NamedTuple):
    """An instance behind the load balancer.

    Attributes:
        name: Azure's name of the instance.
        address: Loopback address that leads to it.
        forwards: Guest port to host port on that address.
        in_service: Whether it may get traffic if it is healthy.
    """

    name: str
    address: str
    forwards: Mapping[int, int]
    in_service: bool = True


class Balancer(Protocol):
    """Distributes traffic over the healthy instances of one set."""

    @property
    def judges(self) -> bool:
        """Whether it has the set's own health probe, and so knows what is healthy."""

    def ensure(self, members: Sequence[Member]) -> None:
        """Ensures that it runs with exactly these members, in or out of service as specified."""

    def add(self, member: Member) -> None:
        """Adds a member, in or out of service."""

    def remove(self, name: str) -> None:
        """Removes a member, which must be out of service."""

    def take_out(self, name: str) -> None:
        """Stops sending new connections to a member; existing ones continue."""

    def put_back(self, name: str) -> None:
        """Sends connections to a member again, as soon as it is healthy."""

    def connections(self, name: str) -> int:
        """Returns the number of a member's current connections."""

    def healthy(self, name: str) -> bool | None:
        """Whether a member is healthy by the set's own probe; None if that is not known yet."""

    def verdicts(self) -> Mapping[str, bool]:
        """Whether each member is healthy, by its name; without those of which it is not known yet.

        One question for the whole set.
        """

    def report(self) -> str:
        """Returns its own account of its members, their checks and what it sent them, as CSV.

        Raises:
            BalancerError: It does not answer.
        """

    def stop(self) -> None:
        """Stops the load balancer, and removes all of its files."""
