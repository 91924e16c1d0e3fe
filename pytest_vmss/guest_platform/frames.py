"""Reads and builds the few kinds of Ethernet frames that the platform answers itself.

Frames come from guests (R2): whatever cannot be read is None.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

__all__ = [
    "BROADCAST",
    "Datagram",
    "arp_reply",
    "arp_sender",
    "arp_target",
    "ethernet",
    "ipv4_source",
    "ipv4_target",
    "is_tcp",
    "read_datagram",
    "redirected",
    "source_mac",
    "target_port",
    "udp_frame",
]

BROADCAST = b"\xff" * 6

_IPV4, _ARP = 0x0800, 0x0806
_UDP, _TCP = 17, 6
_ETHERNET = struct.Struct("!6s6sH")
_IP = struct.Struct("!BBHHHBBH4s4s")
_PORTS = struct.Struct("!HHHH")
_ARP_BODY = struct.Struct("!HHBBH6s4s6s4s")
_ARP_ETHERNET = (1, _IPV4, 6, 4)
_REQUEST, _REPLY = 1, 2
_TTL = 64
_FRAGMENT = 0x3FFF  # more fragments, or not the first


@dataclass(frozen=True)
class Datagram:
    """A UDP datagram, and who sends it to whom."""

    source: IPv4Address
    source_port: int
    target: IPv4Address
    target_port: int
    payload: bytes


def ethernet(target: bytes, source: bytes, kind: int, body: bytes) -> bytes:
    """Builds a frame."""
    return _ETHERNET.pack(target, source, kind) + body


def _kind(frame: bytes) -> int:
    return int.from_bytes(frame[12:14]) if len(frame) >= _ETHERNET.size else 0


def arp_target(frame: bytes) -> IPv4Address | None:
    """Whose MAC address a frame asks for; None if it is no ARP request."""
    body = frame[_ETHERNET.size : _ETHERNET.size + _ARP_BODY.size]
    if _kind(frame) != _ARP or len(body) < _ARP_BODY.size:
        return None
    *kinds, operation, _, _, _, target = _ARP_BODY.unpack(body)
    return IPv4Address(target) if (*kinds, operation) == (*_ARP_ETHERNET, _REQUEST) else None


def arp_sender(frame: bytes) -> IPv4Address | None:
    """Who a frame says that it comes from; None if it is no ARP request."""
    if arp_target(frame) is None:
        return None
    return IPv4Address(frame[_ETHERNET.size + 14 : _ETHERNET.size + 18])


def source_mac(frame: bytes) -> bytes:
    """The MAC address that a frame comes from."""
    return frame[6:12]


def redirected(frame: bytes, target: bytes, source: bytes) -> bytes:
    """Returns a frame with other MAC addresses."""
    return target + source + frame[12:]


def arp_reply(address: IPv4Address, mac: bytes, to: IPv4Address, to_mac: bytes) -> bytes:
    """Builds the frame that tells somebody an address's MAC address."""
    body = _ARP_BODY.pack(*_ARP_ETHERNET, _REPLY, mac, address.packed, to_mac, to.packed)
    return ethernet(to_mac, mac, _ARP, body)


def _packet(frame: bytes, protocol: int) -> tuple[bytes, bytes] | None:
    """The addresses and the payload of an unfragmented IPv4 packet of a protocol."""
    start = _ETHERNET.size
    if _kind(frame) != _IPV4 or len(frame) < start + _IP.size:
        return None
    first, _, length, _, fragment, _, kind, _, source, target = _IP.unpack_from(frame, start)
    header = (first & 15) * 4
    if first >> 4 != 4 or header < _IP.size or kind != protocol or fragment & _FRAGMENT:
        return None
    return source + target, frame[start + header : start + length]


def ipv4_target(frame: bytes) -> IPv4Address | None:
    """Whom an IPv4 packet, also a fragment of one, is for; None if the frame holds none."""
    if _kind(frame) != _IPV4 or len(frame) < _ETHERNET.size + _IP.size:
        return None
    return IPv4Address(_IP.unpack_from(frame, _ETHERNET.size)[-1])


def ipv4_source(frame: bytes) -> IPv4Address | None:
    """Who sends an IPv4 packet, also a fragment of one; None if the frame holds none."""
    if ipv4_target(frame) is None:
        return None
    return IPv4Address(_IP.unpack_from(frame, _ETHERNET.size)[-2])


def target_port(frame: bytes) -> int | None:
    """The port that TCP or UDP in a frame is for; None for anything else, fragments included."""
    found = _packet(frame, _TCP) or _packet(frame, _UDP)
    return None if found is None or len(found[1]) < 4 else int.from_bytes(found[1][2:4])


def is_tcp(frame: bytes) -> bool:
    """Whether a frame holds TCP over IPv4."""
    return _packet(frame, _TCP) is not None


def read_datagram(frame: bytes) -> Datagram | None:
    """Reads a UDP datagram over IPv4; None if the frame holds none."""
    found = _packet(frame, _UDP)
    if found is None or len(found[1]) < _PORTS.size:
        return None
    addresses, body = found
    source, target, length, _ = _PORTS.unpack_from(body)
    if not _PORTS.size <= length <= len(body):
        return None
    return Datagram(
        IPv4Address(addresses[:4]), source, IPv4Address(addresses[4:]), target,
        body[_PORTS.size : length],
    )  # fmt: skip


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def udp_frame(datagram: Datagram, *, source_mac: bytes, target_mac: bytes) -> bytes:
    """Builds the frame of a datagram."""
    size = _PORTS.size + len(datagram.payload)
    # A checksum of 0 means that there is none, which IPv4 allows.
    body = _PORTS.pack(datagram.source_port, datagram.target_port, size, 0) + datagram.payload
    fields = [0x45, 0, _IP.size + size, 0, 0, _TTL, _UDP, 0]
    ends = (datagram.source.packed, datagram.target.packed)
    fields[-1] = _checksum(_IP.pack(*fields, *ends))
    return ethernet(target_mac, source_mac, _IPV4, _IP.pack(*fields, *ends) + body)
