"""Decides what becomes of a frame in a set's private network (A9, R1).

Like Azure's virtual network it is routed, and no Ethernet: the switch answers every ARP request
itself, forwards IPv4 by address alone, and carries no broadcast and no multicast. So it learns
nothing that a guest could forge or fill up, and an instance sends from its own addresses only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from pytest_vmss.guest_platform.addresses import GATEWAY_MAC
from pytest_vmss.guest_platform.frames import (
    arp_reply,
    arp_sender,
    arp_target,
    ipv4_source,
    ipv4_target,
    read_datagram,
    redirected,
    source_mac,
    udp_frame,
)
from pytest_vmss.guest_platform.private_addresses import (
    GATEWAY,
    SUBNET,
    private_ip_address,
    private_mac,
)
from pytest_vmss.guest_platform.virtual_network import names

__all__ = ["LARGEST", "Switch"]

#: The largest frame that is carried: an MTU of 1500, as in Azure, and an Ethernet header.
LARGEST = 1514
_SMALLEST = 14
_NOBODY = IPv4Address(0)


@dataclass
class Switch:
    """The network of a set.

    Attributes:
        prefix: The set's ``computerNamePrefix``.
        cut: Pairs of instances that are cut off from each other.
    """

    prefix: str
    cut: Collection[frozenset[int]] = field(default_factory=frozenset)
    _macs: dict[int, bytes] = field(default_factory=dict)
    _numbers: Mapping[IPv4Address, int] = field(default_factory=dict)

    def connect(self, instances: Collection[int]) -> None:
        """Sets the numbers of the instances that there are."""
        self._macs = {n: bytes.fromhex(private_mac(n).replace(":", "")) for n in instances}
        self._numbers = {private_ip_address(number): number for number in instances}

    def take(self, number: int, frame: bytes) -> tuple[int, bytes] | None:
        """Takes a frame from an instance.

        Args:
            number: The instance's number.
            frame: The frame.

        Returns:
            To whom to send which frame; None to drop it.
        """
        mac = self._macs.get(number)
        if mac is None or source_mac(frame) != mac or not _SMALLEST <= len(frame) <= LARGEST:
            return None
        own = private_ip_address(number)
        asked = arp_target(frame)
        if asked is not None:
            known = asked in SUBNET and asked != own and arp_sender(frame) in (own, _NOBODY)
            return (number, arp_reply(asked, GATEWAY_MAC, own, mac)) if known else None
        if ipv4_source(frame) != own:
            return None
        target = ipv4_target(frame)
        if target == GATEWAY:
            return self._answer(number, frame, mac)
        to = None if target is None else self._numbers.get(target)
        if to is None or to == number or frozenset((number, to)) in self.cut:
            return None
        return to, redirected(frame, self._macs[to], GATEWAY_MAC)

    def _answer(self, number: int, frame: bytes, mac: bytes) -> tuple[int, bytes] | None:
        """Answers a question to the network's name server."""
        asked = read_datagram(frame)
        if asked is None or asked.target_port != names.DNS_PORT:
            return None
        reply = names.answer(asked, self.prefix, self._macs.__contains__) or names.refuse(asked)
        if reply is None:
            return None
        return number, udp_frame(reply, source_mac=GATEWAY_MAC, target_mac=mac)
