"""Records of what a lab has claimed on its host."""

from __future__ import annotations

from typing import ClassVar

from pytest_vmss.store.record import Record

__all__ = ["NetworkRecord", "PortRecord"]


class NetworkRecord(Record):
    """A loopback network that the lab has claimed in addition to its first."""

    kind: ClassVar[str] = "network"

    network: str

    @property
    def key(self) -> tuple[str | int, ...]:
        """The network."""
        return (self.network,)


class PortRecord(Record):
    """A port on the host's loopback that the lab listens on."""

    kind: ClassVar[str] = "port"

    name: str
    port: int

    @property
    def key(self) -> tuple[str | int, ...]:
        """The name of what listens there."""
        return (self.name,)
