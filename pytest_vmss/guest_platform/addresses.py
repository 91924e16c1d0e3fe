"""The addresses of a guest's network, as Azure has them where a guest can tell."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pytest_vmss.guest_platform.private_addresses import GATEWAY, SUBNET, private_ip_address

__all__ = ["GATEWAY_MAC", "METADATA", "WIRE_SERVER", "Lease"]

#: Azure's wire server, DHCP server and name server.
WIRE_SERVER = IPv4Address("168.63.129.16")
#: Azure's metadata service.
METADATA = IPv4Address("169.254.169.254")
#: The MAC address of every gateway in Azure.
GATEWAY_MAC = bytes.fromhex("123456789abc")


@dataclass(frozen=True)
class Lease:
    """What a guest gets by DHCP.

    Attributes:
        address: Its private address.
        mac: The MAC address of its network card.
        name_server: Whom it asks for names.
    """

    address: IPv4Address
    mac: bytes
    name_server: IPv4Address = WIRE_SERVER

    @classmethod
    def of(cls, instance_id: int, mac: str, name_server: IPv4Address = WIRE_SERVER) -> Lease:
        """The lease of an instance.

        Args:
            instance_id: Its number in the set.
            mac: Its MAC address, with colons.
            name_server: Whom it asks for names.
        """
        address = private_ip_address(instance_id)
        return cls(address, bytes.fromhex(mac.replace(":", "")), name_server)

    @property
    def subnet(self) -> IPv4Network:
        """The subnet that it is in."""
        return SUBNET

    @property
    def gateway(self) -> IPv4Address:
        """The subnet's gateway."""
        return GATEWAY
