"""The private addresses and names of a set's instances, as Azure has them (A9).

Both are functions of the instance's number, so they are an instance's own for its whole life, and
the same wherever it is restored.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network

__all__ = [
    "DOMAIN",
    "GATEWAY",
    "SUBNET",
    "computer_name",
    "number_in_name",
    "private_ip_address",
    "private_mac",
]

#: Azure's default virtual network; each set has one of its own.
SUBNET = IPv4Network("10.0.0.0/16")
#: The subnet's gateway.
GATEWAY = SUBNET[1]
#: Suffix of the names that Azure's own name server knows.
DOMAIN = "internal.cloudapp.net"

#: Azure keeps the first four addresses of a subnet for itself, and the last one.
_RESERVED = 4
#: QEMU's user network, by which the lab reaches guests, is 10.0.2.0/24.
_TAKEN = range(512, 768)
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_NUMBER = re.compile("[0-9a-z]{6}")


def private_ip_address(instance_id: int) -> IPv4Address:
    """Returns the private address of an instance: 10.0.0.4 for number 0, and so on."""
    room = SUBNET.num_addresses - _RESERVED - len(_TAKEN) - 1
    place = _RESERVED + instance_id % room
    return SUBNET[place if place < _TAKEN.start else place + len(_TAKEN)]


def private_mac(instance_id: int) -> str:
    """Returns the MAC address of an instance's network card in the private network."""
    address = private_ip_address(instance_id).packed
    return "52:54:" + ":".join(f"{byte:02x}" for byte in address)


def computer_name(prefix: str, instance_id: int) -> str:
    """Returns the host name of an instance: the prefix and its number in base 36, six digits."""
    return f"{prefix}{_base36(instance_id):0>6}".lower()


def number_in_name(prefix: str, name: str) -> int | None:
    """Returns the number of the instance with a host name; None if it is no such name.

    Args:
        prefix: The set's ``computerNamePrefix``.
        name: The name in any case, with Azure's suffix or without.
    """
    host = name.lower().removesuffix(".").removesuffix(f".{DOMAIN}")
    number = host.removeprefix(prefix.lower())
    if number == host or not _NUMBER.fullmatch(number):
        return None
    return int(number, 36)


def _base36(number: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 36)
        text = _DIGITS[digit] + text
    return text or "0"
